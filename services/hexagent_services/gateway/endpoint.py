"""`POST /v1/chat/completions`."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Iterator
from typing import Final, NamedTuple, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from hexagent.core.errors import (
    Cancelled,
    DeadlineExceeded,
    HexagentError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from hexagent.text.reader import OutputReader
from hexagent_services.gateway.chat import Models, parse_chat
from hexagent_services.gateway.completions import Completion
from hexagent_services.gateway.failures import Failures
from hexagent_services.gateway.identity import caller_of, request_id_of
from hexagent_services.gateway.sessions import Sessions
from hexagent_services.gateway.sse import EventStream, disconnected
from hexagent_services.gateway.workflow import Call

REQUEST_HEADER: Final = "x-request-id"
WORKFLOW_HEADER: Final = "x-hexagent-workflow-id"
CALL_HEADER: Final = "x-hexagent-call-id"

T = TypeVar("T")


class RequestLimits(NamedTuple):
    """Bounds of what requests may take."""

    body_bytes: int
    requests: int
    timeout_s: float
    stream_headers_s: float
    keep_alive_s: float


class ChatEndpoint:
    """The ASGI application behind the path."""

    def __init__(self, sessions: Sessions, models: Models, limits: RequestLimits, failures: Failures) -> None:
        self.stopping = False
        self.requests = 0  # in progress
        self._sessions = sessions
        self._models = models
        self._limits = limits
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = {REQUEST_HEADER: uuid.uuid4().hex}
        # What is entered here is left when the whole answer is sent, or cannot be sent any more.
        with contextlib.ExitStack() as held:
            try:
                headers[REQUEST_HEADER] = request_id_of(request.headers) or headers[REQUEST_HEADER]
                held.enter_context(self._place())
                response = await self._answer(request, headers, held)
            except ClientDisconnect:
                return
            except HexagentError as error:
                response = self._failures.response(error, headers)
            await response(scope, receive, send)

    async def _answer(self, request: Request, headers: dict[str, str], held: contextlib.ExitStack) -> ASGIApp:
        end_s = asyncio.get_running_loop().time() + self._limits.timeout_s
        caller = caller_of(request.headers)
        chat = parse_chat(await self._body(request), self._models)
        call = await self._wait(request.receive, self._sessions.begin(caller, chat), end_s)
        held.callback(call.close)
        headers[WORKFLOW_HEADER] = call.workflow.workflow_id
        headers[CALL_HEADER] = call.node_id
        completion = Completion.new(call.node_id, call.workflow.workflow_id, chat.model, chat.include_usage)
        try:
            if chat.stream:
                return await self._stream(request, completion, call, chat.reader(), headers, end_s)
            result = await self._wait(request.receive, call.result(), end_s)
        except HexagentError as error:
            call.close(error.reason)
            raise
        return JSONResponse(completion.whole(result, chat.said(result)), headers=headers)

    async def _stream(
        self,
        request: Request,
        completion: Completion,
        call: Call,
        reader: OutputReader,
        headers: dict[str, str],
        end_s: float,
    ) -> ASGIApp:
        """The answer once its first text or its end is there, so that a refusal gets a status of its own."""
        first = asyncio.create_task(call.next_text())
        try:
            waited = asyncio.wait((first,), timeout=self._limits.stream_headers_s)
            await self._wait(request.receive, waited, end_s)
            if first.done() and first.result() is None:
                await call.result()
        except BaseException:
            first.cancel()
            raise
        return EventStream(
            completion,
            call,
            reader,
            first,
            headers=headers,
            keep_alive_s=self._limits.keep_alive_s,
            end_s=end_s,
            failures=self._failures,
        )

    async def _body(self, request: Request) -> bytes:
        """`InvalidArgument` (BODY_TOO_LARGE) as soon as that is known."""
        limit = self._limits.body_bytes
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        parts: list[bytes] = []
        if size <= limit:
            size = 0
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limit:
                    break
        if size > limit:
            raise InvalidArgument(f"the body has more than {limit} bytes", reason="BODY_TOO_LARGE", field="body")
        return b"".join(parts)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Among the requests in progress. `Unavailable` (GATEWAY_STOPPING), `ResourceExhausted`."""
        if self.stopping:
            raise Unavailable("the gateway stops; try another one", reason="GATEWAY_STOPPING")
        if self.requests >= self._limits.requests:
            limit = str(self._limits.requests)
            raise ResourceExhausted(
                f"{limit} requests are in progress", reason="TOO_MANY_REQUESTS", details={"limit": limit}
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def _wait(self, receive: Receive, work: Awaitable[T], end_s: float) -> T:
        """The result of `work`, which is cut off when the client goes away or the time is up.

        `Cancelled` (CLIENT_DISCONNECTED), `DeadlineExceeded` (REQUEST_TIMEOUT).
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.create_task(disconnected(receive))
        left_s = end_s - asyncio.get_running_loop().time()
        try:
            await asyncio.wait((task, gone), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise Cancelled("the client has disconnected", reason="CLIENT_DISCONNECTED")
            raise DeadlineExceeded(f"no answer within {self._limits.timeout_s:g} s", reason="REQUEST_TIMEOUT")
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.wait((task,))
