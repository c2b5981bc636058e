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
    """In the Python that `tensorrt_llm` is installed in, as the leader of a process group of its own."""

    def __init__(self, python: str, environ: Mapping[str, str], log_path: Path) -> None:
        self._python = python
        self._environ = environ
        self._log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> Connection:
        connected: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not connected.done():
                connected.set_result(Connection(reader, writer))

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
        return {**inherited, **self._environ}

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
            _kill_group(process.pid)  # also where there is no time left to wait
        await process.wait()

    async def kill(self) -> None:
        process = self._process
        if process is not None:
            _kill_group(process.pid)
            await process.wait()


def _kill_group(leader_pid: int) -> None:
    """It outlives its leader where the engine's workers do."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader_pid, signal.SIGKILL)
