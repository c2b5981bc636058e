"""An offline search for a good schedule of a small cell: what can at least be reached, as the bound says what cannot.

A schedule is an order of urgency and a limit on prefill batches; placement is that of `clairvoyant`: predicted finish
with true lengths and speeds. Every schedule tried runs through the simulator itself, which knows no future.
A call is the more urgent the earlier it must start for its workflow to end within the scale it is given: all start
with one scale, then annealing changes single workflows' scales, single calls and the batch limit.
"""

import math
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.policy.dispatch import PredictedFinish
from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.policy.registry import Policy
from hexagent.core.units import US_PER_S
from hexagent.sim.clients import call_id
from hexagent.sim.metrics import required_scale
from hexagent.sim.oracle import ScriptOracle
from hexagent.sim.workloads.model import Workload
from hexagent.sim.world import World

PERCENT: Final = 95
WORKFLOWS_MAX: Final = 10
FIRST_SCALES: Final = (1.0, 1.25, 1.5, 2.0, 3.0)
BATCHES_US: Final = (0, 50_000, 100_000, DEFAULT.batch_us_max, 500_000)
WARMTH: Final = 0.02  # share by which a schedule may be worse than the one it comes from, at the beginning
SCALE_SIGMA: Final = 0.3  # of the log of a change
SHIFT_US: Final = US_PER_S  # standard deviation of the change of one call's urgency


class Schedule(NamedTuple):
    scales: tuple[float, ...]  # of each workflow
    shifts_us: tuple[tuple[CallId, int], ...]  # of calls moved by themselves
    batch_us: int


class Cost(NamedTuple):
    """What is made small, the first first."""

    required: float  # Req_95
    mean: float  # of all stretches


class ByUrgency:
    """Calls in a fixed order."""

    projected = False

    def __init__(self, urgency_us: dict[CallId, int]) -> None:
        self._urgency_us = urgency_us

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        return np.array([self._urgency_us[call.call_id] for call in ages.calls], dtype=np.int64)


class Search:
    """Schedules of one cell and what they cost; same arguments, same answers."""

    def __init__(self, cluster: ClusterSpec, workload: Workload, seed: int) -> None:
        if not 0 < len(workload.workflows) <= WORKFLOWS_MAX:
            raise InvalidArgument(
                f"workflows: must be 1 to {WORKFLOWS_MAX} for a search", reason="BAD_OPTION", field="workflows"
            )
        self._cluster, self._workload, self._seed = cluster, workload, seed
        self._rng = random.Random(f"{workload.source}/{seed}")
        model = cluster.models[0]
        estimator = Estimator(cluster)
        oracle = ScriptOracle(workload, estimator, model)
        self._horizons_us = [oracle.horizon_us(w.workflow_id) for w in workload.workflows]
        self._due_us: list[tuple[CallId, int, int]] = []  # call, its workflow's position, latest start at scale 0
        for position, workflow in enumerate(workload.workflows):
            for item in workflow.items:
                call = CallId(workflow.workflow_id, call_id(item))
                own_us = estimator.solo_us(model, item.prompt_tokens, item.output_tokens)
                self._due_us.append((call, position, workflow.arrival_us - own_us - oracle.below_us(call)))

    def best(self, tries: int, tell: Callable[[], None] = lambda: None) -> float:
        """Req_95 of the best schedule found; `tell` is called after each of the `tries`."""
        current, cost = self._first(tell)
        best = cost
        left = tries - len(FIRST_SCALES) - len(BATCHES_US)
        for turn in range(left):
            changed = self._changed(current)
            found = self._cost(changed)
            tell()
            warmth = 1 + WARMTH * (1 - turn / left)
            if found.required < cost.required * warmth or found < cost:
                current, cost = changed, found
            best = min(best, found)
        return best.required

    def _first(self, tell: Callable[[], None]) -> tuple[Schedule, Cost]:
        """The best with one scale for all, then of the batch limits under it."""
        count = len(self._horizons_us)
        one_scale = [Schedule((scale,) * count, (), DEFAULT.batch_us_max) for scale in FIRST_SCALES]
        costs = []
        for schedule in one_scale:
            costs.append((self._cost(schedule), schedule))
            tell()
        start = min(costs)[1]
        for batch_us in BATCHES_US:
            costs.append((self._cost(start._replace(batch_us=batch_us)), start._replace(batch_us=batch_us)))
            tell()
        cost, schedule = min(costs)
        return schedule, cost

    def _changed(self, schedule: Schedule) -> Schedule:
        rng = self._rng
        kind = rng.random()
        if kind < 0.1:
            return schedule._replace(batch_us=rng.choice(BATCHES_US))
        if kind < 0.55:
            scales = list(schedule.scales)
            scales[rng.randrange(len(scales))] *= math.exp(rng.gauss(0, SCALE_SIGMA))
            return schedule._replace(scales=tuple(scales))
        call = rng.choice(self._due_us)[0]
        shifts_us = dict(schedule.shifts_us)
        shifts_us[call] = shifts_us.get(call, 0) + round(rng.gauss(0, SHIFT_US))
        return schedule._replace(shifts_us=tuple(shifts_us.items()))

    def _cost(self, schedule: Schedule) -> Cost:
        urgency_us = {
            call: due_us + round(schedule.scales[position] * self._horizons_us[position])
            for call, position, due_us in self._due_us
        }
        for call, shift_us in schedule.shifts_us:
            urgency_us[call] += shift_us
        world = World(self._cluster, self._workload, "clairvoyant", self._seed)
        profile = DEFAULT._replace(batch_us_max=schedule.batch_us)
        dispatcher = PredictedFinish(world.scheduler.estimator, profile, aware=True)
        world.scheduler.policy = Policy("offline", ByUrgency(urgency_us), dispatcher)
        stretches = [row.stretch for row in world.run().rows]
        return Cost(required_scale(stretches, PERCENT), sum(stretches) / len(stretches))
