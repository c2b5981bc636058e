"""Orders of the agent as completions of the server: each runs as one task and speaks through `send`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

import httpx

from hexagent_services.worker_agent.engine.trtllm_serve.api import (
    Chunk,
    Refused,
    ServeApi,
    completion,
    params_of,
    state_of,
)
from hexagent_services.worker_agent.engine.trtllm_serve.readers import PerfMetrics
from hexagent_services.worker_agent.engine_host.requests import PIECE_S, QUIET_PIECE_S

# From the end of a connection until the engine has let go: the server looks once a second.
CANCEL_S: Final = 1.5

Send = Callable[[dict[str, Any], Sequence[int]], None]


class Server(NamedTuple):
    """What a server says of itself when it has started. It refuses fields that it does not know."""

    api: ServeApi
    version: str
    model: str
    fields: frozenset[str]  # of a completion
    state_fields: frozenset[str]  # of what it says of a hand-off
    guided: bool  # it was started with a backend for guided decoding, which it does not say

    @property
    def loaded(self) -> dict[str, Any]:
        """The answer to a `load` order; that transfers are pipelined could not be seen from outside."""
        found = {
            "priority": "priority" in self.fields,
            "lora": "lora_request" in self.fields,
            "pipelined_transfer": False,
            "guided_decoding": self.guided and "response_format" in self.fields,
        }
        return {"event": "loaded", "version": self.version, "capabilities": found}


class _Order:
    """One order while it runs."""

    def __init__(self, body: dict[str, Any], ids: Sequence[int]) -> None:
        self.body = body
        self.number: int = body["id"]
        self.ids = ids
        self.aborted = False
        self.stoppable = False  # by closing its connection


class Completions:
    """All requests to one server."""

    def __init__(self, server: Server, metrics: PerfMetrics, send: Send) -> None:
        self._server = server
        self._metrics = metrics
        self._send = send
        self._orders: dict[int, _Order] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.began = asyncio.Event()  # some request has reached the server: it has statistics to read
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def start(self, body: dict[str, Any], ids: Sequence[int]) -> None:
        order = _Order(body, ids)
        self.began.set()
        self._orders[order.number] = order
        self._tasks[order.number] = asyncio.create_task(self._guard(order))

    def abort(self, number: int) -> None:
        """Stop a request by leaving it, where that frees what it holds at once.

        A prefill runs to its end: the server would notice too late for most, and what it then pins nobody would know
        of. A decode stops once its KV is here: engines leak what an interrupted transfer holds.
        """
        order = self._orders.get(number)
        if order is not None:
            order.aborted = True
            if order.stoppable:
                self._tasks[number].cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guard(self, order: _Order) -> None:
        try:
            await (self._prefill(order) if order.body["op"] == "prefill" else self._generate(order))
        except asyncio.CancelledError:
            if not order.aborted:
                raise
            await asyncio.sleep(CANCEL_S)
            self._ended(order, "cancelled")
        except Refused as error:
            self._ended(order, "refused", message=str(error))
        except (httpx.HTTPError, ValueError, LookupError) as error:
            if not await self._server.api.alive() and not self.broken.done():
                self.broken.set_result(f"the server does not answer: {error!r}")
            self._ended(order, "refused", message=repr(error))
        finally:
            del self._orders[order.number], self._tasks[order.number]

    def _ended(self, order: _Order, finish: str, ids: Sequence[int] = (), **more: Any) -> None:
        self._send({"event": "ended", "id": order.number, "finish": finish, **more}, ids)

    async def _prefill(self, order: _Order) -> None:
        params: dict[str, Any] = {"request_type": "context_only"}
        if "disagg_request_id" in self._server.state_fields:
            params["disagg_request_id"] = order.body["request_id"]
        answer = await self._server.api.whole({**self._body(order), "stream": False, "disaggregated_params": params})
        state = dict(answer.state or {})
        body = {
            "event": "prefilled",
            "id": order.number,
            "finish": answer.finish or "cancelled",
            "state": state_of(state),
            "cached_tokens": answer.cached_tokens,
            "timing": await self._metrics.timing(state.get("ctx_request_id")),
        }
        self._send(body, answer.ids or state.get("first_gen_tokens", ()))

    async def _generate(self, order: _Order) -> None:
        """With a state the KV is pulled by the engine; without, the prompt is run here."""
        body, repeated, request = self._body(order), 0, None
        if order.body["op"] == "decode":
            params = params_of(order.body["state"], self._server.state_fields)
            body["disaggregated_params"] = params
            repeated = len(params.get("first_gen_tokens") or ())  # the engine says again what prefill has generated
            request = params.get("ctx_request_id")
        else:
            order.stoppable = True
        # Usage with each chunk: the first one says what was cached.
        body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        rest: Sequence[int] = ()
        finish = ""
        async with contextlib.aclosing(self._server.api.stream(body)) as chunks:
            async for ids, chunk in self._pieces(order, chunks, repeated):
                if chunk.finish:
                    rest, finish = ids, chunk.finish
                else:
                    self._send({"event": "tokens", "id": order.number}, ids)
        self._ended(order, finish or "cancelled", rest, timing=await self._metrics.timing(request))

    async def _pieces(
        self, order: _Order, chunks: AsyncIterator[Chunk], repeated: int
    ) -> AsyncIterator[tuple[list[int], Chunk]]:
        """What is generated behind the first token, in pieces that somebody may wait for, and the last one."""
        loop, piece_s = asyncio.get_running_loop(), PIECE_S if order.body["stream"] else QUIET_PIECE_S
        held: list[int] = []
        due_s: float | None = None
        async for chunk in chunks:
            held += chunk.ids
            if due_s is None:
                if not held and not chunk.finish:
                    continue
                self._came(order, held[repeated:1], chunk)
                held = held[max(1, repeated) :]
                due_s = loop.time() + piece_s
            if chunk.finish or (held and loop.time() >= due_s):
                yield held, chunk
                held, due_s = [], loop.time() + piece_s

    def _came(self, order: _Order, ids: Sequence[int], chunk: Chunk) -> None:
        """The first answer: the KV is here, whatever it was made by."""
        order.stoppable = True
        self._send({"event": "first", "id": order.number, "cached_tokens": chunk.cached_tokens}, ids)
        if order.aborted:
            self._tasks[order.number].cancel()

    def _body(self, order: _Order) -> dict[str, Any]:
        body = completion(self._server.model, order.ids, order.body["sampling"])
        if order.body["response_format"] is not None:
            body["response_format"] = order.body["response_format"]
        if order.body["lora"] is not None:
            body["lora_request"] = order.body["lora"]
        return body
