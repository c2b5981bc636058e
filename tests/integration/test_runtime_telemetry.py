"""Telemetry arrives at a receiver in this process, and costs nothing without one."""

import asyncio
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from hexagent.runtime.telemetry import set_up_telemetry

pytestmark = pytest.mark.integration


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []  # service, span

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans += [(service, span.name) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_are_exported_under_the_service_name() -> None:
    receiver = Receiver()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    telemetry = set_up_telemetry("probe", "p-1", f"127.0.0.1:{port}")
    with telemetry.tracer.start_as_current_span("prefill"):
        pass
    await telemetry.shut_down()
    await server.stop(0)
    assert receiver.spans == [("probe", "prefill")]


async def test_nothing_is_recorded_without_an_endpoint() -> None:
    telemetry = set_up_telemetry("probe")
    with telemetry.tracer.start_as_current_span("prefill") as span:
        assert not span.is_recording()
    telemetry.meter.create_counter("calls").add(1)
    await telemetry.shut_down()


async def test_a_receiver_that_is_not_there_holds_nothing_up() -> None:
    telemetry = set_up_telemetry("probe", endpoint="127.0.0.1:1")
    with telemetry.tracer.start_as_current_span("prefill"):
        pass
    await asyncio.wait_for(telemetry.shut_down(), 20)
