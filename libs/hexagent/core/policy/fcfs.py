"""Per-call first come first served: what serving stacks do without knowing workflows."""

from hexagent.core.policy.order import IntArray, Waiting


class Fcfs:
    projected = False

    def scores(self, waiting: Waiting, now_us: int, finish_us: IntArray) -> IntArray:
        return waiting.ready_us
