"""One table from errors to statuses: complete, and the same error comes out at the client."""

import pickle
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.core import errors
from hexagent.core.errors import HexagentError
from hexagent.wire import status

ERROR = errors.ResourceExhausted(
    "too many open workflows: π",
    reason="TOO_MANY_WORKFLOWS",
    field="spec",
    details={"limit": "10", "retry_after_us": "2500000"},
)


def as_tuple(error: HexagentError) -> tuple[object, ...]:
    return type(error), error.message, error.reason, error.field, error.details


def test_every_class_has_its_own_code() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HexagentError)}
    assert set(status.CODES) == tree - {HexagentError}
    assert len({codes.grpc for codes in status.CODES.values()}) == len(status.CODES)


def test_a_class_outside_the_table_has_its_parents_code() -> None:
    class NoSuchModel(errors.NotFound):
        pass

    assert status.http_code(NoSuchModel("no", reason="NO_MODEL")) == 404
    assert status.http_code(HexagentError("no", reason="X")) == 500


def test_generic_tools_read_the_wait_and_the_field() -> None:
    retry, info, request = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    waits = status.to_status(ERROR, time_scale=10.0)
    assert waits.details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["field"]) == ("hexagent", "TOO_MANY_WORKFLOWS", "spec")
    assert waits.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 250
    refused = status.to_status(errors.InvalidArgument("k: no", reason="BAD_JOIN", field="nodes[0].join.k"))
    assert refused.details[1].Unpack(request)
    assert request.field_violations[0].field == "nodes[0].join.k"


def test_long_messages_fit_into_metadata() -> None:
    details = {"digests": ",".join(["0" * 64] * 32)}
    rpc = status.to_rpc_status(errors.FailedPrecondition("x" * 100_000, reason="SEGMENTS_MISSING", details=details))
    assert len(rpc.trailing_metadata[0][1]) * 4 // 3 + len(rpc.details) < 8_192


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.UNAUTHENTICATED, errors.PermissionDenied),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
        (grpc.StatusCode.DATA_LOSS, errors.Internal),
    ],
)
def test_failures_without_details_have_the_code_as_reason(code: grpc.StatusCode, kind: type[HexagentError]) -> None:
    failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="connection refused")
    assert as_tuple(status.from_rpc_error(failure)) == (kind, "connection refused", code.name, "", {})


@pytest.mark.parametrize("value", [b"\xff\xff", status_pb2.Status(code=5, message="other").SerializeToString()])
def test_details_that_cannot_be_trusted_are_ignored(value: bytes) -> None:
    trailing = grpc.aio.Metadata((status.DETAILS_KEY, value))
    failure = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailing, details="stale")
    assert as_tuple(status.from_rpc_error(failure)) == (errors.Aborted, "stale", "ABORTED", "", {})


async def refuse(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
    await context.abort(*status.to_rpc_status(ERROR))


@pytest.mark.integration
async def test_the_client_gets_the_error_the_service_raised() -> None:
    method: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(refuse)
    service = scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"ListQueue": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListQueue(scheduler_service_pb2.ListQueueRequest(), timeout=10)
    finally:
        await server.stop(None)
    assert as_tuple(status.from_rpc_error(caught.value)) == as_tuple(ERROR)
    call: Any = caught.value
    assert rpc_status.from_call(call) == status.to_status(ERROR)


def test_an_error_of_another_process_comes_back_whole() -> None:
    assert as_tuple(pickle.loads(pickle.dumps(ERROR))) == as_tuple(ERROR)
