"""The paper's rule with what is not revealed yet and what is cached: relatively latest first, for little work sooner.

R(c, t) = ((t - arrival) + Delta(c, t) + F) / (H(t) + F), with F the length by which the horizon is predicted to grow
where that prediction deserves trust (`hexagent.core.estimate.remaining`), and 0 elsewhere. With prefix caches R is
divided by sqrt(1 + T / `cheap_prefill_us`), with T the time of the part of the prompt that no cache is believed to
hold: H is the time without caches, so by R alone calls that find theirs would wait behind much longer ones. Lateness
grows without limit and the divisor does not, so none waits for ever. Without either what is left is the paper's.
"""

import numpy as np

from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.policy.profile import Profile
from hexagent.core.units import MILLI, PPM


class HexagentPlus:
    projected = True

    def __init__(self, profile: Profile) -> None:
        self._cheap_us = profile.cheap_prefill_us
        self._ages: Ages | None = None  # of the plan under way, and of its calls F and what R is divided by
        self._unrevealed_us = np.zeros(0, dtype=np.int64)
        self._divisor_us = np.zeros(0, dtype=np.int64)

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        if ages is not self._ages:
            remaining = [call.workflow.remaining() for call in ages.calls]
            self._ages = ages
            self._unrevealed_us = np.array([r.unrevealed_us * r.trusted for r in remaining], dtype=np.int64)
            self._divisor_us = ages.horizon_us + self._unrevealed_us
            if ages.prefill_us is not None:
                self._divisor_us = self._divisor_us * dearness_milli(ages.prefill_us, self._cheap_us) // MILLI
        late_us = finish_us - ages.arrival_us + self._unrevealed_us
        return -(late_us * PPM // self._divisor_us)


def dearness_milli(prefill_us: IntArray, cheap_us: int) -> IntArray:
    """sqrt(1 + prefill / cheap) in thousandths, rounded down; exact on every machine for up to 1,000 s."""
    ratio_ppm = (prefill_us + cheap_us) * PPM // cheap_us
    milli: IntArray = np.sqrt(ratio_ppm).astype(np.int64)  # IEEE 754 rounds roots correctly
    return milli
