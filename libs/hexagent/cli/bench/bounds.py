"""`hexagent bench bounds`: on small cells, how near the lower bound, an offline search and two policies are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hexagent.cli.failures import usage
from hexagent.cli.options import words
from hexagent.cli.report import Row, error_console
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.units import PPM
from hexagent.sim.bounds.lower import lower_bound
from hexagent.sim.bounds.search import PERCENT, WORKFLOWS_MAX, Search
from hexagent.sim.clusters import named_cluster
from hexagent.sim.metrics import required_scale
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World

POLICIES: Final = ("clairvoyant", "hexagent")


class BoundsOptions(NamedTuple):
    cells: tuple[tuple[str, int], ...]  # workload, workflows
    cluster: str
    rate_per_s: float
    seeds: tuple[int, ...]
    noise: float  # standard deviation of the log of a step's true noise
    tries: int  # schedules of each cell


def parsed_cells(text: str) -> tuple[tuple[str, int], ...]:
    """Workloads with their numbers of workflows, as in `bfcl:10,lats:6`."""
    cells = []
    for part in words(text, "cells"):
        name, _, count = part.partition(":")
        if not count.isdecimal() or not 1 <= int(count) <= WORKFLOWS_MAX:
            raise usage("cells", f"{part!r} must be WORKLOAD:N with N from 1 to {WORKFLOWS_MAX}")
        cells.append((name, int(count)))
    return tuple(cells)


def bounds_rows(options: BoundsOptions) -> list[Row]:
    """A row a cell and seed, of Req_95: with so few workflows the largest stretch."""
    cluster = named_cluster(options.cluster)._replace(noise_ppm=round(options.noise * PPM))
    workloads = [
        (generate(name, Options(workflows=workflows, rate_per_s=options.rate_per_s, seed=seed)), seed)
        for name, workflows in options.cells
        for seed in options.seeds
    ]
    with _progress("searching schedules", len(workloads) * options.tries) as advance:
        return [_row(options, cluster, workload, seed, advance) for workload, seed in workloads]


def _row(
    options: BoundsOptions, cluster: ClusterSpec, workload: Workload, seed: int, advance: Callable[[], None]
) -> Row:
    bound = lower_bound(cluster, workload, seed)
    reached = {policy: _required(cluster, workload, policy, seed) for policy in POLICIES}
    found = Search(cluster, workload, seed).best(options.tries, advance)
    return {
        "cell": f"{workload.name} x {len(workload.workflows)}",
        "cluster": options.cluster,
        "seed": seed,
        "noise": options.noise,
        "lower_bound": bound.req95,
        "offline_best": min(found, *reached.values()),
        **reached,
    }


def _required(cluster: ClusterSpec, workload: Workload, policy: str, seed: int) -> float:
    return required_scale([row.stretch for row in World(cluster, workload, policy, seed).run().rows], PERCENT)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr; the callable moves it on by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
