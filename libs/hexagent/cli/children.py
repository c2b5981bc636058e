"""The processes of a local stack: each started tied to this one, watched, started again when it dies, stopped."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import grpc
from grpc_health.v1 import health_pb2

from hexagent.core.errors import HexagentError, Unavailable
from hexagent.runtime.app import EXIT_USAGE
from hexagent.runtime.grpc_client import open_channel
from hexagent.runtime.tether import tethered

HEALTHY_WAIT_S: Final = 60.0  # imports of several services compete for few cores
STEADY_S: Final = 10.0  # a child that lived this long counts as started well
BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # before starts again; the last for all further ones
FAILED_STARTS_MAX: Final = 5  # in a row without ever being healthy

_HEALTH_POLL_S: Final = 0.05
_TAIL_LINES: Final = 8

Say = Callable[[str], None]


class Process(Protocol):
    """What can be kept running; `hexagent.runtime.nats_server.NatsServer` is one too."""

    @property
    def pid(self) -> int | None:
        """Of the running process, else None."""

    async def start(self) -> None:
        """Start and wait until it serves."""

    async def wait(self) -> int:
        """Wait for its end; gives the exit status."""

    async def stop(self) -> None:
        """End it in order, or by force where that takes too long."""

    async def kill(self) -> None:
        """End it at once."""


class ServiceCommand(NamedTuple):
    """How one service process is started."""

    name: str  # unique in the stack
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    address: str  # host:port of its gRPC server, which answers health checks
    log_path: Path  # gets stdout and stderr
    stop_grace_s: float = 15.0  # wall time from SIGTERM to SIGKILL


class ServiceProcess:
    """A gRPC service as a child process."""

    def __init__(self, command: ServiceCommand) -> None:
        self.command: Final = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """`Unavailable` (SERVICE_FAILED) with the end of its log if it ends or is not healthy in time."""
        command = self.command
        command.log_path.parent.mkdir(parents=True, exist_ok=True)
        with command.log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal goes to this process only, which stops the others in order.
            self._process = await asyncio.create_subprocess_exec(
                *tethered(command.argv), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **command.environ}, start_new_session=True,
            )  # fmt: skip
        ended = asyncio.create_task(self._process.wait())
        healthy = asyncio.create_task(wait_healthy(command.address))
        try:
            async with asyncio.timeout(HEALTHY_WAIT_S):
                await asyncio.wait((ended, healthy), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self.kill()
            raise self._failed(f"is not healthy after {HEALTHY_WAIT_S:g} s") from None
        finally:
            ended.cancel()
            healthy.cancel()
        if self._process.returncode is not None:
            raise self._failed(f"ended with {status_text(self._process.returncode)}")

    async def wait(self) -> int:
        return await self._process.wait() if self._process is not None else 0

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.command.stop_grace_s):
                await process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _failed(self, what: str) -> Unavailable:
        command = self.command
        return Unavailable(
            f"{command.name} {what}; the end of {command.log_path}:\n{log_tail(command.log_path)}",
            reason="SERVICE_FAILED",
            field=command.name,
        )


class Keeper:
    """Keeps one process running until told to stop.

    It is started again on its old address after a pause that grows while it keeps dying. `lost` gets the error
    when that is hopeless: settings it refuses, or several starts in a row that never became healthy.
    """

    def __init__(self, name: str, process: Process, say: Say) -> None:
        self.name: Final = name
        self.process: Final = process
        self.lost: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self.serves = False  # it has become healthy since it was last started
        self._say = say
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The first start; its failure is the caller's."""
        await self.process.start()
        self.serves = True
        self._watch = asyncio.create_task(self._keep(self.process.pid), name=f"keep {self.name}")

    async def stop(self) -> None:
        """Stop watching and end the process."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
            self._watch = None
        await self.process.stop()
        if self.lost.done() and not self.lost.cancelled():
            self.lost.exception()  # seen: the stack stops because of it, or was stopping anyway
        self.lost.cancel()

    async def _keep(self, pid: int | None) -> None:
        deaths = 0
        started_s = time.monotonic()
        while True:
            status = await self.process.wait()
            self.serves = False
            deaths = 0 if time.monotonic() - started_s >= STEADY_S else deaths + 1
            pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
            self._say(f"{self.name} (process {pid}) ended with {status_text(status)}; starts again in {pause_s:g} s")
            if not await self._started_again(status, pause_s):
                return
            self.serves = True
            pid, started_s = self.process.pid, time.monotonic()

    async def _started_again(self, status: int, pause_s: float) -> bool:
        """Whether it runs; false once starting it is given up."""
        pauses_s = () if status == EXIT_USAGE else (pause_s, *BACKOFF_S[1:FAILED_STARTS_MAX])
        for wait_s in pauses_s:
            await asyncio.sleep(wait_s)
            began_s = time.monotonic()
            try:
                await self.process.start()
            except HexagentError as error:
                self._say(error.message)
                continue
            self._say(f"{self.name} is back as process {self.process.pid} after {time.monotonic() - began_s:.1f} s")
            return True
        if not self.lost.done():
            self.lost.set_exception(
                Unavailable(f"{self.name} cannot be kept running", reason="SERVICE_FAILED", field=self.name)
            )
        return False


async def wait_healthy(address: str) -> None:
    """Return once the server at `address` says it serves."""
    async with open_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        while True:
            try:
                response = await check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                pass
            else:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(_HEALTH_POLL_S)


def cpu_s(pid: int) -> float:
    """Processor time the process has used, of all its threads; 0 where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status_text(status: int) -> str:
    """An exit status for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def log_tail(path: Path) -> str:
    """The last lines of a log file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(line[:400] for line in lines[-_TAIL_LINES:]) or "(empty)"
