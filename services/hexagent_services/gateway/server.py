"""The HTTP listener."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from hexagent.core.errors import Unavailable

HEADER_BYTES_MAX: Final = 64 * 1024
BACKLOG: Final = 1024


class ServerLimits(NamedTuple):
    """Bounds of the listener."""

    connections: int
    stop_grace_s: float


class _Server(uvicorn.Server):
    """Leaves signals to the service, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class HttpServer:
    """`bind`, run `serve` as a task, wait for `listening`; `stop` ends it."""

    def __init__(self, app: ASGIApp, host: str, port: int, limits: ServerLimits) -> None:
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._ended = asyncio.Event()
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="warning",  # the service itself says when it starts and stops
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                limit_concurrency=limits.connections,
                h11_max_incomplete_event_size=HEADER_BYTES_MAX,
                timeout_graceful_shutdown=max(1, int(limits.stop_grace_s)),
            )
        )

    def bind(self) -> int:
        """Take the port; gives its number. `Unavailable` (PORT_TAKEN)."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((self._host, self._port))
        except OSError as error:
            held.close()
            raise Unavailable(
                f"cannot listen on {self._host}:{self._port}", reason="PORT_TAKEN", field="http_port"
            ) from error
        held.setblocking(False)
        self._socket = held
        return int(held.getsockname()[1])

    async def serve(self) -> None:
        """Answer requests until `stop`."""
        assert self._socket is not None
        try:
            await self._server.serve([self._socket])
        finally:
            self._ended.set()

    async def listening(self) -> None:
        """Return when connections are accepted."""
        await self._server.listening.wait()

    async def stop(self) -> None:
        """Accept nothing more and let requests end; those that outlive the grace are cancelled."""
        self._server.should_exit = True
        await self._ended.wait()
