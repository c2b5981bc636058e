"""KV on its way out of an instance: one queue in order of request, a few transfers at a time."""

from collections import deque
from heapq import heappop, heappush
from typing import Final

from hexagent.core.instance.call import Call, Phase
from hexagent.core.instance.io import SendKv
from hexagent.core.instance.noise import TRANSFER, Truth
from hexagent.core.instance.spec import EngineProfile, InstanceSpec
from hexagent.core.units import NEVER_US, PPM, US_PER_S, ceil_div, scale_ppm

# With pipelined transfer KV of finished layers and chunks moves while prefill computes; this part, the last
# layers of the last chunk, is left to move after it.
PIPELINED_TAIL_PPM: Final = 50_000


class Sender:
    """Transfers of one instance; each runs at the slower of its two ends after the longer of their set-ups, both of
    which the truth bends."""

    __slots__ = (
        "_bytes_per_token",
        "_link_ppm",
        "_profile",
        "_running",
        "_spec",
        "_started",
        "_tail_ppm",
        "_truth",
        "due_us",
        "queue",
    )

    def __init__(self, spec: InstanceSpec, profile: EngineProfile, kv_bytes_per_token: int, truth: Truth) -> None:
        self._spec = spec
        self._profile = profile
        self._truth = truth
        self._bytes_per_token = kv_bytes_per_token
        self._tail_ppm = PIPELINED_TAIL_PPM if profile.pipelined_transfer else PPM
        self._running: list[tuple[int, int, int, Call]] = []  # (end, order of start, start, call)
        self._started = 0
        self._link_ppm: dict[str, int] = {}  # what `Truth.link_ppm` has said, by the other end
        self.queue: deque[Call] = deque()  # transfers that have not begun
        self.due_us = NEVER_US  # the next of those that have ends

    def enqueue(self, call: Call) -> None:
        self.queue.append(call)

    def remove(self, call: Call) -> None:
        """Forget a transfer that has not begun."""
        self.queue.remove(call)

    def start(self, now_us: int) -> None:
        """Begin as many waiting transfers as may run at a time."""
        while self.queue and len(self._running) < self._profile.send_concurrency:
            call = self.queue.popleft()
            call.phase = Phase.SENDING
            assert call.send is not None
            end_us = now_us + self._duration_us(call, call.send)
            self._started += 1
            heappush(self._running, (end_us, self._started, now_us, call))
            self.due_us = self._running[0][0]

    def finish(self) -> tuple[Call, int]:
        """The transfer that ends first, out of the running ones, and when it began."""
        _, _, start_us, call = heappop(self._running)
        self.due_us = self._running[0][0] if self._running else NEVER_US
        return call, start_us

    def kv_bytes(self, call: Call) -> int:
        return call.work.prompt_tokens * self._bytes_per_token

    def _duration_us(self, call: Call, send: SendKv) -> int:
        link, truth = self._spec.link, self._truth
        rate = min(link.bytes_per_s, send.to_bytes_per_s)
        left = scale_ppm(self.kv_bytes(call), self._tail_ppm)
        told_us = max(link.setup_us, send.to_setup_us) + ceil_div(left * US_PER_S, rate)
        hidden_ppm = self._link_ppm.get(send.to_instance)
        if hidden_ppm is None:
            hidden_ppm = self._link_ppm[send.to_instance] = truth.link_ppm(self._spec.instance_id, send.to_instance)
        return told_us * hidden_ppm * truth.noise(call.key, TRANSFER) // (PPM * PPM)
