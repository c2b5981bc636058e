"""The paper's rule (arXiv 2605.16637): the call whose workflow is relatively latest goes first.

R(c, t) = ((t - arrival) + Delta(c, t)) / H(t), with Delta the projected time until the call's stage finishes in the
simulated state and H the horizon of its workflow's revealed graph; the largest R is placed next.
"""

from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.units import PPM


class Hexagent:
    projected = True

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        # (t - a) + Delta is the projected finish seen from the workflow's arrival.
        return -((finish_us - ages.arrival_us) * PPM // ages.horizon_us)
