"""A cell judged over seeds: Req of each policy, and reductions against the strongest baseline."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from hexagent.sim.experiment.bootstrap import FloatArray, Interval, interval, required_scales, resampled_scales
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.policies import CLAIRVOYANT, THE_PAPERS, predicts
from hexagent.sim.experiment.run import Outcome

PERCENTS: Final = (50, 90, 95, 99, 100)
JUDGED: Final = (95, 99)  # what the paper states reductions for
STATED: Final = (*JUDGED, 100)  # what they are stated for here
GAP_LEAST: Final = 0.02  # mean reduction under the clairvoyant below which there is no gap to close
UNDERLOADED: Final = 1.1  # a cell is underloaded where every policy needs at most so many times the clairvoyant's Req


class Pooled(NamedTuple):
    """The stretches of one cell's workflows under each policy, over all seeds that every policy has run."""

    cell: Cell
    seeds: tuple[int, ...]
    policies: tuple[str, ...]
    stretches: FloatArray  # (policies, workflows), a workflow in one column
    scales: FloatArray  # Req, (policies, PERCENTS)
    resampled: FloatArray  # (resamples, policies, PERCENTS)

    def req(self, policy: str, percent: int) -> Interval:
        at = self.policies.index(policy), PERCENTS.index(percent)
        return interval(float(self.scales[at]), self.resampled[:, at[0], at[1]])


class Reduction(NamedTuple):
    """How much less a policy needs than the strongest of some baselines: 0.2 is 20 % less, negative is more."""

    baseline: str
    share: Interval
    resampled: FloatArray  # the share in each resample


def pooled(cell: Cell, outcomes: Mapping[str, Sequence[Outcome]]) -> Pooled:
    """Of each policy's outcomes in this cell, one a seed."""
    by_policy = {
        policy: {(o.run.seed, row.workflow): row.stretch for o in several for row in o.rows}
        for policy, several in outcomes.items()
    }
    first, *others = by_policy.values()
    shared = sorted([key for key in first if all(key in other for other in others)])
    stretches = np.array([[known[key] for key in shared] for known in by_policy.values()])
    return Pooled(
        cell,
        tuple(sorted({seed for seed, _ in shared})),
        tuple(by_policy),
        stretches,
        required_scales(stretches, PERCENTS),
        resampled_scales(stretches, PERCENTS),
    )


def reduction(pool: Pooled, policy: str, baselines: Sequence[str], percent: int) -> Reduction:
    """Against the baseline with the least Req in this cell at this percent; the interval keeps that baseline."""
    column = PERCENTS.index(percent)
    ours = pool.policies.index(policy)
    strongest = min([pool.policies.index(name) for name in baselines], key=lambda row: pool.scales[row, column])

    def share(scales: FloatArray) -> FloatArray:
        return 1 - scales[..., ours, column] / scales[..., strongest, column]

    resampled = share(pool.resampled)
    return Reduction(pool.policies[strongest], interval(float(share(pool.scales)), resampled), resampled)


def mean_share(reductions: Sequence[Reduction]) -> Interval:
    """Of several cells. Cells of equal size are resampled alike, as the same workflows on two clusters should be."""
    value = sum(reduced.share.value for reduced in reductions) / len(reductions)
    return interval(value, np.mean([reduced.resampled for reduced in reductions], axis=0))


def gap_closed(pools: Sequence[Pooled], policy: str, percent: int) -> Interval | None:
    """The share of what better information is worth that the policy gets.

    That is its reduction of Req from `hexagent`'s over the clairvoyant's, each the mean of the cells: a cell counts by
    what there is to gain in it. None where that is less than GAP_LEAST in the mean.
    """
    gained, whole = ([reduction(pool, name, [THE_PAPERS], percent) for pool in pools] for name in (policy, CLAIRVOYANT))
    possible = mean_share(whole).value
    if not possible >= GAP_LEAST:  # nor where it is not a number
        return None
    ours, best = (sum(reduced.resampled for reduced in several) for several in (gained, whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(mean_share(gained).value / possible, np.asarray(ours / best))


def underloaded(pool: Pooled) -> bool | None:
    """Whether there is nothing to win: every policy is near the clairvoyant. None if that was not run.

    Placement by count is slow on mixed GPUs without any load, so only those that predict finishes are looked at.
    """
    if CLAIRVOYANT not in pool.policies:
        return None
    column = PERCENTS.index(95)
    limit = UNDERLOADED * pool.scales[pool.policies.index(CLAIRVOYANT), column]
    rows = [row for row, name in enumerate(pool.policies) if predicts(name)]
    return bool((pool.scales[rows, column] <= limit).all())
