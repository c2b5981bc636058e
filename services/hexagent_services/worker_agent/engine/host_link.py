"""A running engine host as its engine sees it: loaded, heard, lost, and started again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hexagent.core.errors import Unavailable
from hexagent_services.worker_agent.engine.host_process import Host
from hexagent_services.worker_agent.engine_host.frames import Frame, frame_to_bytes, read_frame

log = logging.getLogger(__name__)


class HostLink:
    """`hear` gets every frame of a loaded engine; `forget` is called when nothing more will come."""

    def __init__(self, host: Host, hear: Callable[[Frame], None], forget: Callable[[], None]) -> None:
        self._host = host
        self._hear = hear
        self._forget = forget
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None  # of the one that was lost
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def up(self) -> bool:
        return self._writer is not None

    async def start(self, order: dict[str, Any], load_timeout_s: float) -> dict[str, Any]:
        """Have the engine built; what it says of itself. `Unavailable` (ENGINE_HOST_FAILED) where it is not."""
        if self._ending is not None:
            await self._ending
        try:
            async with asyncio.timeout(load_timeout_s):
                reader, writer = await self._host.start()
                writer.write(frame_to_bytes(order))
                frame = await read_frame(reader)
        except TimeoutError:
            await self._host.kill()
            raise Unavailable(f"not loaded after {load_timeout_s:g} s", reason="ENGINE_HOST_FAILED") from None
        if frame is None:
            await self._host.stop()
            raise Unavailable("the engine does not load; its log says why", reason="ENGINE_HOST_FAILED")
        self._writer = writer
        self._lost = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader))
        return frame.body

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    def send(self, body: dict[str, Any], ids: Sequence[int] = ()) -> None:
        if self._writer is not None:
            self._writer.write(frame_to_bytes(body, ids))

    def give_up(self, cause: str) -> None:
        """The engine is of no use any more: end it by force, so that it can be started again."""
        self._lose(cause, self._host.kill)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._writer = None
        self._forget()
        await self._host.stop()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await read_frame(reader)) is not None:
                self._hear(frame)
        except Exception:
            log.exception("the engine host is not understood")
            self.give_up("the engine host is not understood")
        else:
            self._lose("the engine host has ended", self._host.stop)  # it may still be writing why

    def _lose(self, cause: str, end: Callable[[], Awaitable[None]]) -> None:
        if self._writer is not None:
            self._writer = None
            self._lost.set_result(cause)
            self._forget()
            self._ending = asyncio.ensure_future(end())
