"""Composition root of the estimator."""

import asyncio
import logging
from typing import Final

from hexagent.api.estimator.v1 import estimator_service_pb2, estimator_service_pb2_grpc
from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.calibration import Calibration
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.learner import Learner
from hexagent.core.units import PPM, US_PER_S
from hexagent.runtime import subjects
from hexagent.runtime.app import App, Stage
from hexagent.runtime.bus import Bus, Feed, Message
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_record import read_cluster_record
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.runtime.metrics import Metrics
from hexagent.runtime.telemetry import exported_metrics, set_up_telemetry
from hexagent.wire.estimator import fitting, snapshot_from_bytes
from hexagent.wire.scheduler import records_from_bytes
from hexagent.wire.telemetry import telemetry_from_bytes
from hexagent.wire.workflow import event_from_bytes
from hexagent_services.estimator.residuals import Residuals
from hexagent_services.estimator.servicer import EstimatorServicer
from hexagent_services.estimator.settings import EstimatorSettings

log = logging.getLogger(__name__)

METRICS_PERIOD_S: Final = 1.0  # of wall time
FORESEE_PERIOD_S: Final = 0.2  # of wall time
HEARD_S: Final = 0.5  # of wall time, after which decisions and polled events have arrived


async def main(app: App[EstimatorSettings]) -> None:
    settings = app.settings
    bus = await Bus.connect(settings.bus_options())
    app.at_stop(Stage.CLOSE, "bus", bus.close)
    await bus.ensure_streams(settings.stream_limits())
    record = await read_cluster_record(bus, settings.nats_connect_s)
    clock = ModelClock(record.origin_wall_ns, record.time_scale)
    estimator = Estimator(record.cluster)
    calibration = Calibration(estimator)
    several_models = len(record.cluster.models) > 1
    residuals = Residuals(record.cluster, estimator)
    learner = Learner(record.cluster.tables, await _last_revision(bus), several_models)
    for spec in record.cluster.instances:
        learner.describe_instance(spec)

    server = GrpcServer(
        settings.listen_host,
        settings.listen_port,
        [estimator_service_pb2.DESCRIPTOR.services_by_name["EstimatorService"]],
    )
    estimator_service_pb2_grpc.add_EstimatorServiceServicer_to_server(
        EstimatorServicer(record.cluster, estimator, calibration, residuals), server.raw
    )
    port = await server.start()
    app.at_stop(Stage.NOT_READY, "health", lambda: server.set_ready(False))
    app.at_stop(Stage.CLOSE, "server", lambda: server.stop(settings.stop_grace_s))

    refused: set[str] = set()  # instances whose reports were; said once each

    def on_telemetry(message: Message) -> None:
        for report in telemetry_from_bytes(message.data):
            try:
                learner.observe_telemetry(report.telemetry, clock.now_us())
            except InvalidArgument as error:
                if report.telemetry.instance_id not in refused:
                    refused.add(report.telemetry.instance_id)
                    log.warning("not learned from: %s", error)

    def on_decisions(message: Message) -> None:
        for decision in records_from_bytes(message.data).records:
            residuals.decided(decision)

    await bus.subscribe_core(subjects.ALL_TELEMETRY, on_telemetry)
    await bus.subscribe_core(subjects.DECISION, on_decisions)
    feed = await bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS, poll_s=settings.snapshot_period_s)
    lag_us = round((settings.snapshot_period_s + HEARD_S) * US_PER_S * record.time_scale)
    async for batch in feed.backlog():
        _learn(learner, residuals, batch)
        residuals.advance(clock.now_us() - lag_us)
    learner.calibration = calibration  # of what was predicted before this start nothing is known
    observe(app, calibration)
    app.start(_follow(learner, residuals, feed), "workflow events")
    app.start(_publish(bus, learner, estimator, residuals, clock, settings.snapshot_period_s), "snapshots")
    app.start(_foresee(residuals, clock, lag_us), "residual times")
    await server.set_ready(True)
    app.ready(port)


def observe(app: App[EstimatorSettings], calibration: Calibration) -> None:
    """Show how predictions compare with what happens to wherever the settings say."""
    telemetry = set_up_telemetry(app.settings.service, endpoint=app.settings.otlp_endpoint)
    metrics = exported_metrics(app, telemetry, app.settings.metrics_port)
    if metrics is not None:
        app.start(_show(metrics, calibration), "metrics")


async def _show(metrics: Metrics, calibration: Calibration) -> None:
    labels = ("hexagent.quantity", "hexagent.subject")
    bias = metrics.gauge("hexagent.estimator.bias", "Measured over predicted, mean of the latest.", labels)
    error = metrics.gauge("hexagent.estimator.error", "Error of predictions by what was measured, mean.", labels)
    while True:
        for row in calibration.rows():
            bias.set(row.bias_ppm / PPM, row.quantity, row.subject)
            error.set(row.error_ppm / PPM, row.quantity, row.subject)
        await asyncio.sleep(METRICS_PERIOD_S)


async def _last_revision(bus: Bus) -> int:
    """Revisions grow over restarts: schedulers ignore a snapshot that is not newer than theirs."""
    entry = await bus.bucket(subjects.SNAPSHOT_BUCKET).get(subjects.SNAPSHOT_KEY)
    return snapshot_from_bytes(entry.value).revision if entry is not None and entry.value is not None else 0


def _learn(learner: Learner, residuals: Residuals, batch: list[Message]) -> None:
    for message in batch:
        event = event_from_bytes(message.data).event
        learner.observe_event(event)
        residuals.observe(event)


async def _follow(learner: Learner, residuals: Residuals, feed: Feed) -> None:
    async for batch in feed:
        _learn(learner, residuals, batch)


async def _foresee(residuals: Residuals, clock: ModelClock, lag_us: int) -> None:
    while True:
        residuals.advance(clock.now_us() - lag_us)
        await asyncio.sleep(FORESEE_PERIOD_S)


async def _publish(
    bus: Bus, learner: Learner, estimator: Estimator, residuals: Residuals, clock: ModelClock, period_s: float
) -> None:
    """Put a snapshot into its bucket whenever something was learned, and from time to time, until cancelled."""
    bucket = bus.bucket(subjects.SNAPSHOT_BUCKET)
    cut = False
    while True:
        await asyncio.sleep(period_s)
        snapshot = learner.snapshot(clock.now_us())
        if snapshot is not None:
            fitted, data = fitting(snapshot)
            if fitted is not snapshot and not cut:
                cut = True  # said once
                log.warning("revision %d is larger than a snapshot may be: what is known least goes", snapshot.revision)
            estimator.update(fitted)
            residuals.price_anew()
            await bucket.put(subjects.SNAPSHOT_KEY, data)
