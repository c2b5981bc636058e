"""Model time: what services schedule by, in integer microseconds since the stack's origin.

One stack has one model clock, `(wall - origin) * time_scale`, so that a workload of an hour can run in minutes.
Heartbeats, leases and RPC deadlines are wall time and do not go through here.
"""

import asyncio
import heapq
import time
from typing import Final, Protocol

from hexagent.core.errors import InvalidArgument
from hexagent.core.units import PPM, US_PER_S

_NS_PER_S: Final = 1_000_000_000
MAX_TIME_SCALE: Final = 1_000.0


class Clock(Protocol):
    """What services read time from; tests use `VirtualClock`."""

    def now_us(self) -> int:
        """Model time, microseconds."""

    async def sleep_until(self, model_us: int) -> None:
        """Return at or after `model_us`, never before it."""


class ModelClock:
    """Model time from the wall clock, read once and carried on by the monotonic clock.

    Steps of the wall clock after the start therefore do not show; processes of one host started at different
    times agree as far as their wall clock did not step in between. `origin_wall_ns` is in ns since the epoch,
    `time_scale` model seconds a wall second, above 0 and at most 1,000, exact to one millionth.
    """

    def __init__(self, origin_wall_ns: int, time_scale: float = 1.0) -> None:
        if not 0 < time_scale <= MAX_TIME_SCALE or round(time_scale * PPM) == 0:
            raise InvalidArgument(
                f"time_scale must be above 0 and at most {MAX_TIME_SCALE:g}; got {time_scale!r}",
                reason="BAD_TIME_SCALE",
                field="time_scale",
            )
        self.origin_wall_ns: Final = origin_wall_ns
        self.time_scale: Final = time_scale
        self._scale_ppm: Final = round(time_scale * PPM)
        self._monotonic_to_wall_ns: Final = time.time_ns() - time.monotonic_ns()

    def wall_ns(self) -> int:
        """Wall time, ns since the epoch, without steps."""
        return time.monotonic_ns() + self._monotonic_to_wall_ns

    def now_us(self) -> int:
        """Model time, microseconds; negative before the origin."""
        return (self.wall_ns() - self.origin_wall_ns) * self._scale_ppm // _NS_PER_S

    def to_wall_s(self, model_us: int) -> float:
        """How long `model_us` of model time take, in wall seconds."""
        return model_us * PPM / (self._scale_ppm * US_PER_S)

    def from_wall_s(self, wall_s: float) -> int:
        """Model microseconds that pass in `wall_s` wall seconds."""
        return round(wall_s * self._scale_ppm)

    def wall_ns_of(self, model_us: int) -> int:
        """Wall instant, ns since the epoch, at which the model clock first shows `model_us` or more."""
        return self.origin_wall_ns - (-model_us * _NS_PER_S // self._scale_ppm)

    def model_us_of(self, wall_ns: int) -> int:
        """Model time of a wall instant in ns since the epoch."""
        return (wall_ns - self.origin_wall_ns) * self._scale_ppm // _NS_PER_S

    async def sleep_until(self, model_us: int) -> None:
        """Return at or after `model_us`; late by the event loop's granularity, about 1 ms of wall time.

        The loop may wake early by its rounding, so the clock is read again rather than trusted. At least one
        other task gets to run even where the instant has passed.
        """
        remaining_us = model_us - self.now_us()
        if remaining_us <= 0:
            await asyncio.sleep(0)
        while remaining_us > 0:
            await asyncio.sleep(self.to_wall_s(remaining_us))
            remaining_us = model_us - self.now_us()


class VirtualClock:
    """Time that moves only when told to; sleepers wake in order of their instants, then of their calls."""

    def __init__(self, now_us: int = 0) -> None:
        self._now_us = now_us
        self._calls = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_us(self) -> int:
        """Model time, microseconds."""
        return self._now_us

    async def sleep_until(self, model_us: int) -> None:
        """Return once `advance_to` has reached `model_us`."""
        if model_us <= self._now_us:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls += 1
        heapq.heappush(self._sleepers, (model_us, self._calls, future))
        await future

    async def advance_to(self, model_us: int) -> None:
        """Move time on, stopping at each sleeper's instant until whoever it woke has had its turn."""
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= model_us:
            instant_us, _, future = heapq.heappop(self._sleepers)
            self._now_us = max(self._now_us, instant_us)
            if not future.done():
                future.set_result(None)
                await self._settle()
        self._now_us = max(self._now_us, model_us)

    async def advance(self, delta_us: int) -> None:
        """Move time on by `delta_us` microseconds."""
        await self.advance_to(self._now_us + delta_us)

    async def _settle(self) -> None:
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)


_SETTLE_TURNS: Final = 20  # loop turns in which a woken task goes through its queues and back to sleep
