"""Least laxity first (the paper's SGLang-LLF): the call with the least time to spare on its workflow's horizon.

laxity = (arrival + H) - now - remaining, where remaining is the predicted time, alone on the cluster, of the longest
revealed path through what has not ended of the call and the nodes below it; waiting never enters.
"""

import numpy as np

from hexagent.core.policy.order import Ages, IntArray


class WorkflowLlf:
    projected = False

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        # A waiting call has all of its own time before it.
        remaining_us = np.array([call.workflow.horizon.below_us(call.index) for call in ages.calls], dtype=np.int64)
        return ages.arrival_us + ages.horizon_us - ages.now_us - remaining_us
