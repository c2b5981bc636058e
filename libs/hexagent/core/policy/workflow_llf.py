"""Least laxity first (the paper's SGLang-LLF): the call with the least time to spare on its workflow's horizon.

laxity = (arrival + H) - now - remaining, where remaining is the predicted time, alone on the cluster, of the longest
revealed path that begins with the call; waiting never enters. A call is scored by its latest start, laxity + now: the
same order, and one that ranks of calls which started to wait at different times keep.
"""

import numpy as np

from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.units import LONGEST_US


class WorkflowLlf:
    projected = False

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        below_us = [min(call.workflow.horizon.below_us(call.index), LONGEST_US) for call in ages.calls]
        return ages.arrival_us + ages.horizon_us - np.array(below_us, dtype=np.int64)
