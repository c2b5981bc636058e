"""`hexagent bench fidelity`: the same workload live on emulated engines and in the simulator, side by side.

Both drivers run the same tracker, scheduler, estimator and instance cores on the same cluster, seed and hidden truth.
What differs is everything around them: processes, gRPC, JetStream, timers and a client program on one side, a heap and
seven latencies on the other. That both give the same completion times is self-consistency of two drivers, not evidence
about real engines.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hexagent.cli.bench.latency import measured_latency
from hexagent.cli.failures import options_named, usage
from hexagent.cli.report import Row, console, error_console, say, table_of
from hexagent.cli.run import RunOptions, on_own_stack
from hexagent.cli.runner import RunProgress
from hexagent.cli.stack import SCHEDULER, LocalStack, StackOptions
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.units import US_PER_MS, US_PER_S
from hexagent.core.workflow.attribution import Spent, spent_on, timelines_of
from hexagent.runtime.journal import read_journal
from hexagent.sim.fleet import Latency
from hexagent.sim.metrics import WorkflowRow, required_scale
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import SNAPSHOT_PERIOD_US, World

LIVE: Final = "live"
SIM: Final = "sim"
MEAN_WITHIN: Final = 0.03  # how far the simulated mean and 99th percentile may be from the live ones
P99_WITHIN: Final = 0.08
PICTURES: Final = (".png", ".svg")
TIME_SCALE_MAX: Final = 2.0  # beyond it the control plane's own time, scaled as well, drowns the engines'


class Size(NamedTuple):
    workflows: int
    rate_per_s: float


# On the demo cluster calls queue at these rates, while two cores still emulate it without lag.
SIZES: Final = {"bfcl": Size(150, 5.0), "lats": Size(24, 0.3)}


class FidelityOptions(NamedTuple):
    workloads: tuple[str, ...] = tuple(SIZES)
    policies: tuple[str, ...] = ("fcfs", "hexagent")
    cluster: str = "demo"
    workflows: int = 0  # of each workload; 0: as in `SIZES`
    seed: int = 1
    time_scale: float = 1.0
    prefix_cache: bool = False


class Driven(NamedTuple):
    """A workload run by one of the drivers."""

    rows: tuple[WorkflowRow, ...]
    spent: Mapping[str, Spent]  # by workflow

    @property
    def jct_us(self) -> list[int]:
        """Of the workflows that completed, ascending."""
        return sorted(row.jct_us for row in self.rows if row.completed)


class Pair(NamedTuple):
    """The same workload under the same policy by both drivers."""

    workload: str
    policy: str
    latency: Latency  # as measured live and given to the simulator
    live: Driven
    sim: Driven


async def run_fidelity(options: FidelityOptions) -> list[Pair]:
    """Every workload under every policy, live and then simulated."""
    if not 0 < options.time_scale <= TIME_SCALE_MAX:
        raise usage("time_scale", f"must be above 0 and at most {TIME_SCALE_MAX:g}; got {options.time_scale:g}")
    workloads = [_workload(name, options) for name in options.workloads]
    stacks = {policy: _stack(options, policy) for policy in options.policies}
    pairs: list[Pair] = []
    for workload in workloads:
        for policy, stack in stacks.items():
            pairs.append(await _pair(workload, policy, stack))
            say(verdict(pairs[-1]))
    return pairs


def _workload(name: str, options: FidelityOptions) -> Workload:
    if name not in SIZES:
        raise usage("workloads", f"unknown workload {name!r}; known: {', '.join(SIZES)}")
    size = SIZES[name]
    return generate(
        name,
        Options(workflows=options.workflows or size.workflows, rate_per_s=size.rate_per_s, seed=options.seed),
    )


def _stack(options: FidelityOptions, policy: str) -> StackOptions:
    """Checked before anything runs."""
    stack = StackOptions(
        cluster=options.cluster,
        policy=policy,
        time_scale=options.time_scale,
        seed=options.seed,
        prefix_cache=options.prefix_cache,
    )
    with options_named({"policy": "policies"}):
        LocalStack(stack, say)
    return stack


async def _pair(workload: Workload, policy: str, stack: StackOptions) -> Pair:
    progress = RunProgress(f"{workload.name}, {policy}, live", error_console())
    with tempfile.TemporaryDirectory(prefix="hexagent-") as folder:
        run = await on_own_stack(RunOptions(stack._replace(data_dir=Path(folder))), workload, progress)
        journals = sorted((Path(folder) / SCHEDULER / "journal").iterdir())  # more than one after a restart
        latency = measured_latency(chain.from_iterable(map(read_journal, journals)), run.trips)
    for error in run.errors:
        say(error)
    config = LocalStack(stack, say).config
    sim = simulated(config.spec, workload, policy, latency, config.time_scale)
    return Pair(workload.name, policy, latency, Driven(run.rows, run.spent), sim)


def simulated(cluster: ClusterSpec, workload: Workload, policy: str, latency: Latency, time_scale: float) -> Driven:
    """What the simulator makes of it; reports and snapshots are periodic in wall time."""
    world = World(
        cluster, workload, policy, cluster.seed, latency, snapshot_period_us=round(SNAPSHOT_PERIOD_US * time_scale)
    )
    rows = world.run().rows
    graphs = {row.workflow: world.tracker.history.record(row.workflow).graph for row in rows}
    return Driven(rows, {row.workflow: spent_on(timelines_of(graphs[row.workflow]), row.jct_us) for row in rows})


def completed(pairs: Sequence[Pair]) -> bool:
    return all(row.completed for pair in pairs for driven in (pair.live, pair.sim) for row in driven.rows)


# --- figures --------------------------------------------------------------------------------------------------
def differences(pair: Pair) -> tuple[float, float]:
    """How far the simulated mean and 99th percentile of completion times are from the live ones, as shares."""
    live, sim = pair.live.jct_us, pair.sim.jct_us
    if not live or not sim:
        return math.nan, math.nan
    return mean(sim) / mean(live) - 1, required_scale(sim, 99) / required_scale(live, 99) - 1


def verdict(pair: Pair) -> str:
    mean_diff, p99_diff = differences(pair)
    within = abs(mean_diff) <= MEAN_WITHIN and abs(p99_diff) <= P99_WITHIN
    return (
        f"{pair.workload}, {pair.policy}: simulated completion times differ from live ones by {mean_diff:+.1%} in the"
        f" mean and {p99_diff:+.1%} at 99 %: {'within' if within else 'NOT within'} {MEAN_WITHIN:.0%} and"
        f" {P99_WITHIN:.0%}"
    )


def fidelity_rows(pairs: Sequence[Pair]) -> list[Row]:
    """Two rows a pair."""
    return [_row(pair, driver) for pair in pairs for driver in (LIVE, SIM)]


def _row(pair: Pair, driver: str) -> Row:
    driven = pair.live if driver == LIVE else pair.sim
    jct_us = driven.jct_us
    mean_diff, p99_diff = differences(pair)
    spent = reduce(Spent.plus, driven.spent.values(), Spent())
    count = max(len(driven.rows), 1)
    return {
        "workload": pair.workload,
        "policy": pair.policy,
        "driver": driver,
        "workflows": len(driven.rows),
        "completed": len(jct_us),
        "calls": sum(row.calls for row in driven.rows),
        "mean_jct_s": mean(jct_us) / US_PER_S if jct_us else None,
        "p50_jct_s": required_scale(jct_us, 50) / US_PER_S,
        "p99_jct_s": required_scale(jct_us, 99) / US_PER_S,
        "mean_diff_pct": 100 * mean_diff if driver == SIM else None,
        "p99_diff_pct": 100 * p99_diff if driver == SIM else None,
        **{f"{name.removesuffix('_us')}_s": us / count / US_PER_S for name, us in spent._asdict().items()},
        **{f"{name.removesuffix('_us')}_latency_ms": us / US_PER_MS for name, us in pair.latency._asdict().items()},
    }


_TIMES: Final = ("mean_jct_s", "p50_jct_s", "p99_jct_s", "mean_diff_pct", "p99_diff_pct")
_PARTS: Final = tuple(f"{name.removesuffix('_us')}_s" for name in Spent._fields)


def show(rows: Sequence[Row]) -> None:
    """Tables of a terminal's width."""
    for title, names in (
        ("Completion times by driver", _TIMES),
        ("What workflows spent them on, mean seconds", _PARTS),
    ):
        shown = [
            {
                "run": f"{row['workload']} {row['policy']} {row['driver']}",
                **{name.removeprefix("kv_").removesuffix("_s"): row[name] for name in names},
            }
            for row in rows
        ]
        console().print(table_of(title, shown))


def draw(pairs: Sequence[Pair], path: Path) -> None:
    """Distributions of completion times: one panel a workload and policy, one line a driver."""
    figure = Figure(figsize=(4.2 * len(pairs), 3.4), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for panel, pair in zip(panels, pairs, strict=True):
        for driver, driven, style in ((LIVE, pair.live, "-"), (SIM, pair.sim, "--")):
            jct_s = np.array(driven.jct_us) / US_PER_S
            panel.step(jct_s, np.arange(1, len(jct_s) + 1) / max(len(jct_s), 1), style, where="post", label=driver)
        panel.set(title=f"{pair.workload}, {pair.policy}", xlabel="completion time, s", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of workflows")
    panels[0].legend()
    figure.savefig(path)
