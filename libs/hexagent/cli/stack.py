"""The local stack: every service of HexAGenT as its own process on this machine, kept running, stopped in order."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from hexagent.cli.children import Keeper, Process, Say, ServiceCommand, ServiceProcess, cpu_s
from hexagent.cli.ports import assigned, writable_folder
from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.registry import policy_by_name
from hexagent.runtime.bus import Bus, BusOptions
from hexagent.runtime.clock import MAX_TIME_SCALE, ModelClock
from hexagent.runtime.cluster_file import ClusterConfig, load_cluster
from hexagent.runtime.cluster_record import WRITTEN, publish_record
from hexagent.runtime.nats_server import NatsServer
from hexagent.wire.cluster import ClusterRecord

TRACKER: Final = "dag-tracker"
SCHEDULER: Final = "scheduler"
ESTIMATOR: Final = "estimator"
GATEWAY: Final = "gateway"
OPENAI: Final = "openai"  # the gateway's HTTP side
NATS: Final = "nats-server"

_MODULES: Final = {TRACKER: "dag_tracker", SCHEDULER: "scheduler", ESTIMATOR: "estimator"}
_AGENT_MODULE: Final = "worker_agent"
_SERVICE_STOP_GRACE_S: Final = 8.0  # for calls that run when the stack is told to stop


T = TypeVar("T")


class StackOptions(NamedTuple):
    """What a local stack is made from; None and "" leave the cluster file's own value."""

    cluster: str = "demo"  # name of a shipped cluster or path of a cluster file
    policy: str = ""
    data_dir: Path | None = None  # None = a temporary folder, removed at the end
    port: int = 0  # of the dag-tracker, the others follow; 0 = free ones
    time_scale: float | None = None
    seed: int | None = None
    host: str = "127.0.0.1"
    prefix_cache: bool | None = None
    gateway: bool = False  # an OpenAI endpoint too
    trace_file: Path | None = None  # gets the spans of workflows as JSON lines


class LocalStack:
    """Use as `async with`, or `start` and `stop`. `say` gets one line whenever something happens to a process."""

    def __init__(self, options: StackOptions, say: Say) -> None:
        self.config: Final = _configured(options)
        self.policy: Final = _checked_policy(options.policy or self.config.policy, self.config)
        self.record: ClusterRecord = self.config.record(time.time_ns())
        self.addresses: dict[str, str] = {}  # of every process, by name
        self.data_dir: Path = Path()
        self._options = options
        self._say = say
        self._keepers: list[Keeper] = []
        self._temporary = options.data_dir is None

    @property
    def address(self) -> str:
        """Where clients connect to: the dag-tracker."""
        return self.addresses[TRACKER]

    @property
    def clock(self) -> ModelClock:
        """The stack's model clock."""
        return ModelClock(self.record.origin_wall_ns, self.record.time_scale)

    @property
    def pids(self) -> dict[str, int]:
        """Of the processes that serve, by name; those that are being started are not among them."""
        pids = {keeper.name: keeper.process.pid for keeper in self._keepers if keeper.serves}
        return {name: pid for name, pid in pids.items() if pid is not None}

    def cpu_s(self) -> dict[str, float]:
        """Processor time used so far, by name of process; `client` is this one."""
        used = {name: cpu_s(pid) for name, pid in sorted(self.pids.items())}
        return {**used, "client": cpu_s(os.getpid())}

    async def start(self) -> None:
        """Start every process and wait until all are healthy; nothing is left running where that fails."""
        options = self._options
        if options.data_dir is None:
            self.data_dir = Path(tempfile.mkdtemp(prefix="hexagent-"))
        else:
            self.data_dir = writable_folder(options.data_dir)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop in order: no new dispatches, running calls end, state is stored, then the bus."""
        agents = [keeper for keeper in self._keepers if keeper.name not in (*_MODULES, GATEWAY, NATS)]
        named = {keeper.name: keeper for keeper in self._keepers}
        stages = ([GATEWAY], [SCHEDULER], [agent.name for agent in agents], [TRACKER, ESTIMATOR], [NATS])
        for names in stages:
            await asyncio.gather(*(named[name].stop() for name in names if name in named))
        self._keepers.clear()
        if self._temporary and self.data_dir != Path():
            await asyncio.to_thread(shutil.rmtree, self.data_dir, ignore_errors=True)

    async def failed(self) -> None:
        """Raise once a process cannot be kept running; returns never."""
        done, _ = await asyncio.wait([k.lost for k in self._keepers], return_when=asyncio.FIRST_COMPLETED)
        for lost in done:
            lost.result()

    async def __aenter__(self) -> "LocalStack":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        host = self._options.host
        agents = [agent.agent_id for agent in self.config.agents]
        gateway = (GATEWAY,) if self._options.gateway else ()
        names = (*_MODULES, *agents, *gateway)
        listening = (*names, OPENAI) if gateway else names
        ports = assigned(listening, host, self._options.port, self.data_dir / "ports.json")
        self.addresses = {name: f"{host}:{ports[name]}" for name in listening}
        server = NatsServer(self.data_dir / "nats", host)
        await self._keep(NATS, server)
        self.addresses[NATS] = server.url
        await self._publish_record()
        for name in names:
            module = GATEWAY if name == GATEWAY else _MODULES.get(name, _AGENT_MODULE)
            self._keepers.append(Keeper(name, ServiceProcess(self._command(name, module, ports[name])), self._say))
        starts = [asyncio.create_task(keeper.start()) for keeper in self._keepers if keeper.name != NATS]
        done, pending = await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
        for task in pending:  # one has failed; the others are stopped by the caller
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _keep(self, name: str, process: Process) -> None:
        keeper = Keeper(name, process, self._say)
        self._keepers.append(keeper)
        await keeper.start()

    async def _publish_record(self) -> None:
        """Write the cluster record; on a folder that has one, go on with its clock."""
        bus = await Bus.connect(BusOptions(url=self.addresses[NATS], name="stack"))
        try:
            await bus.ensure_streams()
            reachable = tuple(
                spec._replace(address=self.addresses[spec.agent_id]) for spec in self.record.cluster.instances
            )
            record = self.record._replace(cluster=self.record.cluster._replace(instances=reachable))
            done, self.record = await publish_record(bus, record)
            if done != WRITTEN:
                self._say(f"resuming the stack in {self.data_dir}")
        finally:
            await bus.close()

    def _command(self, name: str, module: str, port: int) -> ServiceCommand:
        environ = {
            "HEXAGENT_NATS_URL": self.addresses[NATS],
            "HEXAGENT_LISTEN_HOST": self._options.host,
            "HEXAGENT_LISTEN_PORT": str(port),
            "HEXAGENT_DATA_DIR": str(self.data_dir / name),
            "HEXAGENT_STOP_GRACE_S": str(_SERVICE_STOP_GRACE_S),
        }
        if module == _AGENT_MODULE:
            environ["HEXAGENT_AGENT_ID"] = name
        if name == SCHEDULER:
            environ["HEXAGENT_POLICY"] = self.policy
        if name == TRACKER and self._options.trace_file is not None:
            environ["HEXAGENT_TRACE_FILE"] = str(self._options.trace_file.absolute())
        if (metrics_port := os.environ.get("HEXAGENT_METRICS_PORT", "")).isdecimal() and int(metrics_port):
            # The services inherit the variable, and two of them cannot have one port.
            place = list(_MODULES).index(name) if name in _MODULES else 0
            environ["HEXAGENT_METRICS_PORT"] = str(int(metrics_port) + place)
        if name == GATEWAY:
            environ["HEXAGENT_TRACKER_ADDRESS"] = self.address
            environ["HEXAGENT_HTTP_HOST"], environ["HEXAGENT_HTTP_PORT"] = self.addresses[OPENAI].rsplit(":", 1)
        argv = (sys.executable, "-m", f"hexagent_services.{module}")
        return ServiceCommand(
            name, argv, environ, self.addresses[name], self.data_dir / "logs" / f"{name}.log",
            stop_grace_s=_SERVICE_STOP_GRACE_S + 4.0,
        )  # fmt: skip


def _configured(options: StackOptions) -> ClusterConfig:
    config = load_cluster(options.cluster)
    if options.time_scale is not None:
        if not 0 < options.time_scale <= MAX_TIME_SCALE:
            raise InvalidArgument(
                f"must be above 0 and at most {MAX_TIME_SCALE:g}; got {options.time_scale:g}",
                reason="BAD_OPTION",
                field="time_scale",
            )
        config = config._replace(time_scale=options.time_scale)
    if options.seed is not None:
        config = config._replace(spec=config.spec._replace(seed=options.seed))
    if options.prefix_cache is not None:
        engines = tuple(spec._replace(prefix_cache=options.prefix_cache) for spec in config.spec.instances)
        config = config._replace(spec=config.spec._replace(instances=engines))
    return config


def _checked_policy(name: str, config: ClusterConfig) -> str:
    """`name` if there is such a policy; the scheduler would refuse it only once it runs."""
    policy_by_name(name, Estimator(config.spec))
    return name


async def until_failed(stack: LocalStack, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cut off when a process of the stack cannot be kept running."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(stack.failed())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        return await task
    finally:
        task.cancel()
        watch.cancel()
