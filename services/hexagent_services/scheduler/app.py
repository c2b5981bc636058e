"""Composition root of the scheduler."""

import asyncio
import logging
import uuid
from pathlib import Path

from hexagent import __version__
from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.api.worker.v1 import worker_service_pb2 as worker_pb
from hexagent.core.errors import Aborted, AlreadyExists, HexagentError, InvalidArgument
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.policy.profile import DEFAULT, Profile, parse_profile
from hexagent.core.policy.registry import policy_by_name
from hexagent.core.scheduling.core import TICK_US, SchedulerCore
from hexagent.core.scheduling.events import Started, Tick
from hexagent.core.scheduling.shadows import SHADOWS_MAX
from hexagent.core.units import US_PER_S
from hexagent.runtime import subjects
from hexagent.runtime.app import App, Stage
from hexagent.runtime.bus import Bus, Feed, Message
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_record import read_cluster_record
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.runtime.journal import JournalWriter
from hexagent.runtime.kv import KvEntry, KvWatch
from hexagent.runtime.telemetry import exported_metrics, set_up_telemetry
from hexagent.wire.cluster import ClusterRecord
from hexagent.wire.estimator import snapshot_from_bytes
from hexagent.wire.journal import JournalHeader
from hexagent.wire.telemetry import announcement_from_bytes, telemetry_from_bytes
from hexagent.wire.workflow import event_from_bytes
from hexagent_services.scheduler.agents import AgentLink
from hexagent_services.scheduler.driver import Driver
from hexagent_services.scheduler.metrics import ClusterMetrics
from hexagent_services.scheduler.outbox import Outboxes
from hexagent_services.scheduler.publisher import Publisher
from hexagent_services.scheduler.reported import Reports
from hexagent_services.scheduler.servicer import SchedulerServicer
from hexagent_services.scheduler.settings import SchedulerSettings
from hexagent_services.scheduler.traces import Traces

log = logging.getLogger(__name__)

EPOCH_KEY = "scheduler.epoch"
FLUSH_S = 0.25  # wall time between two writes of the journal


async def main(app: App[SchedulerSettings]) -> None:
    settings = app.settings
    bus = await Bus.connect(settings.bus_options())
    app.at_stop(Stage.CLOSE, "bus", bus.close)
    await bus.ensure_streams(settings.stream_limits())
    record = await read_cluster_record(bus, settings.nats_connect_s)
    clock = ModelClock(record.origin_wall_ns, record.time_scale)
    profile = read_profile(settings.profile) if settings.profile else DEFAULT
    # What is stuck or stale is a matter of wall time: the services' own delays count `time_scale`-fold in model time.
    of_wall = ("stuck_us", "suspect_us", "snapshot_stale_us")
    profile = profile._replace(
        **{name: round(getattr(profile, name) * max(record.time_scale, 1.0)) for name in of_wall}
    )
    shadows = shadow_policies(settings, record.cluster, profile)
    core = SchedulerCore(record.cluster, settings.policy, profile, shadows, shadow_every=settings.shadow_every)
    epoch = await next_epoch(bus)
    scheduler_id = f"scheduler-{epoch}-{uuid.uuid4().hex[:8]}"
    publisher, outboxes = Publisher(bus, scheduler_id, epoch), Outboxes()
    journal = open_journal(settings, JournalHeader(settings.policy, record.cluster, __version__, profile), epoch)
    app.at_stop(Stage.CLOSE, "journal", journal.close)
    traces = Traces()
    driver = Driver(core, clock, outboxes, publisher, journal, traces)
    reports = Reports()
    observe(app, core, reports, clock)

    server = GrpcServer(
        settings.listen_host,
        settings.listen_port,
        [scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"]],
    )
    servicer = SchedulerServicer(driver, publisher, reports, clock)
    scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(servicer, server.raw)
    port = await server.start()
    app.at_stop(Stage.NOT_READY, "health", lambda: server.set_ready(False))
    app.at_stop(Stage.FLUSH, "records", publisher.flush)
    app.at_stop(Stage.CLOSE, "server", lambda: server.stop(settings.stop_grace_s))

    def on_telemetry(message: Message) -> None:
        for report in telemetry_from_bytes(message.data):
            reports.take(report)

    feed = await bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS)
    async for batch in feed.backlog():
        _take_events(driver, traces, batch, caught_up=False)
    app.start(_follow_snapshots(bus, driver), "snapshots")
    await bus.subscribe_core(subjects.ALL_TELEMETRY, on_telemetry)
    app.start(publisher.run(), "publisher")
    agents = Agents(app, record, driver, outboxes, clock, epoch, scheduler_id)
    await agents.start(await bus.bucket(subjects.CLUSTER_BUCKET).watch(subjects.ALL_AGENTS_KEY))
    driver.handle(Started(epoch, clock.now_us()))
    app.start(_follow_events(driver, traces, feed), "workflow events")
    app.start(_tick(driver, clock), "ticks")
    app.start(_flush(journal), "journal")
    await server.set_ready(True)
    app.ready(port, epoch=epoch, policy=settings.policy)


def observe(app: App[SchedulerSettings], core: SchedulerCore, reports: Reports, clock: ModelClock) -> None:
    """Show queues and instances to wherever the settings say."""
    settings = app.settings
    telemetry = set_up_telemetry(settings.service, endpoint=settings.otlp_endpoint)
    metrics = exported_metrics(app, telemetry, settings.metrics_port)
    if metrics is not None:
        app.start(ClusterMetrics(metrics, core, reports, clock).run(), "metrics")


def open_journal(settings: SchedulerSettings, header: JournalHeader, epoch: int) -> JournalWriter:
    """The journal of this start; of earlier ones the newest stay."""
    folder = settings.data_dir / "journal"
    earlier = sorted(folder.glob("scheduler-*.journal"))
    for path in earlier[: max(0, len(earlier) - settings.journals_kept)]:
        path.unlink(missing_ok=True)
    return JournalWriter(folder / f"scheduler-{epoch:08d}.journal", header, settings.journal_bytes_max)


def shadow_policies(
    settings: SchedulerSettings, cluster: ClusterSpec, profile: Profile
) -> tuple[tuple[str, Profile], ...]:
    """Different ones with the profile each plans by; the error for one that cannot be names the setting."""
    names = dict.fromkeys(name.strip() for name in settings.shadow_policies.split(",") if name.strip())
    if len(names) > SHADOWS_MAX:
        raise InvalidArgument(
            f"names {len(names)} policies, more than {SHADOWS_MAX}", reason="BAD_SETTINGS", field="shadow_policies"
        )
    estimator = Estimator(cluster)
    try:
        return tuple([(policy_by_name(name, estimator, profile).name, profile) for name in names])
    except HexagentError as error:
        error.field = "shadow_policies"
        raise


def read_profile(path: Path) -> Profile:
    """`InvalidArgument` (NO_PROFILE, BAD_PROFILE) names the file and what is wrong with it."""
    try:
        return parse_profile(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error}", reason="NO_PROFILE", field="profile") from error


async def next_epoch(bus: Bus) -> int:
    """A number larger than any scheduler of this stack has had; racing starts get different ones."""
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    while True:
        entry = await bucket.get(EPOCH_KEY)
        epoch = int(entry.value) + 1 if entry is not None and entry.value else 1
        try:
            if entry is None:
                await bucket.create(EPOCH_KEY, str(epoch).encode())
            else:
                await bucket.update(EPOCH_KEY, str(epoch).encode(), entry.revision)
        except (Aborted, AlreadyExists):
            continue
        return epoch


class Agents:
    """A link to every agent that has announced itself."""

    def __init__(
        self,
        app: App[SchedulerSettings],
        record: ClusterRecord,
        driver: Driver,
        outboxes: Outboxes,
        clock: ModelClock,
        epoch: int,
        scheduler_id: str,
    ) -> None:
        self._app = app
        self._driver = driver
        self._outboxes = outboxes
        self._clock = clock
        self._hello = worker_pb.Hello(
            epoch=epoch,
            scheduler_id=scheduler_id,
            origin_wall_ns=record.origin_wall_ns,
            time_scale=record.time_scale,
        )
        self._links: dict[str, tuple[AgentLink, asyncio.Task[None]]] = {}

    async def start(self, watch: KvWatch) -> None:
        """Link the agents there are and wait until each answered or is declared dead; then follow newcomers."""
        async for entry in watch.backlog():
            self._announced(entry)
        links = [link for link, _ in self._links.values()]
        await asyncio.gather(*(link.settled.wait() for link in links))
        self._app.start(self._follow(watch), "agents")

    async def _follow(self, watch: KvWatch) -> None:
        async for entry in watch:
            self._announced(entry)

    def _announced(self, entry: KvEntry) -> None:
        if entry.value is None:
            return
        announcement = announcement_from_bytes(entry.value)
        known = self._links.get(announcement.agent_id)
        if known is not None:
            if known[0].address == announcement.address:
                return
            known[1].cancel()  # it came back elsewhere
        link = AgentLink(announcement, self._hello, self._driver, self._outboxes.of(announcement.agent_id), self._clock)
        task = self._app.start(link.run(self._app.settings.agent_dead_after_s), f"agent {announcement.agent_id}")
        self._links[announcement.agent_id] = (link, task)


def _take_events(driver: Driver, traces: Traces, batch: list[Message], *, caught_up: bool) -> None:
    for message in batch:
        event = event_from_bytes(message.data).event
        traces.note(event, message.headers)
        # Stored events are dated by when they happened, so that calls keep their order of readiness.
        driver.handle(event, None if caught_up else event.at_us, message.data)


async def _follow_events(driver: Driver, traces: Traces, feed: Feed) -> None:
    async for batch in feed:
        _take_events(driver, traces, batch, caught_up=True)


async def _follow_snapshots(bus: Bus, driver: Driver) -> None:
    watch = await bus.bucket(subjects.SNAPSHOT_BUCKET).watch(subjects.SNAPSHOT_KEY)
    async for entry in watch:
        if entry.value is not None:
            driver.handle(snapshot_from_bytes(entry.value))


async def _tick(driver: Driver, clock: ModelClock) -> None:
    estimator = driver.core.estimator
    while True:
        await asyncio.sleep(TICK_US / US_PER_S)
        stale = estimator.stale
        driver.handle(Tick(clock.now_us()))
        if estimator.stale and not stale:
            log.warning(
                "no snapshot since revision %d: instances are priced by tables alone", estimator.snapshot.revision
            )


async def _flush(journal: JournalWriter) -> None:
    while True:
        await asyncio.sleep(FLUSH_S)
        journal.flush()
