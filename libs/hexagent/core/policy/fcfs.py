"""Per-call first come first served: what serving stacks do without knowing workflows."""

from hexagent.core.policy.order import Ages, IntArray


class Fcfs:
    projected = False

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        return ages.ready_us
