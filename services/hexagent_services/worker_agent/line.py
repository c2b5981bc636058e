"""One long stream to another agent: numbered requests there, answers back in any order.

A message on a stream that stands costs a third of an RPC of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc


class Numbered(Protocol):
    """A message with its place on the stream, or that of what it answers."""

    number: int


Request = TypeVar("Request", bound=Numbered)
Response = TypeVar("Response", bound=Numbered)


class Line(Generic[Request, Response]):
    """Opened by the first request, and again by the first after it broke."""

    def __init__(
        self,
        open_stream: Callable[[AsyncIterator[Request]], "grpc.aio.StreamStreamCall[Any, Any]"],
        is_answer: Callable[[Response], bool] = lambda _: True,
    ) -> None:
        """`is_answer` is false for what comes ahead of the answer itself, which is dropped."""
        self._open_stream = open_stream
        self._is_answer = is_answer
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._count = 0

    async def ask(self, request: Request) -> Response:
        """Number the request, send it and wait for its answer. `ConnectionError` where the stream breaks first."""
        if self._reader is None or self._reader.done():
            self._requests = asyncio.Queue()
            self._reader = asyncio.create_task(self._read(self._open_stream(_each(self._requests))))
        self._count = number = self._count + 1
        request.number = number
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._requests.put_nowait(request)
        try:
            return await answer
        finally:
            del self._waiting[number]

    async def _read(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        broken = "ENDED"
        try:
            async for response in call:
                answer = self._waiting.get(response.number)
                if answer is not None and not answer.done() and self._is_answer(response):
                    answer.set_result(response)
        except grpc.aio.AioRpcError as error:
            broken = error.code().name
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError(broken))


async def _each(queue: asyncio.Queue[Request]) -> AsyncIterator[Request]:
    while True:
        yield await queue.get()
