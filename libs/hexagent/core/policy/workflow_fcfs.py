"""Calls in the order their workflows arrived (the paper's SGLang-FCFS baseline)."""

from hexagent.core.policy.order import IntArray, Waiting


class WorkflowFcfs:
    projected = False

    def scores(self, waiting: Waiting, now_us: int, finish_us: IntArray) -> IntArray:
        return waiting.arrival_us
