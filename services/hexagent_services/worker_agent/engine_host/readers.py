"""The engine's statistics and KV events: one reader of each, as reading takes them away."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from .requests import Requests, Send

PERIOD_S = 0.1  # wall time between two readings
READ_S = 0.01  # wall time a reading waits for what is not there
STEPS_MAX = 64  # in a report; later ones tell no more about the same moment


class CachedBlocks:
    """Full blocks in the engine's prefix cache, followed by its events."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._hashes: set[int] = set()
        self._next_id: int | None = None
        self._window = 0
        self.gaps = 0  # times that events were missing: from then on the count is a guess

    def __len__(self) -> int:
        return len(self._hashes)

    def take(self, event: dict[str, Any]) -> None:
        """Windows below full attention are passed over, and blocks that are not full: nobody reuses them."""
        event_id, data = event["event_id"], event["data"]
        if self._next_id is not None and event_id != self._next_id:
            self.gaps += 1
        self._next_id = event_id + 1
        window = event.get("window_size") or 0
        if window < self._window:
            return
        self._window = window
        if data["type"] == "stored":
            full = [b["block_hash"] for b in data["blocks"] if len(b["tokens"]) == self._block_tokens]
            self._hashes.update(full)
        elif data["type"] == "removed":
            self._hashes.difference_update(data["block_hashes"])


class Statistics:
    """What has been read and not yet sent."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._steps: list[list[int]] = []  # duration, prefill tokens, calls that decode, tokens accepted for these
        self._last: dict[str, int] = {}
        self._drafted_tokens = 0
        self._accepted_tokens = 0

    def take(self, iteration: dict[str, Any]) -> None:
        batch = iteration.get("inflightBatchingStats") or {}
        kv = iteration.get("kvCacheStats") or {}
        speculation = iteration.get("specDecodingStats") or {}
        accepted_tokens = speculation.get("numAcceptedTokens", 0)
        self._drafted_tokens += speculation.get("numDraftTokens", 0)
        self._accepted_tokens += accepted_tokens
        self._last = {
            "active": iteration.get("numActiveRequests", 0),
            "used_blocks": kv.get("usedNumBlocks", 0),
            "max_blocks": kv.get("maxNumBlocks", 0),
        }
        if len(self._steps) < STEPS_MAX:
            duration_us = round(iteration.get("iterLatencyMS", 0) * 1000)
            step = [duration_us, batch.get("numCtxTokens", 0), batch.get("numGenRequests", 0), accepted_tokens]
            self._steps.append(step)

    def report(self) -> dict[str, Any] | None:
        """None when nothing was read: silence says nothing about load."""
        if not self._last:
            return None
        speculation = {"drafted_tokens": self._drafted_tokens, "accepted_tokens": self._accepted_tokens}
        report = {"event": "stats", "steps": self._steps, **self._last, **speculation}
        self._start()
        return report


async def read_engine(llm: Any, requests: Requests, block_tokens: int, reuse: bool, send: Send) -> None:
    """Read and report until cancelled, while there are requests: before the first one engines have nothing to read."""
    statistics, cached = Statistics(), CachedBlocks(block_tokens)
    while True:
        await requests.came.wait()
        await asyncio.sleep(PERIOD_S)
        if not requests.running:
            requests.came.clear()  # what there is to read now is the last of it
        async for iteration in _within_period(llm.get_stats_async(timeout=READ_S)):
            statistics.take(json.loads(iteration) if isinstance(iteration, str) else iteration)
        if reuse:
            try:
                async for event in _within_period(llm.get_kv_cache_events_async(timeout=READ_S)):
                    cached.take(json.loads(event) if isinstance(event, str) else event)
            except AssertionError:
                pass  # the engine has not yet seen the first request
        report = statistics.report()
        if report is not None:
            report["cached_blocks"] = len(cached)
            report["event_gaps"] = cached.gaps
            send(report)


async def _within_period(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A reading ends when nothing comes for `READ_S`, which a fast engine under load never lets happen."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + PERIOD_S
    async for item in items:
        yield item
        if loop.time() >= end_s:
            return
