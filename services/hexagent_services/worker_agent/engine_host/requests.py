"""Requests on the engine: each order runs as one task and speaks through `send`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from .arguments import retention_config, state_from_json, state_to_json
from .library import Library

PIECE_S = 0.02  # wall time between two pieces of a streamed output
QUIET_PIECE_S = 1.0  # of one that nobody reads as it comes: the agent sees that it moves

Send = Callable[..., None]  # (body, ids)


class _Request:
    """One order while it runs."""

    def __init__(self, order: dict[str, Any], ids: Sequence[int]) -> None:
        self.order = order
        self.id: int = order["id"]
        self.ids = list(ids)
        self.result: Any = None
        self.takes_kv = False  # and it has not come yet
        self.aborted = False


class Requests:
    """All requests of one engine. An error that is not one request's own ends the host: `failed` gets it."""

    def __init__(self, library: Library, llm: Any, found: dict[str, bool], block_tokens: int, send: Send) -> None:
        self._library = library
        self._llm = llm
        self._found = found
        self._block_tokens = block_tokens
        self._send = send
        self._running: dict[int, _Request] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()  # some request

    @property
    def running(self) -> int:
        return len(self._running)

    def start(self, order: dict[str, Any], ids: Sequence[int]) -> None:
        request = _Request(order, ids)
        self._running[request.id] = request
        self._tasks[request.id] = asyncio.ensure_future(self._guard(request))

    def abort(self, number: int) -> None:
        """Stop a request. One that takes KV stops once it is here: engines leak what an interrupted transfer holds."""
        request = self._running.get(number)
        if request is not None:
            request.aborted = True
            if request.result is not None and not request.takes_kv:
                request.result.abort()

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _guard(self, request: _Request) -> None:
        try:
            if request.aborted:
                self._send({"event": "ended", "id": request.id, "finish": "cancelled"})
                return
            await (self._prefill(request) if request.order["op"] == "prefill" else self._generate(request))
        except (self._library.RequestError, ValueError) as error:
            self._send({"event": "ended", "id": request.id, "finish": "refused", "message": str(error)[:500]})
        except Exception as error:
            if not self.failed.done():
                self.failed.set_exception(error)
        finally:
            del self._running[request.id], self._tasks[request.id]

    async def _prefill(self, request: _Request) -> None:
        params = {"request_type": "context_only"}
        if self._found["disagg_request_id"]:
            params["disagg_request_id"] = request.order["request_id"]
        result = self._submit(request, self._library.DisaggregatedParams(**params), streaming=False)
        output = (await result).outputs[0]
        finish = output.finish_reason or "cancelled"
        body = {"event": "prefilled", "id": request.id, "finish": finish}
        if finish != "cancelled":
            body["state"] = state_to_json(output.disaggregated_params)
            body["cached_tokens"] = self._cached_tokens(result)
            body["timing"] = timing_of(output)
        self._send(body, output.token_ids)

    async def _generate(self, request: _Request) -> None:
        """With a state the KV is pulled by the engine; without, the prompt is run here."""
        order, params, sent = request.order, None, 0
        if order["op"] == "decode":
            params = state_from_json(self._library, order["state"])
            sent = len(params.first_gen_tokens or ())  # the engine repeats what prefill has generated
            request.takes_kv = True
        result = self._submit(request, params, streaming=True)
        loop, piece_s = asyncio.get_running_loop(), PIECE_S if order["stream"] else QUIET_PIECE_S
        piece_due_s: float | None = None
        ids: list[int] = []
        async for progress in result:
            ids = progress.outputs[0].token_ids
            now_s = loop.time()
            if piece_due_s is None:
                if len(ids) < max(1, sent):
                    continue  # cancelled before there was anything
                self._came(request, result, ids[sent:1])
                sent = max(1, sent)
            elif now_s >= piece_due_s and len(ids) > sent:
                self._send({"event": "tokens", "id": request.id}, ids[sent:])
                sent = len(ids)
            else:
                continue
            piece_due_s = now_s + piece_s
        output = result.outputs[0]
        ended = {"event": "ended", "id": request.id, "finish": output.finish_reason or "cancelled"}
        ended["timing"] = timing_of(output)
        self._send(ended, output.token_ids[sent:])

    def _came(self, request: _Request, result: Any, ids: Sequence[int]) -> None:
        """The first answer: the KV is here, whatever it was made by."""
        request.takes_kv = False
        cached_tokens = self._cached_tokens(result)
        self._send({"event": "first", "id": request.id, "cached_tokens": cached_tokens}, ids)
        if request.aborted:
            result.abort()

    def _submit(self, request: _Request, params: Any, streaming: bool) -> Any:
        # Parameters of its own for each stage: the engine writes into them.
        sampling = self._library.SamplingParams(return_perf_metrics=True, **request.order["sampling"])
        lora = request.order["lora"]
        self.came.set()
        request.result = self._llm.generate_async(
            {"prompt_token_ids": request.ids},
            sampling_params=sampling,
            lora_request=self._library.LoRARequest(**lora) if lora else None,
            streaming=streaming,
            kv_cache_retention_config=retention_config(self._library, request.order.get("retention")),
            disaggregated_params=params,
        )
        return request.result

    def _cached_tokens(self, result: Any) -> int:
        """Of the prompt, from the prefix cache; versions say it in one place or the other."""
        cached: int | None = getattr(result, "cached_tokens", None)
        if cached is not None:
            return cached
        metrics = getattr(result.outputs[0], "request_perf_metrics", None)
        blocks = metrics.kv_cache_metrics.num_reused_blocks if metrics is not None else 0
        return int(blocks) * self._block_tokens


def timing_of(output: Any) -> dict[str, int]:
    """Microseconds between moments of one request, and the KV bytes it took.

    The moments are on the engine's steady clock, so only what lies between two of them means anything elsewhere.
    """
    metrics = getattr(output, "request_perf_metrics", None)
    if metrics is None:
        return {}
    times = metrics.timing_metrics

    def between(start: Any, end: Any) -> int:
        elapsed_us: int = round((end - start).total_seconds() * 1e6)
        return max(0, elapsed_us)

    timing = {"compute_us": between(times.first_scheduled_time, times.first_token_time)}
    if times.kv_cache_transfer_end.total_seconds():
        timing["transfer_delay_us"] = between(times.arrival_time, times.kv_cache_transfer_start)
        timing["transfer_us"] = between(times.kv_cache_transfer_start, times.kv_cache_transfer_end)
        timing["kv_bytes"] = int(times.kv_cache_size)
    return timing
