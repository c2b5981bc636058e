"""The engine host as a child process of the agent, and the frames between the two."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from hexagent.core.errors import Unavailable
from hexagent.runtime.tether import tethered
from hexagent_services.worker_agent import engine_host

_MARK: Final = "HEXAGENT_ENGINE_LOG"  # in the environment of an engine's processes: tells one engine's from others'
_PROGRAM: Final = Path(engine_host.__file__).with_name("__main__.py")
STOP_S: Final = 25.0  # wall time from the end of the connection to SIGKILL; the host has its own, shorter limit


class Connection(NamedTuple):
    """To a host that runs."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Host(Protocol):
    """Where the engine runs."""

    async def start(self) -> Connection:
        """`Unavailable` (ENGINE_HOST_FAILED) where it ends before it connects."""
        ...

    async def stop(self) -> None:
        """End it, in order where it still can."""
        ...

    async def kill(self) -> None:
        """End it and every process of its engine at once."""
        ...


class HostProcess:
    """In the Python that has `tensorrt_llm`, in a session of its own. `log_path` is that of one instance only."""

    def __init__(self, python: str, environ: Mapping[str, str], log_path: Path) -> None:
        self._python = python
        self._environ = environ
        self._log_path = log_path
        self._mark = str(log_path.absolute())
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> Connection:
        connected: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not connected.done():
                connected.set_result(Connection(reader, writer))

        self._kill_all()  # what an agent that was killed has left behind
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hexagent-host-") as folder, self._log_path.open("ab") as log:
            socket = str(Path(folder) / "s")
            server = await asyncio.start_unix_server(on_connect, socket)
            argv = tethered((self._python, str(_PROGRAM), socket))
            process = self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._environment(), start_new_session=True,
            )  # fmt: skip
            ended = asyncio.ensure_future(process.wait())
            try:
                await asyncio.wait((ended, connected), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                server.close()
        if not connected.done():
            raise Unavailable(
                f"the engine host ended with status {process.returncode}; its output is in {self._log_path}",
                reason="ENGINE_HOST_FAILED",
            )
        self._writer = connected.result().writer
        return connected.result()

    def _environment(self) -> dict[str, str]:
        """An inherited choice of transports was made for other programs, and `tcp` alone cannot reach GPU memory."""
        inherited = {name: value for name, value in os.environ.items() if name != "UCX_TLS"}
        return {**inherited, **self._environ, _MARK: self._mark}

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        if self._writer is not None:
            self._writer.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            self._kill_all()  # also where there is no time left to wait
        await process.wait()

    async def kill(self) -> None:
        self._kill_all()
        if self._process is not None:
            await self._process.wait()

    def _kill_all(self) -> None:
        """Engine workers outlive their host, and hold the GPU's memory, in whatever group and under whatever parent
        they are; but they have its environment."""
        wanted = f"{_MARK}={self._mark}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # gone, or another user's
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)
