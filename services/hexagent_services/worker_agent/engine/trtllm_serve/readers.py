"""The server's statistics, KV events and metrics of requests: one reader of each, as reading takes them away."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from hexagent.core.errors import Unavailable
from hexagent_services.worker_agent.engine.trtllm_serve.api import ServeApi
from hexagent_services.worker_agent.engine_host.readers import CachedBlocks, Statistics

PERIOD_S: Final = 0.1  # wall time between two readings
KEPT_MAX: Final = 1024  # metrics of requests that nobody has asked for yet


class PerfMetrics:
    """Times of requests that have ended, by their context request's id."""

    def __init__(self, api: ServeApi) -> None:
        self._api = api
        self._kept: OrderedDict[int, dict[str, int]] = OrderedDict()
        self._reading: asyncio.Task[None] | None = None
        self._seen = False
        self._silent = False  # the server keeps none

    async def timing(self, request: int | None) -> dict[str, int]:
        """Of a request that has just ended, as an engine host reports it; {} where the server does not tell.

        Those who ask at a time share a reading. One that is under way may have been too early, so they ask again then.
        """
        if request is None:
            return {}
        if self._reading is not None and not self._reading.done():
            await asyncio.shield(self._reading)
        if request not in self._kept and not self._silent:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
        return self._kept.pop(request, {})

    async def _read(self) -> None:
        with contextlib.suppress(Unavailable):
            items = await self._api.perf_metrics()
            self._seen = self._seen or bool(items)
            self._silent = not self._seen  # although a request has ended
            for item in items:
                if (request := item.get("ctx_request_id")) is not None:
                    self._kept[request] = timing_of(item["perf_metrics"])
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)


def timing_of(metrics: dict[str, Any]) -> dict[str, int]:
    """Microseconds between moments on the engine's steady clock, and the KV bytes it took."""
    times = metrics["timing_metrics"]

    def between(start: str, end: str) -> int:
        return max(0, int(1e6 * (times[end] - times[start])))

    timing = {"compute_us": between("first_scheduled_time", "first_token_time")}
    if times.get("kv_cache_transfer_end"):
        timing["transfer_delay_us"] = between("arrival_time", "kv_cache_transfer_start")
        timing["transfer_us"] = between("kv_cache_transfer_start", "kv_cache_transfer_end")
        timing["kv_bytes"] = int(times["kv_cache_size"])
    return timing


class Readers:
    """Statistics and KV events, from the first request on: before it the server has none."""

    def __init__(
        self, api: ServeApi, block_tokens: int, began: asyncio.Event, send: Callable[[dict[str, Any]], None]
    ) -> None:
        self._api = api
        self._cached = CachedBlocks(block_tokens)
        self._began = began
        self._send = send
        self._iteration = 0

    async def read_statistics(self) -> None:
        """Until cancelled."""
        statistics = Statistics()
        await self._began.wait()
        while True:
            await asyncio.sleep(PERIOD_S)
            with contextlib.suppress(Unavailable):  # whether it lives is not this reader's question
                for iteration in await self._api.iterations():
                    number = iteration.get("iter", self._iteration + 1)
                    if number > self._iteration:  # one told again is no progress
                        self._iteration = number
                        statistics.take(iteration)
            report = statistics.report()
            if report is not None:
                self._send({**report, "cached_blocks": len(self._cached), "event_gaps": self._cached.gaps})

    async def read_events(self) -> None:
        """Until cancelled."""
        await self._began.wait()
        while True:
            await asyncio.sleep(PERIOD_S)
            with contextlib.suppress(Unavailable):
                for event in await self._api.kv_events():
                    self._cached.take(event)
