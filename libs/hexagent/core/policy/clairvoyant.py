"""The paper's rule told the future: how much better information would be worth, as far as the rule can use it.

R(c, t) = (projected finish - arrival + longest true path below) / final H, the stretch the workflow would end with
if nothing after this call waited. Output lengths, here and in placement, and speeds are the true ones.
"""

import numpy as np

from hexagent.core.estimate.oracle import Oracle
from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.units import PPM


class Clairvoyant:
    projected = True

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._ages: Ages | None = None  # of the plan under way, and what is known of its calls
        self._below_us = self._horizon_us = np.zeros(0, dtype=np.int64)

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        if ages is not self._ages:
            oracle, ids = self._oracle, [call.call_id for call in ages.calls]
            self._ages = ages
            self._below_us = np.array([oracle.below_us(call) for call in ids], dtype=np.int64)
            self._horizon_us = np.array([oracle.horizon_us(call.workflow_id) for call in ids], dtype=np.int64)
        return -((finish_us - ages.arrival_us + self._below_us) * PPM // self._horizon_us)
