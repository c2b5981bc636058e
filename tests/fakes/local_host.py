"""The engine host inside the test's own process and event loop, with the fake library: killed and broken at will."""

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from hexagent_services.worker_agent.engine.host_process import Connection
from hexagent_services.worker_agent.engine_host.library import Library, load_library
from hexagent_services.worker_agent.engine_host.session import serve


def fake_library(manifest: Path | None = None) -> Library:
    """The fake package under the name of the real one, made from another manifest where one is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        for name in [n for n in sys.modules if n.partition(".")[0] == "tensorrt_llm"]:
            patch.delitem(sys.modules, name)
        if manifest is not None:
            patch.setenv("FAKE_TRTLLM_MANIFEST", str(manifest))
        importlib.import_module("tensorrt_llm.kv").Transceiver.serves_others = False
        return load_library()


class _Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self._closed = False

    def write(self, data: bytes) -> None:
        if not self._closed:
            self.reader.feed_data(data)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.reader.feed_eof()


class LocalHost:
    """`llm` is the fake engine that runs, with its faults."""

    def __init__(self, library: Library) -> None:
        self.llm: Any = None
        self.starts = 0
        self._library = library._replace(LLM=self._known(library.LLM))
        self._session: asyncio.Task[None] | None = None
        self._up = self._down = _Pipe()

    def _known(self, real: Any) -> Any:
        """The engine's class, whose objects are remembered here."""

        class Known(real):  # type: ignore[misc]
            def __init__(engine, **arguments: Any) -> None:
                super().__init__(**arguments)
                self.llm = engine

        return Known

    async def start(self) -> Connection:
        self.starts += 1
        self._up, self._down = _Pipe(), _Pipe()
        self._session = asyncio.create_task(self._serve(self._down, self._up))
        return Connection(self._up.reader, cast("asyncio.StreamWriter", self._down))

    async def _serve(self, orders: _Pipe, answers: _Pipe) -> None:
        try:
            await serve(orders.reader, cast("asyncio.StreamWriter", answers), self._library, lambda: None)
        except Exception:
            pass
        finally:
            answers.close()

    async def stop(self) -> None:
        self._down.close()
        await self.kill()

    async def kill(self) -> None:
        if self._session is not None:
            self._session.cancel()
            await asyncio.wait((self._session,))
            if self.llm is not None:
                self.llm.shutdown()
