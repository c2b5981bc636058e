"""What HexAGenT's authors report (arXiv 2605.16637), and the experiments that stand beside it."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from hexagent.core.units import ceil_div
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.pooling import JUDGED, Pooled
from hexagent.sim.workloads.generators import GENERATORS
from hexagent.sim.workloads.trace import TraceOptions, read_trace

MODELS: Final = ("llama-3.1-70b", "qwen3-235b-a22b")
HETEROGENEOUS: Final = ("hetero-1", "hetero-2")
WORKLOADS: Final = ("sharegpt", "bfcl", "lats", "mixed")

# Mean and largest reduction of Req95 and Req99 against the strongest baseline, from the abstract.
MEAN: Final = {95: 0.201, 99: 0.330}
LARGEST: Final = {95: 0.450, 99: 0.805}

# Req at JUDGED percents by (model, workload) and policy, as two independent notes on the paper give them.
REPORTED: Final[Mapping[tuple[str, str], Mapping[str, tuple[float, float]]]] = {
    ("llama-3.1-70b", "sharegpt"): {"fcfs": (5.85, 7.43), "workflow-fcfs": (4.50, 6.22), "hexagent": (2.50, 2.60)},
    ("llama-3.1-70b", "bfcl"): {"fcfs": (13.81, 17.23), "workflow-fcfs": (7.23, 9.80), "hexagent": (6.21, 6.34)},
    ("qwen3-235b-a22b", "bfcl"): {"fcfs": (21.11, 26.89), "workflow-fcfs": (9.64, 11.67), "hexagent": (8.39, 8.57)},
    ("qwen3-235b-a22b", "mixed"): {"fcfs": (11.15, 15.84), "workflow-fcfs": (10.30, 15.01), "hexagent": (3.48, 3.94)},
}
COMPARED: Final = (("hexagent", "fcfs"), ("hexagent", "workflow-fcfs"), ("workflow-fcfs", "fcfs"))

FULL_POOL: Final = 5_000  # workflows a cell
STEADY_S: Final = 300.0
STEADY_LOADS: Final = (0.3, 0.6, 0.9, 1.2, 1.5)
TRACE_CALLS: Final = 2_000  # of a trace as many workflows are read as have so many calls, at least one
TRACE_CLUSTER: Final = "mixed-3"  # small, so that they are enough to make calls queue
TRACE_LOADS: Final = {"policy-only": 2.0, "full": 6.0}  # at which calls queue; load 1 counts nothing as cached


class Comparison(NamedTuple):
    """One policy's Req over another's, less 1, in the paper and here; both at JUDGED percents."""

    policy: str
    other: str
    reported: tuple[float, ...]
    here: tuple[float, ...]

    @property
    def differing(self) -> tuple[int, ...]:
        """Percents at which the sign is another."""
        return tuple(
            [p for p, one, two in zip(JUDGED, self.reported, self.here, strict=True) if (one < 0) != (two < 0)]
        )


def comparisons(pool: Pooled) -> list[Comparison]:
    """Beside each pair of policies that the paper reports for this model and workload."""
    reported = REPORTED.get((pool.cell.model, pool.cell.workload), {})
    made = []
    for policy, other in COMPARED if reported else ():
        ours, theirs = _as_published(policy), _as_published(other)
        if ours in pool.policies and theirs in pool.policies:
            in_paper = [one / two - 1 for one, two in zip(reported[policy], reported[other], strict=True)]
            here = [pool.req(ours, percent).value / pool.req(theirs, percent).value - 1 for percent in JUDGED]
            made.append(Comparison(policy, other, tuple(in_paper), tuple(here)))
    return made


def _as_published(policy: str) -> str:
    """A baseline with the dispatch the paper seems to have given it."""
    return policy if policy == "hexagent" else f"{policy}:least-loaded"


class Experiment(NamedTuple):
    """A cell with the seeds it is run with."""

    cell: Cell
    seeds: tuple[int, ...]


def experiments(world: str, profile: str, seeds: Sequence[int], pool: int, full: bool) -> list[Experiment]:
    """Bursts as in the paper on its heterogeneous clusters, with `seeds` or, from the first of them on, with as many as
    `pool` workflows a cell take; `full` adds the homogeneous cluster and what varies one axis, with `seeds`.
    """
    clusters = (*HETEROGENEOUS, "homogeneous") if full else HETEROGENEOUS
    main = [
        Experiment(Cell(model, cluster, workload, world, profile), _enough(workload, pool, seeds[0]) or tuple(seeds))
        for model in MODELS
        for cluster in clusters
        for workload in WORKLOADS
    ]
    return main + ([Experiment(cell, tuple(seeds)) for cell in _variants(world, profile)] if full else [])


def recorded(world: str, profile: str, seeds: Sequence[int], traces: Sequence[Path]) -> list[Experiment]:
    """The first workflows of each trace, in random arrivals at a load at which calls queue."""
    plain = Cell(MODELS[0], TRACE_CLUSTER, "", world, profile, TRACE_LOADS[world], "poisson")
    return [
        Experiment(plain._replace(workload=path.stem, trace=str(path), workflows=_first(path)), tuple(seeds))
        for path in traces
    ]


def _first(trace: Path) -> int:
    """Workflows of the trace that have TRACE_CALLS calls together."""
    calls = accumulate([len(script.items) for script in read_trace(trace, TraceOptions()).workflows])
    return max(sum(1 for until in calls if until <= TRACE_CALLS), 1)


def _enough(workload: str, pool: int, first: int) -> tuple[int, ...]:
    return tuple(range(first, first + ceil_div(pool, GENERATORS[workload].workflows)))


def _variants(world: str, profile: str) -> list[Cell]:
    """One axis at a time, on one cluster with one model."""
    cells = []
    for workload in WORKLOADS:
        plain = Cell(MODELS[0], HETEROGENEOUS[0], workload, world, profile)
        cells += [plain._replace(arrivals=arrivals) for arrivals in ("poisson", "gamma:2", "gamma:4")]
        cells += [plain._replace(noise=noise) for noise in (0.1, 0.3, 0.6)]
        cells += [plain._replace(link_gb_per_s=link) for link in (12.5, 50.0)]
        cells += [plain._replace(hardware="slower-stack")]
        steady = plain._replace(arrivals="poisson", duration_s=STEADY_S)
        cells += [steady._replace(load=load) for load in STEADY_LOADS]
    return cells
