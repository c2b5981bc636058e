"""The paper's rule with what is behind a call, not revealed yet and cached: relatively latest first, for little work
sooner.

R(c, t) = ((t - arrival) + Delta(c, t) + T_down(c) + F) / (H(t) + F): when the workflow would end through this call, as
a multiple of its final horizon. T_down is the longest path that is revealed behind the call, so of the branches of a
declared plan those go first that the join waits for; F is what to count on of the horizon's growth to come
(`hexagent.core.estimate.remaining`). With prefix caches R is divided by sqrt(1 + T / `cheap_prefill_us`), with T the
time of the part of the prompt that no cache is believed to hold: H is the time without caches, so by R alone calls that
find theirs would wait behind much longer ones. T counts as `DEAR` times that time at most, so that long prompts stay in
the order of R among themselves and none waits for ever. Without caches R is divided by sqrt(max(1, T / usual)), usual
being twice the median T of what waits: long prompts, which hold an instance for as long as many short ones, go later.
Without any of these what is left is the paper's.
"""

from typing import Final

import numpy as np

from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.policy.profile import Profile
from hexagent.core.units import MILLI, PPM

DEAR: Final = 8  # times what counts as little to prefill; all beyond is much


class HexagentPlus:
    projected = True

    def __init__(self, profile: Profile) -> None:
        self._cheap_us = profile.cheap_prefill_us
        self._ages: Ages | None = None  # of the plan under way, and of its calls what does not depend on the finish
        self._since_us = self._divisor_us = np.zeros(0, dtype=np.int64)

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        if ages is not self._ages:
            self._ages, unrevealed_us = ages, ages.unrevealed_us()
            self._since_us = ages.arrival_us - ages.below_us - unrevealed_us
            self._divisor_us = ages.horizon_us + unrevealed_us
            if ages.prefill_us is not None:
                milli_of = dearness_milli if ages.cached else length_milli
                self._divisor_us = self._divisor_us * milli_of(ages.prefill_us, self._cheap_us) // MILLI
        return -((finish_us - self._since_us) * PPM // self._divisor_us)


def dearness_milli(prefill_us: IntArray, cheap_us: int) -> IntArray:
    """sqrt(1 + min(prefill / cheap, DEAR)) in thousandths, rounded down; exact on every machine for up to 1,000 s."""
    return _root_milli((np.minimum(prefill_us, DEAR * cheap_us) + cheap_us) * PPM // cheap_us)


def length_milli(prefill_us: IntArray, cheap_us: int) -> IntArray:
    """sqrt(max(1, prefill / usual)) in thousandths, rounded down; usual is twice the median, at least what is cheap."""
    middle = [(len(prefill_us) - 1) // 2, len(prefill_us) // 2]
    usual_us = max(int(np.partition(prefill_us, middle)[middle].sum()), cheap_us)
    return _root_milli(np.maximum(prefill_us * PPM // usual_us, PPM))


def _root_milli(ratio_ppm: IntArray) -> IntArray:
    milli: IntArray = np.sqrt(ratio_ppm).astype(np.int64)  # IEEE 754 rounds roots correctly
    return milli
