"""Composition root of a worker-agent."""

import asyncio
from collections.abc import Callable
from typing import Final

from hexagent.api.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, InstanceSpec
from hexagent.runtime import subjects
from hexagent.runtime.app import App, Stage
from hexagent.runtime.bus import Bus
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_record import read_cluster_record
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.runtime.kv import KvBucket
from hexagent.wire.cluster import ClusterRecord
from hexagent.wire.telemetry import announcement_from_bytes, announcement_to_bytes
from hexagent_services.worker_agent.agent import Agent
from hexagent_services.worker_agent.attempts import Attempts
from hexagent_services.worker_agent.devices import find_devices
from hexagent_services.worker_agent.engine.emulated import EmulatedEngine
from hexagent_services.worker_agent.engine.faults import Fault, FaultyEngine, parse_faults
from hexagent_services.worker_agent.engine.model_text import TextThreads, load_texts
from hexagent_services.worker_agent.engine.port import Engine
from hexagent_services.worker_agent.engine.supervision import Quarantine, Supervisor
from hexagent_services.worker_agent.engines_file import EngineTable, read_engines_file, real_engine
from hexagent_services.worker_agent.peers import Peers
from hexagent_services.worker_agent.reporting import report_telemetry
from hexagent_services.worker_agent.reports import Reports
from hexagent_services.worker_agent.requests import BodyCache
from hexagent_services.worker_agent.results import Results
from hexagent_services.worker_agent.servicer import WorkerServicer
from hexagent_services.worker_agent.settings import WorkerAgentSettings
from hexagent_services.worker_agent.warm_up import WarmUps

FIRST_STARTS_S: Final = 10.0  # wall time; an agent is there without the engines that take longer


async def main(app: App[WorkerAgentSettings]) -> None:
    settings = app.settings
    bus = await Bus.connect(settings.bus_options(settings.agent_id))
    app.at_stop(Stage.CLOSE, "bus", bus.close)
    await bus.ensure_streams(settings.stream_limits())
    record = await read_cluster_record(bus, settings.nats_connect_s)
    clock = ModelClock(record.origin_wall_ns, record.time_scale)

    server = GrpcServer(
        settings.listen_host,
        settings.listen_port,
        [worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]],
    )
    # The address is part of every instance's description, so the port has to be known before the servicer is.
    servicer = WorkerServicer(clock)
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server.raw)
    port = await server.start()
    app.at_stop(Stage.NOT_READY, "health", lambda: server.set_ready(False))
    app.at_stop(Stage.CLOSE, "server", lambda: server.stop(settings.stop_grace_s))
    address = settings.advertised(port)

    configured = _instances(record, settings.agent_id, address)
    cluster = bus.bucket(subjects.CLUSTER_BUCKET)
    instances = await _as_left(cluster, settings.agent_id, configured)
    tables = _engine_tables(settings, instances, record)
    devices = find_devices(instances, tables)
    app.at_stop(Stage.CLOSE, "devices", devices.close)
    engines = _engines(app, instances, tables, record, clock)
    for engine in engines.values():
        app.at_stop(Stage.CLOSE, "engine", engine.close)
    bodies, peers, reports = BodyCache(bus), Peers(), Reports()
    warm_ups = WarmUps({name: engines[name] for name in tables}, peers, clock, address)
    app.at_stop(Stage.CLOSE, "peers", peers.close)
    results = Results(bus, bodies, settings.agent_id)
    attempts = Attempts(engines, bodies, peers, results, reports, clock, warm_ups, address)
    changed = asyncio.Event()  # some engine came or went

    def tell(spec: InstanceSpec, cause: str) -> None:
        reports.instance(spec, clock.now_us(), cause, warm_ups.cut_off(spec.instance_id))
        changed.set()

    supervisors = await _supervised(app, engines, tell)
    roles = {spec.instance_id: spec.role for spec in configured}
    agent = Agent(settings.agent_id, address, supervisors, roles, attempts, warm_ups, reports, clock)
    servicer.serve(agent)

    app.at_stop(Stage.INTAKE, "intake", agent.drain)
    app.at_stop(Stage.DRAIN, "attempts", attempts.drained)
    app.at_stop(Stage.FLUSH, "outcomes", bus.flush)
    app.start(devices.run(), "devices")
    period_s = settings.telemetry_period_s
    telemetry = report_telemetry(settings.agent_id, supervisors, devices, warm_ups.links_of, bus, clock, period_s)
    app.start(telemetry, "telemetry")
    await _announce(cluster, agent, changed)
    app.start(_announce_changes(cluster, agent, changed), "announcements")
    if tables:
        app.start(warm_ups.run(await cluster.watch(subjects.ALL_AGENTS_KEY), agent.report), "warm-up")
    await server.set_ready(True)
    app.ready(port, agent_id=settings.agent_id, instances=len(instances))


async def _announce(cluster: KvBucket, agent: Agent, changed: asyncio.Event) -> None:
    changed.clear()
    await cluster.put(subjects.agent_key(agent.agent_id), announcement_to_bytes(agent.announcement()))


async def _announce_changes(cluster: KvBucket, agent: Agent, changed: asyncio.Event) -> None:
    """Links that were warm are not with another engine at one of their ends, so all agents have to know."""
    while True:
        await changed.wait()
        await _announce(cluster, agent, changed)


async def _supervised(
    app: App[WorkerAgentSettings], engines: dict[str, Engine], changed: Callable[[InstanceSpec, str], None]
) -> dict[str, Supervisor]:
    """Every engine with who keeps it running, after a first try to start it where that does not take long."""
    settings = app.settings
    quarantine = Quarantine(settings.quarantine_failures, settings.quarantine_within_s, settings.quarantine_s)
    supervisors = {name: Supervisor(engine, changed, quarantine) for name, engine in engines.items()}
    for instance_id, supervisor in supervisors.items():
        app.start(supervisor.run(), f"engine of {instance_id}")
    tried = [asyncio.create_task(supervisor.tried.wait()) for supervisor in supervisors.values()]
    await asyncio.wait(tried, timeout=FIRST_STARTS_S)
    for waiting in tried:
        waiting.cancel()
    return supervisors


def _instances(record: ClusterRecord, agent_id: str, address: str) -> tuple[InstanceSpec, ...]:
    """The cluster's instances that this agent hosts, reachable at its address."""
    mine = tuple(i._replace(address=address) for i in record.cluster.instances if i.agent_id == agent_id)
    if not mine:
        known = ", ".join(sorted({i.agent_id for i in record.cluster.instances}))
        raise InvalidArgument(
            f"cluster {record.name!r} has no instance for agent {agent_id!r}; its agents: {known}",
            reason="UNKNOWN_AGENT",
            field="HEXAGENT_AGENT_ID",
        )
    return mine


async def _as_left(cluster: KvBucket, agent_id: str, configured: tuple[InstanceSpec, ...]) -> tuple[InstanceSpec, ...]:
    """The instances in the roles that this agent has announced last, where these are not the configured ones."""
    entry = await cluster.get(subjects.agent_key(agent_id))
    if entry is None or entry.value is None:
        return configured
    last = announcement_from_bytes(entry.value)
    roles = {spec.instance_id: spec.role for spec in last.instances if spec.instance_id in last.flipped}
    return tuple(spec._replace(role=roles.get(spec.instance_id, spec.role)) for spec in configured)


def _engine_tables(
    settings: WorkerAgentSettings, instances: tuple[InstanceSpec, ...], record: ClusterRecord
) -> dict[str, EngineTable]:
    """How the real engines are started, as the file beside the agent says.

    `InvalidArgument` (BAD_TIME_SCALE) for any in a stack whose clock does not run as wall time does.
    """
    tables = read_engines_file(settings.engines_file, instances) if settings.engines_file is not None else {}
    if tables and record.time_scale != 1:
        raise InvalidArgument(
            f"real engines need time_scale 1; the cluster's is {record.time_scale:g}",
            reason="BAD_TIME_SCALE",
            field="time_scale",
        )
    return tables


def _engines(
    app: App[WorkerAgentSettings],
    instances: tuple[InstanceSpec, ...],
    tables: dict[str, EngineTable],
    record: ClusterRecord,
    clock: ModelClock,
) -> dict[str, Engine]:
    """An engine for each instance: real ones where there is a table, the others emulated."""
    settings = app.settings
    threads = TextThreads()
    app.at_stop(Stage.CLOSE, "text", threads.close)
    models = sorted({spec.model for spec in instances if spec.instance_id in tables})
    texts = load_texts(record.cluster, models, threads)
    faults = parse_faults(settings.faults)
    engines: dict[str, Engine] = {}
    for spec in instances:
        table = tables.get(spec.instance_id)
        if table is not None:
            engines[spec.instance_id] = real_engine(spec, table, texts, clock, settings.data_dir / "engines")
        else:
            engines[spec.instance_id] = _emulated(app, spec, record, clock, faults)
    return engines


def _emulated(
    app: App[WorkerAgentSettings],
    spec: InstanceSpec,
    record: ClusterRecord,
    clock: ModelClock,
    faults: tuple[Fault, ...],
) -> Engine:
    table = table_of(spec, record.cluster.tables)
    truth = Truth.drawn(record.cluster, spec.instance_id)
    model = InstanceModel(spec, PROFILES[spec.profile], table, table.kv_bytes_per_token, truth)
    engine = EmulatedEngine(spec, model, clock, table.kv_bytes_per_token, round(1 / record.kv_byte_scale))
    if not faults:
        return engine
    faulty = FaultyEngine(engine, faults, truth, clock)
    app.start(faulty.run(), f"faults of {spec.instance_id}")
    return faulty
