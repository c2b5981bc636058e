"""One run of an experiment: a cell, a policy and a seed; what comes out of it in one row."""

from typing import Final, NamedTuple

from hexagent.core.policy.registry import keeps_roles
from hexagent.sim.bounds.lower import lower_bound
from hexagent.sim.experiment.cell import WORLDS, Cell, cluster_of, conditions_of, profile_of, workload_of
from hexagent.sim.experiment.policies import HINT_ERROR, dispatch_of, unhinted
from hexagent.sim.metrics import WorkflowRow, jain, summary
from hexagent.sim.shares import TenantShare
from hexagent.sim.workloads.model import Workload
from hexagent.sim.world import World

Value = str | int | float | bool | None

GOODPUT_SCALE: Final = 3.0  # goodput counts workflows that complete within this many horizons
VARIANTS: Final = (
    "arrivals",
    "duration_s",
    "workflows",
    "noise",
    "link_gb_per_s",
    "hardware",
    "tp",
    "tools",
    "spread",
    "hints",
    "flip_s",
    "lengths",
    "profile",
    "tenants",
    "models",
)


class Run(NamedTuple):
    cell: Cell
    policy: str  # NAME or NAME:DISPATCH, with or without HINTED after it
    seed: int

    @property
    def order(self) -> str:
        """The policy's name without its dispatch."""
        name = unhinted(self.policy)
        return name.partition(":")[0] + self.policy.removeprefix(name)

    @property
    def dispatch(self) -> str:
        """Where nothing is cached, `cache-aware` is `predicted-finish`."""
        dispatch = dispatch_of(self.policy)
        return "predicted-finish" if dispatch == "cache-aware" and not WORLDS[self.cell.world] else dispatch


class Bound(NamedTuple):
    """The lower bound on Req95 of any schedule of a cell's workload."""

    cell: Cell
    seed: int


Task = Run | Bound


class Outcome(NamedTuple):
    """What a run leaves behind; times of decisions are those of the machine that ran it."""

    run: Run
    rows: tuple[WorkflowRow, ...]  # judged workflows, by arrival
    decision_p50_ms: float
    decision_p99_ms: float
    shares: tuple[TenantShare, ...] = ()
    contested_s: float = 0.0


def world_of(run: Run, workload: Workload | None = None) -> World:
    """The simulated world of the run, ready to go; `workload` stands in for the cell's."""
    cell, policy = run.cell, unhinted(run.policy)
    if policy != run.policy:
        cell = cell._replace(hints=HINT_ERROR)
    return World(
        cluster_of(cell),
        workload or workload_of(cell, run.seed),
        policy,
        run.seed,
        conditions=conditions_of(cell),
        profile=profile_of(cell),
    )


def judged(run: Run, rows: tuple[WorkflowRow, ...]) -> tuple[WorkflowRow, ...]:
    """The rows of workflows that arrived after the warm-up."""
    return tuple([row for row in rows if row.arrival_us >= run.cell.warm_up_us])


def bound_req95(bound: Bound) -> float | None:
    """None where a warm-up is not judged: the bound is one for all workflows together. None of several models."""
    if bound.cell.warm_up_us or bound.cell.models:
        return None
    cell = bound.cell
    return lower_bound(cluster_of(cell), workload_of(cell, bound.seed), bound.seed, conditions_of(cell)).req95


def row_of(outcome: Outcome, lower_bound_req95: float | None) -> dict[str, Value]:
    """The run in one row. What of the cell is not as in the paper's burst follows as columns of its own.

    `goodput` is the number of workflows that complete within GOODPUT_SCALE horizons, a second of `makespan_s`;
    `decision_*_ms` is the processor time the scheduler core takes for an event that dispatches calls. `jain` and
    `share_*` are of what tenants were charged, over their weights, in `contested_s` in which all had calls waiting.
    """
    run, cell = outcome.run, outcome.run.cell
    total = summary(outcome.rows)
    # Without prefix caches the bound is one for fixed roles.
    pools_as_one = not WORLDS[cell.world] and not keeps_roles(unhinted(run.policy), cluster_of(cell))
    timely = sum(row.stretch <= GOODPUT_SCALE for row in outcome.rows)
    row: dict[str, Value] = {
        "model": cell.model,
        "cluster": cell.cluster,
        "workload": cell.workload,
        "world": cell.world,
        "engine_profile": cell.engine_profile,
        "policy": run.order,
        "dispatch": run.dispatch,
        "seed": run.seed,
        "load": cell.load or None,
        "workflows": total.workflows,
        "req50": total.req50,
        "req90": total.req90,
        "req95": total.req95,
        "req99": total.req99,
        "req100": total.req100,
        "req95_notool": total.req95_notool,
        "req99_notool": total.req99_notool,
        "makespan_s": total.makespan_s,
        "goodput": timely / total.makespan_s if total.makespan_s else 0.0,
        **shares_of(outcome),
        "lower_bound_req95": None if pools_as_one else lower_bound_req95,
        "decision_p50_ms": outcome.decision_p50_ms,
        "decision_p99_ms": outcome.decision_p99_ms,
    }
    usual = Cell._field_defaults
    return row | {name: getattr(cell, name) for name in VARIANTS if getattr(cell, name) != usual[name]}


def shares_of(outcome: Outcome) -> dict[str, Value]:
    """Jain's index, and each tenant's part of what was charged; None where there was nothing to share."""
    weighed = {share.tenant: share.contested_us / share.weight for share in outcome.shares}
    whole = sum(weighed.values())
    row: dict[str, Value] = {"jain": jain(list(weighed.values())) if whole and len(weighed) > 1 else None}
    if len(weighed) > 1:
        row["contested_s"] = outcome.contested_s
        row |= {f"share_{tenant}": part / whole if whole else None for tenant, part in weighed.items()}
    return row
