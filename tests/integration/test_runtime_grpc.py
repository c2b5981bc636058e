"""Server and client of the chassis against each other on port 0."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.api.worker.v1 import worker_service_pb2_grpc as stubs
from hexagent.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    HexagentError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from hexagent.runtime import grpc_server
from hexagent.runtime.grpc_client import await_ready, open_channel, typed_errors
from hexagent.runtime.grpc_server import LEAST_CLIENT_PING_MS, GrpcServer, guarded
from hexagent.runtime.streams import MESSAGE_BYTES_MAX

pytestmark = pytest.mark.integration

SERVICE = pb.DESCRIPTOR.services_by_name["WorkerService"]
Context = grpc.aio.ServicerContext[Any, Any]


@guarded
class Worker(stubs.WorkerServiceServicer):
    """Does what the request's reason says."""

    def __init__(self) -> None:
        self.calls = 0

    async def AbortCall(self, request: pb.AbortCallRequest, context: Context) -> pb.AbortCallResponse:
        self.calls += 1
        match request.reason:
            case "typed":
                raise FailedPrecondition("gone", reason="CALL_ENDED", field="ticket", details={"attempt": "3"})
            case "bug":
                raise KeyError("a secret of the implementation")
            case "own":
                await context.abort(grpc.StatusCode.DATA_LOSS, "as the method says")
            case "busy" if self.calls < 3:
                raise Unavailable("starting", reason="STARTING")
            case "hang":
                await asyncio.sleep(60)
            case "slow":
                await asyncio.sleep(0.3)
        return pb.AbortCallResponse()

    async def PullKv(
        self, request_iterator: AsyncIterator[pb.PullKvRequest], context: Context
    ) -> AsyncIterator[pb.PullKvResponse]:
        request = await anext(request_iterator)
        yield pb.PullKvResponse(data=b"x" * 10)
        if request.from_instance == "big":
            yield pb.PullKvResponse(data=bytes(MESSAGE_BYTES_MAX + 1))
        raise InvalidArgument("no such KV", reason="NO_KV", field="from_instance")


class Stack:
    def __init__(self, server: GrpcServer, worker: Worker, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.worker = worker
        self.channel = channel
        self.stub: stubs.WorkerServiceAsyncStub = stubs.WorkerServiceStub(channel)

    async def abort(self, reason: str, timeout: float | None = None) -> None:
        with typed_errors():
            await self.stub.AbortCall(pb.AbortCallRequest(reason=reason), timeout=timeout)


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    """A worker service and a client whose unary RPCs have 1 s."""
    server = GrpcServer("127.0.0.1", 0, [SERVICE])
    worker = Worker()  # type: ignore[abstract]  # the other methods are not called
    stubs.add_WorkerServiceServicer_to_server(worker, server.raw)
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}", SERVICE, deadline_s=1.0) as channel:
        await await_ready(channel, server.host, 5)
        yield Stack(server, worker, channel)
    await server.stop(0)


async def _health(channel: grpc.aio.Channel, service: str) -> health_pb2.HealthCheckResponse:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return await check(health_pb2.HealthCheckRequest(service=service), timeout=5)


async def test_clients_may_ping_as_often_as_the_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet stream lives on. gRPC itself disconnects a client at its fourth ping within minutes."""
    options = [(name, 50 if value == LEAST_CLIENT_PING_MS else value) for name, value in grpc_server._OPTIONS]
    monkeypatch.setattr(grpc_server, "_OPTIONS", tuple(options))
    server = GrpcServer("127.0.0.1", 0, [SERVICE])
    stubs.add_WorkerServiceServicer_to_server(Worker(), server.raw)  # type: ignore[abstract]
    port = await server.start()
    pinging = (("grpc.keepalive_time_ms", 1_000), ("grpc.http2.max_pings_without_data", 0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=pinging) as channel:
        stub: stubs.WorkerServiceAsyncStub = stubs.WorkerServiceStub(channel)
        with pytest.raises(DeadlineExceeded), typed_errors():
            await stub.AbortCall(pb.AbortCallRequest(reason="hang"), timeout=7)
    await server.stop(0)


async def test_health_follows_readiness(stack: Stack) -> None:
    for ready, status in ((False, "NOT_SERVING"), (True, "SERVING"), (False, "NOT_SERVING")):
        await stack.server.set_ready(ready)
        for service in ("", SERVICE.full_name):
            answer = await _health(stack.channel, service)
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await _health(stack.channel, "no.such.Service")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_describes_the_services(stack: Stack) -> None:
    def look() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{stack.server.port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(SERVICE.full_name)
            return list(database.get_services()), [service.name for service in file.service]

    services, names = await asyncio.to_thread(look)
    assert SERVICE.full_name in services
    assert "grpc.health.v1.Health" in services
    assert names == ["WorkerService"]


async def test_a_typed_error_arrives_as_it_was_raised(stack: Stack) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        await stack.abort("typed")
    error = raised.value
    assert (error.message, error.reason, error.field, error.details) == (
        "gone",
        "CALL_ENDED",
        "ticket",
        {"attempt": "3"},
    )


async def test_a_bug_is_internal_and_its_cause_stays_in_the_log(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Internal) as raised:
        await stack.abort("bug")
    assert "secret" not in raised.value.message
    assert "a secret of the implementation" in caplog.text


async def test_a_method_may_abort_by_itself(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HexagentError) as raised:
        await stack.abort("own")
    assert (raised.value.message, raised.value.reason) == ("as the method says", "DATA_LOSS")
    assert "failed" not in caplog.text


async def test_a_stream_fails_with_a_typed_error_behind_its_messages(stack: Stack) -> None:
    received: list[bytes] = []

    async def pull(source: str) -> None:
        with typed_errors():
            async for response in stack.stub.PullKv(iter([pb.PullKvRequest(from_instance=source)])):
                received.append(response.data)  # noqa: PERF401  what came before the error counts

    with pytest.raises(InvalidArgument) as raised:
        await pull("nowhere")
    assert raised.value.reason == "NO_KV"
    assert received == [b"x" * 10]


async def test_messages_above_8_mb_are_refused(stack: Stack) -> None:
    with pytest.raises(ResourceExhausted), typed_errors():
        await stack.stub.AbortCall(pb.AbortCallRequest(reason="x" * (MESSAGE_BYTES_MAX + 1)))
    await stack.abort("x" * (MESSAGE_BYTES_MAX - 100))


async def test_unavailable_is_tried_again(stack: Stack) -> None:
    await stack.abort("busy")
    assert stack.worker.calls == 3


async def test_a_method_can_be_exempt_from_retries(stack: Stack) -> None:
    async with open_channel(f"127.0.0.1:{stack.server.port}", SERVICE, no_retry=["AbortCall"]) as channel:
        with pytest.raises(Unavailable), typed_errors():
            await stubs.WorkerServiceStub(channel).AbortCall(pb.AbortCallRequest(reason="busy"))
    assert stack.worker.calls == 1


async def test_unary_calls_have_a_deadline_by_default(stack: Stack) -> None:
    started_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceeded):
        await stack.abort("hang")
    assert 0.9 < asyncio.get_running_loop().time() - started_s < 5
    with pytest.raises(DeadlineExceeded):
        await stack.abort("hang", timeout=0.05)
    async with open_channel(f"127.0.0.1:{stack.server.port}", SERVICE, deadline_s=0.05) as channel:
        await stubs.WorkerServiceStub(channel).AbortCall(pb.AbortCallRequest(reason="slow"), timeout=5)


async def test_stopping_lets_running_calls_end(stack: Stack) -> None:
    running = asyncio.create_task(stack.abort("slow"))
    await asyncio.sleep(0.1)
    await stack.server.stop(5)
    await running


async def test_a_restarted_server_is_found_again(stack: Stack) -> None:
    port = stack.server.port
    await stack.server.stop(0)
    again = GrpcServer("127.0.0.1", port, [SERVICE])
    stubs.add_WorkerServiceServicer_to_server(Worker(), again.raw)  # type: ignore[abstract]
    calling = asyncio.create_task(stack.abort(""))
    assert await again.start() == port
    await calling
    await again.stop(0)


async def test_a_taken_port_and_a_missing_server_are_typed(stack: Stack) -> None:
    with pytest.raises(Unavailable) as taken:
        await GrpcServer("127.0.0.1", stack.server.port, [SERVICE]).start()
    assert taken.value.reason == "PORT_TAKEN"
    async with open_channel("127.0.0.1:1", SERVICE) as channel:
        with pytest.raises(Unavailable) as missing:
            await await_ready(channel, "127.0.0.1:1", 0.2)
    assert missing.value.reason == "SERVER_UNREACHABLE"
