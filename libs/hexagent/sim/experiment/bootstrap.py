"""Intervals of Req by the paired bootstrap over workflows."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hexagent.core.units import ceil_div

FloatArray = npt.NDArray[np.float64]

RESAMPLES: Final = 1_000
CONFIDENCE: Final = 0.95
_SEED: Final = 20_260_516
_TOGETHER: Final = 1 << 21  # values resampled at a time


class Interval(NamedTuple):
    """An estimate with the middle 95 % of its resampled values."""

    value: float
    low: float
    high: float


def required_scales(stretches: FloatArray, percents: Sequence[int]) -> FloatArray:
    """Req of each percent over the last axis, as `metrics.required_scale` defines it: shape (..., percents)."""
    count = stretches.shape[-1]
    ranks = [max(ceil_div(percent * count, 100), 1) - 1 for percent in percents]
    return np.partition(stretches, sorted(set(ranks)), axis=-1)[..., ranks]


def resampled_scales(stretches: FloatArray, percents: Sequence[int], resamples: int = RESAMPLES) -> FloatArray:
    """Req of workflows drawn with replacement, shape (resamples, policies, percents).

    `stretches` is (policies, workflows) with a workflow in the same column under every policy. A resample takes the
    same workflows of all of them, so that what makes a workflow late everywhere cancels out of comparisons. The seed is
    fixed: the same stretches give the same values.
    """
    policies, count = stretches.shape
    rng = np.random.Generator(np.random.PCG64(_SEED))
    step = max(1, _TOGETHER // count)
    scales = np.empty((resamples, policies, len(percents)))
    for start in range(0, resamples, step):
        columns = rng.integers(0, count, (min(step, resamples - start), count))
        for policy in range(policies):
            scales[start : start + step, policy] = required_scales(stretches[policy][columns], percents)
    return scales


def resampled_means(values: FloatArray, resamples: int = RESAMPLES) -> FloatArray:
    """Means of as many values drawn with replacement, shape (resamples,); the seed is fixed as well."""
    rng = np.random.Generator(np.random.PCG64(_SEED))
    return np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])


def interval(value: float, resampled: FloatArray) -> Interval:
    """The value between the percentiles that hold CONFIDENCE of its resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail), method="nearest")
    return Interval(value, float(low), float(high))
