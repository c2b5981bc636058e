"""What a workflow's calls got from the cluster so far, as far as their outcomes have told."""

from hexagent.core.workflow.model import CallTimes


class Service:
    """Sums over the ended calls of one workflow, and the longest chain of them; microseconds of measured time."""

    __slots__ = ("path_us", "served_us", "waited_us")

    def __init__(self) -> None:
        self.path_us = 0  # most service along a chain of calls, each ready after the one before it had ended
        self.served_us = 0
        self.waited_us = 0

    def add(self, path_us: int, ready_us: int, times: CallTimes) -> None:
        """A call ended that became ready at `ready_us`, when `path_us` was the longest chain."""
        served_us = served(times)
        self.path_us = max(self.path_us, path_us + served_us)
        self.served_us += served_us
        self.waited_us += max(times.end_us - ready_us - served_us, 0)


def served(times: CallTimes) -> int:
    """Time in prefill and decode; neither queues nor the KV's way between instances count."""
    prefill_us = times.prefill_end_us - times.prefill_start_us
    decode_us = times.end_us - max(times.prefill_end_us, times.transfer_end_us)
    return max(prefill_us, 0) + max(decode_us, 0)
