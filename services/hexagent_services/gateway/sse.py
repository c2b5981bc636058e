"""An answer as server-sent events, and the client that may leave before it is whole."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.types import Receive, Scope, Send

from hexagent.core.errors import DeadlineExceeded, HexagentError
from hexagent.core.workflow.model import FinishReason
from hexagent.text.reader import OutputReader
from hexagent_services.gateway.completions import KEEP_ALIVE, Completion, event
from hexagent_services.gateway.failures import Failures
from hexagent_services.gateway.workflow import Call

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies that collect answers would make it no stream
)


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """An ASGI response. Ends early where the client leaves; closing the call is its owner's part."""

    def __init__(
        self,
        completion: Completion,
        call: Call,
        reader: OutputReader,
        first: "asyncio.Task[str | None]",
        *,
        headers: Mapping[str, str],
        keep_alive_s: float,
        end_s: float,
        failures: Failures,
    ) -> None:
        self._completion = completion
        self._call = call
        self._reader = reader
        self._first = first
        self._headers = headers
        self._keep_alive_s = keep_alive_s
        self._end_s = end_s  # of the loop's clock
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.wait((sending, gone))

    async def _send(self, send: Send) -> None:
        named = ((name.encode(), value.encode()) for name, value in self._headers.items())
        await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *named]})
        try:
            async with asyncio.timeout_at(self._end_s):
                async for part in self._events():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except TimeoutError:
            error = DeadlineExceeded("the request took too long", reason="REQUEST_TIMEOUT")
            self._call.close(error.reason)
            await self._send_failure(error, send)
        except HexagentError as error:
            await self._send_failure(error, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_failure(self, error: HexagentError, send: Send) -> None:
        """Status and headers are gone, so the error is an event, after which nothing comes."""
        await send({"type": "http.response.body", "body": event(self._failures.of(error).body), "more_body": True})

    async def _events(self) -> AsyncIterator[bytes]:
        """Pieces of the stream as they become known, each of whole events."""
        completion, reader = self._completion, self._reader
        begin = completion.first()
        task = self._first
        try:
            while True:
                done, _ = await asyncio.wait((task,), timeout=self._keep_alive_s)
                if not done:
                    yield begin or KEEP_ALIVE
                    begin = b""
                    continue
                piece = task.result()
                if piece is None:
                    break
                task = asyncio.create_task(self._call.next_text())
                if shown := completion.piece(reader.take(piece)):
                    yield begin + shown
                    begin = b""
        finally:
            task.cancel()
        result = await self._call.result()
        yield begin + completion.last(result, reader.end(result.finish_reason is FinishReason.TOOL_CALLS))
