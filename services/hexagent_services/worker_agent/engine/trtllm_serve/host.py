"""The server in the place of an engine host: one conversation of frames with the agent's side of the engine."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from hexagent.core.errors import HexagentError
from hexagent_services.worker_agent.engine.host_process import Connection
from hexagent_services.worker_agent.engine.trtllm_serve.api import ServeApi
from hexagent_services.worker_agent.engine.trtllm_serve.completions import Completions, Server
from hexagent_services.worker_agent.engine.trtllm_serve.readers import PerfMetrics, Readers
from hexagent_services.worker_agent.engine_host.frames import frame_to_bytes, read_frame

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # wall time between two looks while it loads
HEALTH_S: Final = 5.0  # between two once it has


class Launcher(Protocol):
    """Starts and ends a server."""

    async def start(self, order: Mapping[str, Any]) -> str:
        """Start it as a `load` order says; its URL, which answers once the model is loaded."""
        ...

    async def ended(self) -> str:
        """Wait for its end, and say how it was."""
        ...

    async def stop(self) -> None:
        """End it in order, if it still runs."""
        ...

    async def kill(self) -> None:
        """End it and every process of its engine at once."""
        ...


class ServeHost:
    """A server that runs at a URL, or one to be started.

    `auth_key` signs hand-offs, "" = they need not be. `guided` says that it has a backend for guided decoding.
    """

    def __init__(self, server: str | Launcher, auth_key: str = "", *, guided: bool = True) -> None:
        self._server = server
        self._auth_key = auth_key
        self._guided = guided
        self._session: asyncio.Task[None] | None = None

    async def start(self) -> Connection:
        ours, theirs = socket.socketpair()
        connection = Connection(*await asyncio.open_connection(sock=ours))
        self._session = asyncio.create_task(self._serve(*await asyncio.open_connection(sock=theirs)))
        return connection

    async def stop(self) -> None:
        await self._hang_up()
        if not isinstance(self._server, str):
            await self._server.stop()

    async def kill(self) -> None:
        """A server that somebody else has started is only left."""
        await self._hang_up()
        if not isinstance(self._server, str):
            await self._server.kill()

    async def _hang_up(self) -> None:
        if self._session is not None:
            self._session.cancel()
            await asyncio.wait((self._session,))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The connection ends with what it speaks to, which is how the agent's side learns of it.

        By then a server that the agent has started is gone, too: one that hangs would not end in order.
        """
        try:
            frame = await read_frame(reader)
            if frame is not None and (broken := await self._converse(frame.body, reader, writer)):
                log.error("engine server: %s", broken)
                if not isinstance(self._server, str):
                    await self._server.kill()
        except HexagentError as error:
            log.error("engine server: %s", error.message)
        except Exception:
            log.exception("the engine server is not understood")
        finally:
            writer.close()

    async def _converse(self, order: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """From a `load` order until the server breaks, and how; "" when the agent's side has hung up."""

        def send(body: dict[str, Any], ids: Sequence[int] = ()) -> None:
            writer.write(frame_to_bytes(body, ids))

        async with contextlib.AsyncExitStack() as stack:
            ends: set[asyncio.Future[str]] = set()
            if isinstance(self._server, str):
                api = ServeApi(self._server, self._auth_key)
            else:
                api = ServeApi(await self._server.start(order), self._auth_key)
                ends.add(_start(stack, self._server.ended()))
            stack.push_async_callback(api.close)
            found = _start(stack, _found(api, self._guided))
            waited: list[asyncio.Future[Any]] = [found, *ends]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                return next(iter(ends)).result()
            server = found.result()
            send(server.loaded)
            completions = Completions(server, PerfMetrics(api), send)
            stack.push_async_callback(completions.close)
            readers = Readers(api, order["block_tokens"], completions.began, send)
            _start(stack, readers.read_statistics())
            if order["prefix_cache"]:
                _start(stack, readers.read_events())
            ends |= {_start(stack, _obey(reader, completions)), _start(stack, _sick(api))}
            done, _ = await asyncio.wait({*ends, completions.broken}, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()


def _start(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Beside the conversation, to its end at most."""
    task = asyncio.create_task(work)
    stack.callback(task.cancel)
    return task


async def _found(api: ServeApi, guided: bool) -> Server:
    """The server once it generates. `Unavailable` where it then does not say what it is."""
    while not await api.generates():  # noqa: ASYNC110 - it loads its model
        await asyncio.sleep(LOOK_S)
    await api.iterations()  # those of the token it was asked for
    completion, state = await api.fields("CompletionRequest"), await api.fields("DisaggregatedParams")
    return Server(api, await api.version(), await api.model(), completion, state, guided)


async def _sick(api: ServeApi) -> str:
    """Until the server itself says no. That it says yes means nothing; whether it moves is the agent's to watch."""
    while True:
        await asyncio.sleep(HEALTH_S)
        if not await api.alive():
            return "it says that it is broken, or does not answer"


async def _obey(reader: asyncio.StreamReader, completions: Completions) -> str:
    while (frame := await read_frame(reader)) is not None:
        if frame.body["op"] == "abort":
            completions.abort(frame.body["id"])
        else:
            completions.start(frame.body, frame.ids)
    return ""
