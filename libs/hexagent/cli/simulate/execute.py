"""Runs one simulation, with a watch on the scheduler core, whose own code knows no clock."""

from collections.abc import Mapping, Sequence
from time import thread_time_ns
from typing import Any, Final

from hexagent.core.scheduling.effects import Dispatch, Effect
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.units import US_PER_S, ceil_div
from hexagent.sim.experiment.run import Bound, Outcome, Run, Task, bound_req95, judged, world_of
from hexagent.sim.metrics import WorkflowRow
from hexagent.sim.shares import TenantShare
from hexagent.sim.world import World

_NS_PER_MS: Final = 1_000_000


class Stopwatch:
    """Stands before the scheduler of a world; keeps the processor time of each event that dispatched calls."""

    def __init__(self, world: World) -> None:
        self.spent_ns: list[int] = []
        self._handle = world.handle
        world.handle = self

    def __call__(self, event: SchedulerEvent, now_us: int) -> tuple[Effect, ...]:
        began_ns = thread_time_ns()
        effects = self._handle(event, now_us)
        spent_ns = thread_time_ns() - began_ns
        if any(isinstance(effect, Dispatch) for effect in effects):
            self.spent_ns.append(spent_ns)
        return effects


def execute(task: Task) -> dict[str, Any]:
    """What to keep of the task."""
    if isinstance(task, Bound):
        return {"req95": bound_req95(task)}
    outcome = outcome_of(task)._asdict()
    del outcome["run"]
    return outcome


def outcome_from(run: Run, kept: Mapping[str, Any]) -> Outcome:
    """The outcome of which `execute` made `kept`."""
    rows = tuple([WorkflowRow(*row) for row in kept["rows"]])
    shares = tuple([TenantShare(*share) for share in kept["shares"]])
    return Outcome(run, rows, kept["decision_p50_ms"], kept["decision_p99_ms"], shares, kept["contested_s"])


def outcome_of(run: Run, world: World | None = None) -> Outcome:
    """Run it, in a world of its own unless one is given that has not run yet."""
    world = world or world_of(run)
    watch = Stopwatch(world)
    result = world.run()
    spent_ns = sorted(watch.spent_ns)
    return Outcome(
        run,
        judged(run, result.rows),
        _percentile_ms(spent_ns, 50),
        _percentile_ms(spent_ns, 99),
        result.shares,
        result.contested_us / US_PER_S,
    )


def _percentile_ms(ordered_ns: Sequence[int], percent: int) -> float:
    return ordered_ns[ceil_div(percent * len(ordered_ns), 100) - 1] / _NS_PER_MS if ordered_ns else 0.0
