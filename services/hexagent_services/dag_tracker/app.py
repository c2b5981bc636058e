"""The tracker put together: rebuilt from its stream, then open to clients."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from hexagent.api.workflow.v1 import workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.core.errors import HexagentError
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.commands import Reconcile, Tick
from hexagent.core.workflow.limits import catalog_of
from hexagent.core.workflow.tracker import Tracker
from hexagent.runtime import subjects
from hexagent.runtime.app import App, Stage
from hexagent.runtime.bus import Bus
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_record import read_cluster_record
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.runtime.logs import fields
from hexagent.runtime.spans import SpanFile, SpanSink
from hexagent.runtime.telemetry import exported_metrics, set_up_telemetry
from hexagent.wire.cluster import ClusterRecord
from hexagent.wire.workflow import event_from_bytes
from hexagent_services.dag_tracker.consumer import ClusterConsumer
from hexagent_services.dag_tracker.effects import EventLog
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.metrics import WorkflowMetrics
from hexagent_services.dag_tracker.observer import Observer
from hexagent_services.dag_tracker.queries import Queries
from hexagent_services.dag_tracker.relay import Relay
from hexagent_services.dag_tracker.retention import Retention, free_bodies, freed_up_to
from hexagent_services.dag_tracker.reveals import Reveals
from hexagent_services.dag_tracker.segments import SegmentStore
from hexagent_services.dag_tracker.servicer import WorkflowServicer
from hexagent_services.dag_tracker.settings import TrackerSettings
from hexagent_services.dag_tracker.spans import SpanMaker
from hexagent_services.dag_tracker.tokens import TokenSource
from hexagent_services.dag_tracker.trail import Trails
from hexagent_services.dag_tracker.usage import Accounts
from hexagent_services.dag_tracker.watch import Watches
from hexagent_services.dag_tracker.writer import Writer

log = logging.getLogger(__name__)

SERVICE: Final = workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"]


async def main(app: App[TrackerSettings]) -> None:
    """Build the service: bus, cluster record, state from the stream, consumers, server, ready.

    Stopping: health fails, watches end with UNAVAILABLE and running RPCs are answered, events are stored, the bus
    is closed. An event that cannot be stored ends the process with status 1 instead.
    """
    settings = app.settings
    bus = await Bus.connect(settings.bus_options())
    app.at_stop(Stage.CLOSE, "bus", bus.close)
    await bus.ensure_streams(settings.stream_limits())
    record = await read_cluster_record(bus, settings.cluster_wait_s)
    clock = ModelClock(record.origin_wall_ns, record.time_scale)

    relay = Relay(settings.relay_limits())
    events = EventLog(bus, relay.show)
    estimates = Estimates(bus, record.cluster)
    limits = settings.limits()
    catalog = catalog_of(record.cluster)
    accounts = Accounts(record.cluster.instances, catalog.tenants)
    observer = observe(app, record, clock, estimates)
    trails = Trails(limits.finished_workflows)
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    grace_us = round(settings.segment_grace_s * US_PER_S * clock.time_scale)
    retention = Retention(grace_us, limits.finished_workflows, await freed_up_to(bucket))
    writer = Writer(Tracker(limits, catalog), trails, events, relay, accounts, retention, estimates, clock, observer)
    await _rebuild(bus, writer)
    app.start(events.run(), "events")
    app.start(observer.run(lambda: writer.tracker.history.live_count), "observer")
    app.at_stop(Stage.FLUSH, "events", events.all_settled)
    writer.do(Reconcile())

    segments = SegmentStore(bus, settings.known_segments_max)
    tokens = TokenSource(bus, relay)
    await tokens.start()
    intake = (
        app.start(ClusterConsumer(bus, writer, segments).run(), "outcomes"),
        app.start(_tick(writer, settings.tick_s), "tick"),
        app.start(free_bodies(retention, segments, events, bucket, clock, settings.tick_s), "bodies"),
    )
    app.at_stop(Stage.INTAKE, "outcomes", lambda: _cancel(intake))

    server = GrpcServer(settings.listen_host, settings.listen_port, [SERVICE])
    servicer = WorkflowServicer(
        writer,
        Reveals(segments, catalog),
        Queries(writer, segments, estimates, clock),
        Watches(writer, relay, tokens, estimates),
        estimates,
        clock,
    )
    workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server(servicer, server.raw)
    port = await server.start()
    app.at_stop(Stage.NOT_READY, "health", lambda: server.set_ready(False))
    app.at_stop(Stage.INTAKE, "watches", relay.close)
    app.at_stop(Stage.DRAIN, "grpc", lambda: server.stop(settings.stop_grace_s))
    await server.set_ready(True)
    app.ready(port)


def observe(app: App[TrackerSettings], record: ClusterRecord, clock: ModelClock, estimates: Estimates) -> Observer:
    """Spans and measurements of what ends, to wherever the settings say."""
    settings = app.settings
    telemetry = set_up_telemetry(
        settings.service, endpoint=settings.otlp_endpoint, sample_ratio=settings.trace_sample_ratio
    )
    sinks: list[SpanSink] = [] if telemetry.spans is None else [telemetry.spans]
    if settings.trace_file is not None:
        sinks.append(SpanFile(settings.trace_file, settings.trace_file_bytes_max, settings.service))
    metrics = exported_metrics(app, telemetry, settings.metrics_port)
    observer = Observer(
        str(record.origin_wall_ns),
        SpanMaker(clock, record.cluster),
        estimates,
        sinks,
        metrics=WorkflowMetrics(metrics) if metrics is not None else None,
        sample_ratio=settings.trace_sample_ratio,
        queue_max=settings.trace_queue_max,
    )
    app.at_stop(Stage.CLOSE, "spans", observer.close)
    return observer


async def _rebuild(bus: Bus, writer: Writer) -> None:
    """Apply every stored event; one that cannot be read is logged and passed over."""
    count = 0
    async with await bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS) as feed:
        async for batch in feed.backlog():
            for message in batch:
                try:
                    writer.replay(event_from_bytes(message.data), message.sequence, message.headers)
                except HexagentError as error:
                    log.error("message %d of the stream is no event: %s", message.sequence, error)
            count += len(batch)
    log.info("rebuilt", extra=fields(events=count, workflows=len(writer.tracker.history.workflow_ids())))


async def _tick(writer: Writer, period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)
        writer.do(Tick())


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End tasks whose unfinished work is delivered again at the next start."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
