"""The paper's rule with what is not revealed yet: the call whose workflow will be relatively latest goes first.

R(c, t) = ((t - arrival) + Delta(c, t) + F) / (H(t) + F), with F the length by which the horizon is predicted to grow
where that prediction deserves trust (`hexagent.core.estimate.remaining`), and 0 elsewhere, which leaves the paper's.
"""

import numpy as np

from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.units import PPM


class HexagentPlus:
    projected = True

    def __init__(self) -> None:
        self._ages: Ages | None = None  # of the plan under way, and F of its calls
        self._unrevealed_us = np.zeros(0, dtype=np.int64)

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        if ages is not self._ages:
            remaining = [call.workflow.remaining() for call in ages.calls]
            self._ages = ages
            self._unrevealed_us = np.array([r.unrevealed_us * r.trusted for r in remaining], dtype=np.int64)
        late_us = finish_us - ages.arrival_us + self._unrevealed_us
        return -(late_us * PPM // (ages.horizon_us + self._unrevealed_us))
