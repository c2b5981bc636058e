"""Calls in the order their workflows arrived (the paper's SGLang-FCFS baseline)."""

from hexagent.core.policy.order import Ages, IntArray


class WorkflowFcfs:
    projected = False

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        return ages.arrival_us
