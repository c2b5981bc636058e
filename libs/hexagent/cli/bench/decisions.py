"""`hexagent bench decisions`: CPU time of a decision over the size of the cluster and the length of the queue."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from matplotlib.figure import Figure

from hexagent.cli.bench.held_queue import HeldQueue
from hexagent.cli.bench.simulator import copies
from hexagent.cli.failures import usage
from hexagent.cli.report import Row
from hexagent.cli.simulate.pictures import save
from hexagent.core.instance.spec import ClusterSpec
from hexagent.runtime.app import collect_rarely
from hexagent.sim.clusters import named_cluster
from hexagent.sim.experiment.cell import WORLDS
from hexagent.sim.metrics import required_scale
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import WorkItem
from hexagent.sim.workloads.options import Options

CLUSTER: Final = "hetero-2"  # of 20 instances; 10 are every second one, more are copies
WORKLOAD: Final = "mixed"  # whose calls' sizes the waiting calls have
INSTANCES_MAX: Final = 10_000
READY_MAX: Final = 100_000
NS_PER_MS: Final = 1_000_000


class DecisionOptions(NamedTuple):
    policies: tuple[str, ...]
    worlds: tuple[str, ...]  # keys of WORLDS
    instances: tuple[int, ...]
    ready_calls: tuple[int, ...]
    decisions: int  # timed ones of a case
    seed: int


class Case(NamedTuple):
    policy: str
    world: str
    instances: int
    ready_calls: int


def cases(options: DecisionOptions) -> list[Case]:
    """All combinations with one waiting call for ten instances at least and a hundred for one at most.

    Names that nobody knows are refused here, before anything is timed.
    """
    for ready_calls in options.ready_calls:
        if not 1 <= ready_calls <= READY_MAX:
            raise usage("ready-calls", f"each must be 1 to {READY_MAX:,}; got {ready_calls}")
    for instances in options.instances:
        sized(instances)
    for world in options.worlds:
        if world not in WORLDS:
            raise usage("worlds", f"no world {world!r}; known: {', '.join(WORLDS)}")
    for policy in options.policies:
        HeldQueue(sized(10), policy, items(options.seed), 1)
    every = product(options.policies, options.worlds, options.instances, options.ready_calls)
    return [
        case for case in map(Case._make, every) if case.instances <= 10 * case.ready_calls <= 1_000 * case.instances
    ]


def items(seed: int) -> list[WorkItem]:
    return [item for workflow in generate(WORKLOAD, Options(seed=seed)).workflows for item in workflow.items]


def sized(instances: int, world: str = "policy-only") -> ClusterSpec:
    """A cluster of so many instances, half of them for prefill: 10, or a multiple of 20."""
    cluster = named_cluster(CLUSTER, prefix_cache=WORLDS[world])
    size = len(cluster.instances)
    if 2 * instances == size:
        return cluster._replace(instances=cluster.instances[::2])
    if instances % size or not size <= instances <= INSTANCES_MAX:
        raise usage(
            "instances", f"each must be {size // 2}, or a multiple of {size} up to {INSTANCES_MAX:,}; got {instances}"
        )
    return copies(cluster, instances // size)


def decision_rows(options: DecisionOptions, say: Callable[[str], None]) -> list[Row]:
    """A row a case."""
    rows: list[Row] = []
    sizes = items(options.seed)
    for case in cases(options):
        times_ns = _timed_ns(case, sizes, options.decisions)
        p50_ms, p99_ms = [required_scale(times_ns, percent) / NS_PER_MS for percent in (50, 99)]
        rows.append({**case._asdict(), "p50_ms": p50_ms, "p99_ms": p99_ms})
        size = f"{case.instances} instances, {case.ready_calls} calls"
        say(f"{case.policy}, {case.world} world, {size}: {p50_ms:.3f} ms, 99 % {p99_ms:.3f}")
    return rows


def _timed_ns(case: Case, sizes: Sequence[WorkItem], decisions: int) -> list[int]:
    """As many decisions as there are prefill instances are made before the first one is timed. Memory is looked after
    as in the services, and the cases before are gone."""
    collect_rarely()
    queue = HeldQueue(sized(case.instances, case.world), case.policy, sizes, case.ready_calls)
    queue.decide(case.instances // 2)
    return queue.decide(decisions)


def draw(rows: Sequence[Row], path: Path) -> None:
    """How decisions grow with the queue: a panel a policy and world, a line a size of the cluster; 99 % dashed."""
    by_policy: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        by_policy.setdefault(f"{row['policy']}, {row['world']} world", {}).setdefault(
            int(str(row["instances"])), []
        ).append(row)
    figure = Figure(figsize=(3.4 * len(by_policy), 3.2), layout="constrained")
    panels = figure.subplots(1, len(by_policy), squeeze=False, sharey=True)[0]
    for panel, (policy, by_instances) in zip(panels, by_policy.items(), strict=True):
        for number, (instances, several) in enumerate(by_instances.items()):
            for column, line in (("p50_ms", "-"), ("p99_ms", "--")):
                style: dict[str, Any] = {"linestyle": line, "marker": ".", "color": f"C{number}"}
                label = f"{instances:,} instances" if line == "-" else None
                panel.loglog([r["ready_calls"] for r in several], [r[column] for r in several], label=label, **style)
        panel.set_title(policy, fontsize=8)
        panel.set_xlabel("ready calls", fontsize=8)
        panel.grid(color="#eeeeee")
        panel.tick_params(labelsize=7)
    panels[0].set_ylabel("CPU ms a decision; dashed: 99 %", fontsize=8)
    panels[0].legend(fontsize=7, frameon=False)
    save(figure, path)
