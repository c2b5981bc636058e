"""A certified lower bound on Req_p of any schedule of a workload on a cluster.

Claim: no schedule, clairvoyant ones included, on the engines as they truly are, has p % of the workflows timely at a
scale below `req_p`. Each step leaves something out that costs a schedule time, and adds nothing:

1. A call's stages take at least their time on the fastest true instance (hidden factor, least noise), in the most
   efficient batch, with nothing in the way; control latencies are zero. Longest paths of these times say when each
   call can start at the earliest and, for a scale alpha, must have ended at the latest.
2. Where some p % of the workflows are timely at alpha, the work of their calls that can only run between s and t is
   done between s and t. The instances together do at most (t - s) * sum of their greatest rates, for any weighing of
   tokens (or decoded tokens) against attention pairs (contexts read). Each phase counts for itself.
3. Which workflows are timely is chosen anew for each phase, weighing and interval, in the schedule's favour: all but
   the permitted number of misses, the ones with the most work left out; those whose longest path alone is too long
   are among the misses.

If for one interval the work left is more than can be done, alpha is refuted, and so is every smaller one, for who
meets a smaller scale meets this one. The bound is the largest refuted scale that bisection finds.

Worlds covered: where no instance reuses prefixes, roles are fixed unless `fixed_roles` is False: prefill on prefill
instances, decode on decode ones. Where one does, or roles are not fixed, every instance may run either phase at any
time (aggregated, append-prefill, flips for free). With reuse, any KV may be pulled from anywhere, and only prompt
tokens that one workflow has to itself are counted, once. Attempts that are lost or evicted only add work. Not covered:
faults that change speeds, and engines that decode several tokens a step.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.units import ceil_div
from hexagent.sim.bounds.cell import Cell, Load, cell_of
from hexagent.sim.bounds.engine import FloatArray
from hexagent.sim.conditions import CONDITIONS, Conditions
from hexagent.sim.metrics import PERCENTS
from hexagent.sim.workloads.model import Workload

STARTS: Final = 12  # interval begins tried
ENDS: Final = 48  # interval ends tried for each
PRECISION: Final = 1.002  # of the bisection, a ratio
SCALE_MAX: Final = 1e6
TOLERANCE: Final = 1e-6  # of sums in floating point


class LowerBound(NamedTuple):
    """Least SLO scales at which 50, 90... % of the workflows can be timely; 0 without workflows."""

    req50: float
    req90: float
    req95: float
    req99: float
    req100: float


def lower_bound(
    cluster: ClusterSpec,
    workload: Workload,
    seed: int,
    conditions: Conditions = CONDITIONS,
    fixed_roles: bool = True,
) -> LowerBound:
    """The bound of `World` with these arguments and any policy; the cluster serves one model.

    `fixed_roles` is to be that of the policy: see `registry.keeps_roles`.
    """
    if not workload.workflows:
        return LowerBound(*[0.0] * len(PERCENTS))
    cell = cell_of(cluster._replace(seed=seed), workload, conditions, fixed_roles)
    return LowerBound(*[_least_scale(cell, percent) for percent in PERCENTS])


def _least_scale(cell: Cell, percent: int) -> float:
    """The largest scale refuted for `percent`, up to the precision of the bisection."""
    count = len(cell.solo_us)
    needed = max(ceil_div(percent * count, 100), 1)
    low = float(np.sort(cell.path_us / cell.solo_us)[needed - 1])
    high = max(2 * low, 1e-3)
    while high < SCALE_MAX and _refuted(cell, high, count - needed):
        low, high = high, 2 * high
    while high > low * PRECISION:
        middle = (low * high) ** 0.5
        if _refuted(cell, middle, count - needed):
            low = middle
        else:
            high = middle
    return low


def _refuted(cell: Cell, scale: float, misses: int) -> bool:
    hopeless = cell.path_us > scale * cell.solo_us
    misses -= int(hopeless.sum())
    return misses < 0 or any(_overfull(load, cell, scale, hopeless, misses) for load in cell.loads)


def _overfull(load: Load, cell: Cell, scale: float, hopeless: npt.NDArray[np.bool_], misses: int) -> bool:
    """Whether in some interval more must be done than can be, though the `misses` largest loads are left out."""
    kept = ~hopeless[load.workflow]
    if not kept.any():
        return False
    workflow, release_us, work = load.workflow[kept], load.release_us[kept], load.work[kept]
    latest_us = load.anchor_us[kept] + scale * cell.solo_us[workflow]
    starts, ends = _quantiles(release_us, STARTS), _quantiles(latest_us, ENDS)
    place = workflow * len(ends) + np.searchsorted(ends, latest_us)
    size = len(cell.solo_us) * len(ends)
    for start in starts:
        inside = release_us >= start
        due = np.bincount(place[inside], work[inside], size).reshape(-1, len(ends)).cumsum(axis=1)
        total = due.sum(axis=0)
        if misses:
            total -= np.partition(due, len(due) - misses, axis=0)[len(due) - misses :].sum(axis=0)
        if (total > load.rate * np.maximum(ends - start, 0) * (1 + TOLERANCE) + TOLERANCE).any():
            return True
    return False


def _quantiles(values: FloatArray, count: int) -> FloatArray:
    ordered = np.unique(values)
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(np.int64))]
