"""The engine: one loop of steps over a waiting queue and a batch, as the documentation tells it."""

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Generator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

from .contract import bind, checked_arguments, signature, told
from .executor.utils import RequestError
from .kv import Blocks, KvGone, Transceiver, pull
from .llmapi import DisaggregatedParams
from .model import faults_from_environment, next_token

_LLM = "tensorrt_llm/llmapi/llm.py"
_RESULT = "tensorrt_llm/executor/result.py"
_STATISTICS = "cpp/tensorrt_llm/executor/jsonSerialization.cpp"
_METRICS = "cpp/tensorrt_llm/nanobind/executor/request.cpp"


class GenerationResult:
    """Awaitable and async-iterable; `outputs[0]` holds all tokens so far."""

    def __init__(self, llm: "LLM", number: int, ids: list[int], sampling: Any, streaming: bool, params: Any) -> None:
        self.request_id = number
        self.prompt_ids = ids
        self.sampling = sampling
        self.streaming = streaming
        self.params = params
        self.kind = params.request_type if params is not None else "context_and_generation"
        self.finished = False
        self.reused_tokens = 0
        self.output = SimpleNamespace(token_ids=[], finish_reason=None, disaggregated_params=None)
        self.output.request_perf_metrics = None
        self._llm = llm
        self._changed = asyncio.Event()
        self.error: Exception | None = None
        self.cancelled = False
        self.blocks = 0
        self.prefilled = 0
        self.pulling = False
        self.times = dict.fromkeys(("arrival", "scheduled", "first", "last", "kv_start", "kv_end"), 0.0)
        self.times["arrival"] = llm.now()
        self.kv_bytes = 0

    def __getattr__(self, name: str) -> Any:
        """What the manifest lets one read."""
        output = SimpleNamespace(**told(_RESULT, "CompletionOutput", **vars(self.output)))
        shown = {"cached_tokens": self.reused_tokens, "outputs": [output]}
        try:
            return told(_RESULT, "GenerationResult", **shown)[name]
        except KeyError:
            raise AttributeError(name) from None

    def abort(self) -> None:
        bind(_RESULT, "GenerationResult.abort", self)
        if self.pulling:
            self._llm.interrupted_transfers += 1
        self.cancelled = True
        self._llm.wake()

    def aborted(self) -> bool:
        return self.cancelled

    def told(self) -> None:
        self._changed.set()

    async def _wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()
        if self.error is not None:
            raise self.error

    async def _end(self) -> "GenerationResult":
        while not self.finished:
            await self._wait()
        return self

    def __await__(self) -> Generator[Any, None, "GenerationResult"]:
        return self._end().__await__()

    def __aiter__(self) -> "GenerationResult":
        return self

    async def __anext__(self) -> "GenerationResult":
        if self.finished and not self._changed.is_set():
            raise StopAsyncIteration
        await self._wait()
        return self


class LLM:
    """One engine. `faults` may be changed while it runs."""

    instances: ClassVar[list["LLM"]] = []  # of this process, for tests

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        given = bind(_LLM, "BaseLLM.__init__", self, *arguments, **keywords)
        checked_arguments(given.get("kwargs", {}))
        self.arguments = {**given, **given.pop("kwargs", {})}
        kv = self.arguments["kv_cache_config"]
        self.faults = faults_from_environment()
        self.blocks = Blocks(
            kv.max_tokens // kv.tokens_per_block, kv.tokens_per_block, kv.enable_block_reuse, kv.event_buffer_max_size
        )
        self.transceiver = Transceiver()
        self.transceiver.freed = self._give_back
        self.interrupted_transfers = 0  # each of them leaks in the real engine
        self.retentions: list[Any] = []
        self.loras: list[Any] = []  # of the requests that named one
        self.stuck = False  # a deadlock that only a restart ends
        self._numbers = itertools.count(1)
        self._waiting: list[GenerationResult] = []
        self._active: list[GenerationResult] = []
        self._abandoned: list[int] = []
        self._stats: list[dict[str, Any]] = []
        self._iterations = 0
        self._pulls: set[asyncio.Task[None]] = set()
        self._wakes = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        if self.faults.worker:
            subprocess.Popen(["sleep", "60"], start_new_session=True)
        LLM.instances.append(self)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wake(self) -> None:
        self._wakes.set()

    def generate_async(self, *arguments: Any, **keywords: Any) -> GenerationResult:
        given = bind(_LLM, "BaseLLM.generate_async", self, *arguments, **keywords)
        ids, sampling, params = (
            given["inputs"]["prompt_token_ids"],
            given["sampling_params"],
            given.get("disaggregated_params"),
        )
        result = GenerationResult(self, next(self._numbers), ids, sampling, given.get("streaming", False), params)
        if params is not None and self.arguments["cache_transceiver_config"].backend is None:
            raise RequestError("disaggregation is disabled: no transceiver backend")
        if result.kind == "context_only":
            sampling.max_tokens = 1
            if not self.arguments["disable_overlap_scheduler"]:
                raise RequestError("Context only requests are not supported when overlap is enabled")
            if len(ids) > self.arguments["cache_transceiver_config"].max_tokens_in_buffer:
                self.stuck = True
        if self.faults.refuse:
            self.faults.refuse -= 1
            raise RequestError("refused by a fault")
        if result.request_id == self.faults.exit_after:
            os._exit(9)
        self.retentions.append(given.get("kv_cache_retention_config"))
        if given.get("lora_request") is not None:
            self.loras.append(given["lora_request"])
        self._waiting.append(result)
        if self._loop is None:
            self._loop = asyncio.ensure_future(self._run())
        self._wakes.set()
        return result

    generate_async.__signature__ = signature(_LLM, "BaseLLM.generate_async")  # type: ignore[attr-defined]

    async def get_stats_async(self, *arguments: Any, **keywords: Any) -> AsyncIterator[dict[str, Any]]:
        bind(_LLM, "BaseLLM.get_stats_async", self, *arguments, **keywords)
        taken, self._stats = self._stats, []
        for entry in taken:
            yield entry

    async def get_kv_cache_events_async(self, *arguments: Any, **keywords: Any) -> AsyncIterator[dict[str, Any]]:
        bind(_LLM, "BaseLLM.get_kv_cache_events_async", self, *arguments, **keywords)
        if not self._iterations:
            raise AssertionError("the event queue is not there before the first request")
        taken, self.blocks.events = self.blocks.events, []
        for event in taken:
            yield event

    def shutdown(self) -> None:
        self.transceiver.close()
        for task in (self._loop, *self._pulls):
            if task is not None:
                task.cancel()

    # --- steps ------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            while True:
                if self.stuck or self.faults.wedged:
                    await self._woken()
                    continue
                self._cancel()
                self._admit()
                generating = [r for r in self._active if r.prefilled >= len(r.prompt_ids) and not r.pulling]
                contexts, tokens = self._context_batch()
                if not (contexts or generating):
                    await self._woken()
                    continue
                started_s = self.now()
                await asyncio.sleep(self.faults.step_s + tokens * self.faults.token_s)
                if self.faults.crash:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                accepted = sum(self._tokens(request) - 1 for request in generating)
                for request in contexts:
                    if request.prefilled >= len(request.prompt_ids):
                        await self._context_done(request)
                self._record(self.now() - started_s, tokens, len(generating), accepted)
        except Exception as error:
            for request in (*self._waiting, *self._active):
                request.error = error
                request.told()

    async def _woken(self) -> None:
        await self._wakes.wait()
        self._wakes.clear()

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            output = 0 if request.kind == "context_only" else request.sampling.max_tokens
            blocks = self.blocks.need(len(request.prompt_ids) + output)
            if not self.blocks.take(blocks):
                return
            self._waiting.pop(0)
            request.blocks = blocks
            request.times["scheduled"] = self.now()
            self._active.append(request)
            if request.kind == "generation_only":
                request.prefilled = len(request.prompt_ids)
                request.pulling = True
                task = asyncio.ensure_future(self._pull(request))
                self._pulls.add(task)
                task.add_done_callback(self._pulls.discard)
            else:
                request.reused_tokens = request.prefilled = self.blocks.cached_tokens(request.prompt_ids)
                if self._abandoned and self.faults.lazy_cleanup:
                    self._free_abandoned()

    def _context_batch(self) -> tuple[list[GenerationResult], int]:
        """Chunks of prompts, as many tokens as a step takes."""
        left, batch = self.arguments["max_num_tokens"], []
        for request in self._active:
            chunk = min(left, len(request.prompt_ids) - request.prefilled)
            if chunk > 0:
                request.prefilled += chunk
                left -= chunk
                batch.append(request)
        return batch, self.arguments["max_num_tokens"] - left

    async def _context_done(self, request: GenerationResult) -> None:
        self.blocks.commit(request.prompt_ids)
        self._token(request, ends=request.kind != "context_only")
        if request.kind != "context_only":
            return
        output = request.output
        state = await self.transceiver.offer(request.request_id, request.blocks, len(request.prompt_ids))
        timeout_ms = self.arguments["cache_transceiver_config"].kv_transfer_timeout_ms
        if timeout_ms is not None:
            asyncio.get_running_loop().call_later(timeout_ms / 1000, self._abandon, request.request_id)
        given = {name: getattr(request.params, name) for name in request.params.model_fields}
        given.update(first_gen_tokens=list(output.token_ids), ctx_request_id=request.request_id, opaque_state=state)
        output.disaggregated_params = DisaggregatedParams(**given)
        request.blocks = 0  # pinned, no longer the request's
        self._finish(request, "stop" if output.token_ids[-1] == request.sampling.end_id else "not_finished")

    def _token(self, request: GenerationResult, ends: bool = True) -> None:
        ids = request.output.token_ids
        ids.append(next_token([*request.prompt_ids, *ids]))
        request.times["last"] = self.now()
        request.times["first"] = request.times["first"] or self.now()
        if ends and ids[-1] == request.sampling.end_id:
            self._finish(request, "stop")
        elif ends and len(ids) >= request.sampling.max_tokens:
            self._finish(request, "length")
        elif ends and ids[-1] in (request.sampling.stop_token_ids or ()):  # not looked for at the limit
            self._finish(request, "stop")
        elif request.streaming:
            request.told()

    def _tokens(self, request: GenerationResult) -> int:
        """What a step gives a request; its number."""
        generated = 0
        while not request.finished and generated <= max(0, self.faults.drafts - 1):
            self._token(request)
            generated += 1
        return generated

    async def _pull(self, request: GenerationResult) -> None:
        """Blocks are there; the batch joins when the KV is."""
        request.times["kv_start"] = self.now()
        try:
            request.kv_bytes = await pull(request.params.opaque_state, self.faults.pull_s)
        except KvGone as error:
            if self.faults.blocks_on_death:
                self.stuck = True
                return
            self._active.remove(request)
            self.blocks.free(request.blocks)
            request.error = RequestError(f"KV transfer failed: {error}")
            request.told()
            return
        request.times["kv_end"] = self.now()
        request.pulling = False
        request.output.token_ids = list(request.params.first_gen_tokens)
        self.blocks.commit(request.prompt_ids)
        if request.streaming:
            request.told()
        self.wake()

    def _cancel(self) -> None:
        for request in [r for r in (*self._waiting, *self._active) if r.cancelled and not r.pulling]:
            self._finish(request, None)

    def _finish(self, request: GenerationResult, reason: str | None) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._active.remove(request)
        self.blocks.free(request.blocks)
        output = request.output
        if reason in ("stop", "length") and request.blocks:
            self.blocks.commit([*request.prompt_ids, *output.token_ids[:-1]])
        output.finish_reason = reason  # None: cancelled
        output.request_perf_metrics = _perf_metrics(request, self.blocks.block_tokens)
        request.finished = True
        request.told()

    # --- abandoned hand-offs, statistics ----------------------------------------------------------------------
    def _abandon(self, number: int) -> None:
        if number in self.transceiver.pinned:
            blocks, _ = self.transceiver.pinned.pop(number)
            self._abandoned.append(blocks)
            if not self.faults.lazy_cleanup:
                self._free_abandoned()

    def _free_abandoned(self) -> None:
        if not self.faults.leaks:
            abandoned, self._abandoned = self._abandoned, []
            self._give_back(sum(abandoned))

    def _give_back(self, blocks: int) -> None:
        self.blocks.free(blocks)
        self.wake()

    def _record(self, latency_s: float, context_tokens: int, generating: int, accepted: int) -> None:
        self._iterations += 1
        self.blocks.lose_events = self.faults.lose_events
        if self.arguments["enable_iter_perf_stats"]:
            self._stats.append(
                told(
                    _STATISTICS,
                    "IterationStats",
                    iter=self._iterations,
                    iterLatencyMS=latency_s * 1000,
                    numActiveRequests=len(self._active),
                    kvCacheStats=told(
                        _STATISTICS,
                        "KvCacheStats",
                        maxNumBlocks=self.blocks.capacity,
                        usedNumBlocks=self.blocks.used,
                    ),
                    inflightBatchingStats=told(
                        _STATISTICS, "InflightBatchingStats", numCtxTokens=context_tokens, numGenRequests=generating
                    ),
                    specDecodingStats=told(
                        _STATISTICS,
                        "SpecDecodingStats",
                        numDraftTokens=self.faults.drafts * generating,
                        numAcceptedTokens=accepted,
                    ),
                )
            )


def _perf_metrics(request: GenerationResult, block_tokens: int) -> SimpleNamespace:
    times = {name: timedelta(seconds=value) for name, value in request.times.items()}
    timing = told(
        _METRICS,
        "TimingMetrics",
        arrival_time=times["arrival"],
        first_scheduled_time=times["scheduled"],
        first_token_time=times["first"],
        kv_cache_transfer_start=times["kv_start"],
        kv_cache_transfer_end=times["kv_end"],
        kv_cache_size=request.kv_bytes,
    )
    reused = told(_METRICS, "KvCacheMetrics", num_reused_blocks=request.reused_tokens // block_tokens)
    groups = {"timing_metrics": SimpleNamespace(**timing), "kv_cache_metrics": SimpleNamespace(**reused)}
    return SimpleNamespace(**told(_METRICS, "RequestPerfMetrics", **groups))
