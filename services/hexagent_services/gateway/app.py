"""Composition root of the gateway."""

import time
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from hexagent.api.workflow.v1 import workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.core.errors import InvalidArgument, Unavailable
from hexagent.runtime.app import App, Stage
from hexagent.runtime.bus import Bus
from hexagent.runtime.cluster_record import read_cluster_record
from hexagent.runtime.grpc_client import open_channel
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.wire.cluster import ClusterRecord
from hexagent_services.gateway.chat import Models
from hexagent_services.gateway.endpoint import ChatEndpoint, RequestLimits
from hexagent_services.gateway.failures import Failures
from hexagent_services.gateway.http import Pages, http_app
from hexagent_services.gateway.server import HttpServer, ServerLimits
from hexagent_services.gateway.sessions import Sessions
from hexagent_services.gateway.settings import GatewaySettings
from hexagent_services.gateway.workflow import Tracker

SERVICE: Final = workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"]
READY_CHECK_S: Final = 1.0


async def main(app: App[GatewaySettings]) -> None:
    """Build the service: cluster record, tracker, sessions, HTTP, health, ready.

    Stopping: not ready and no new requests, then those in progress end, then the connections. Sessions outlive the
    process: their workflows go on with the next request, here or at another gateway.
    """
    settings = app.settings
    record = await _cluster_record(settings)
    failures = Failures(record.time_scale, settings.retry_after_s)
    models = models_of(record, settings)

    channel = open_channel(
        settings.tracker_address,
        SERVICE,
        deadline_s=settings.rpc_deadline_s,
        no_retry=[method.name for method in SERVICE.methods],  # `send` repeats them
    )
    app.at_stop(Stage.CLOSE, "channel", channel.close)
    stub = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
    tracker = Tracker(stub, settings.tracker_patience_s, settings.rpc_deadline_s)
    sessions = Sessions(tracker, settings.session_limits(), time.monotonic)
    app.at_stop(Stage.FLUSH, "sessions", sessions.close)
    app.start(sessions.sweep(), "idle sessions")

    chat = ChatEndpoint(sessions, models, _request_limits(settings), failures)
    pages = Pages(chat, models, failures, record.origin_wall_ns // 10**9, lambda: _serves(channel))
    server = HttpServer(
        http_app(chat, pages),
        settings.http_host,
        settings.http_port,
        ServerLimits(settings.connections_max, settings.stop_grace_s),
    )
    http_port = server.bind()
    app.start(server.serve(), "http")
    app.at_stop(Stage.DRAIN, "http", server.stop)
    await server.listening()

    health = GrpcServer(settings.listen_host, settings.listen_port, [])
    port = await health.start()
    app.at_stop(Stage.CLOSE, "health", lambda: health.stop(0))

    async def not_ready() -> None:
        chat.stopping = True
        await health.set_ready(False)

    app.at_stop(Stage.NOT_READY, "health", not_ready)
    await health.set_ready(True)
    app.ready(port, http_port=http_port)


def models_of(record: ClusterRecord, settings: GatewaySettings) -> Models:
    """What requests may name. `InvalidArgument` (UNKNOWN_MODEL) where the default is none of them."""
    names = tuple(sorted({instance.model for instance in record.cluster.instances}))
    default = settings.default_model or (names[0] if len(names) == 1 else "")
    served = sorted({(instance.model, lora.name) for instance in record.cluster.instances for lora in instance.loras})
    adapters = {f"{model}:{lora}": (model, lora) for model, lora in served}
    texts = {text.model: text for text in record.cluster.texts}
    models = Models(names, default, settings.default_max_tokens, texts, adapters)
    if default and default not in models.known:
        raise InvalidArgument(
            f"default_model: the cluster has {', '.join(models.known)}; got {default!r}",
            reason="UNKNOWN_MODEL",
            field="default_model",
        )
    return models


async def _cluster_record(settings: GatewaySettings) -> ClusterRecord:
    """What the stack is made of, which does not change while it runs.

    Streams and buckets are made by the services that write to them; until there are any, this waits.
    """
    end_s = time.monotonic() + settings.cluster_wait_s
    async with await Bus.connect(settings.bus_options()) as bus:
        while True:
            try:
                return await read_cluster_record(bus, max(0.0, end_s - time.monotonic()))
            except Unavailable:
                if time.monotonic() >= end_s:
                    raise


def _request_limits(settings: GatewaySettings) -> RequestLimits:
    return RequestLimits(
        body_bytes=settings.body_bytes_max,
        requests=settings.requests_max,
        timeout_s=settings.request_timeout_s,
        stream_headers_s=settings.stream_headers_s,
        keep_alive_s=settings.keep_alive_s,
    )


async def _serves(channel: grpc.aio.Channel) -> bool:
    """Whether the tracker says that it serves."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer = await check(health_pb2.HealthCheckRequest(), timeout=READY_CHECK_S)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
