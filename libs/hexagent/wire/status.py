"""One table from error classes to gRPC statuses and HTTP codes, and the way back.

An error travels as google.rpc.Status: `ErrorInfo` holds reason, field and details, so that a client gets the same
typed error; `BadRequest` and `RetryInfo` say the field and the wait once more in the form generic tools read.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hexagent.core import errors
from hexagent.core.errors import HexagentError
from hexagent.wire.times import DURATION_MAX_US

DOMAIN: Final = "hexagent"
DETAILS_KEY: Final = "grpc-status-details-bin"  # the trailing metadata every gRPC library reads a Status from
MESSAGE_MAX_CHARS: Final = 1_000  # a status must fit, twice encoded, into gRPC's 8 KiB of metadata

_FIELD: Final = "field"
_RETRY_AFTER_US: Final = "retry_after_us"


class Codes(NamedTuple):
    grpc: grpc.StatusCode
    http: int


CODES: Final[dict[type[HexagentError], Codes]] = {
    errors.InvalidArgument: Codes(grpc.StatusCode.INVALID_ARGUMENT, 400),
    errors.NotFound: Codes(grpc.StatusCode.NOT_FOUND, 404),
    errors.AlreadyExists: Codes(grpc.StatusCode.ALREADY_EXISTS, 409),
    # Not 409, which HTTP clients retry by themselves: another state does not come by waiting.
    errors.FailedPrecondition: Codes(grpc.StatusCode.FAILED_PRECONDITION, 400),
    errors.ResourceExhausted: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    errors.DeadlineExceeded: Codes(grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    errors.Cancelled: Codes(grpc.StatusCode.CANCELLED, 499),
    errors.Aborted: Codes(grpc.StatusCode.ABORTED, 409),
    errors.Unavailable: Codes(grpc.StatusCode.UNAVAILABLE, 503),
    # Not 501, for the same reason: what is not supported stays so.
    errors.Unsupported: Codes(grpc.StatusCode.UNIMPLEMENTED, 400),
    errors.PermissionDenied: Codes(grpc.StatusCode.PERMISSION_DENIED, 403),
    errors.Internal: Codes(grpc.StatusCode.INTERNAL, 500),
}

# What no service of ours sends; libraries, proxies and operating systems do.
_FOREIGN: Final[dict[grpc.StatusCode, type[HexagentError]]] = {
    grpc.StatusCode.UNAUTHENTICATED: errors.PermissionDenied,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgument,
}
_CLASSES: Final = {codes.grpc: kind for kind, codes in CODES.items()} | _FOREIGN


class _FailedCall(Protocol):
    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


class RpcStatus(NamedTuple):
    """The arguments of a servicer's `context.abort`."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def codes_of(error: HexagentError) -> Codes:
    """By the nearest class in the table; the bare base class counts as Internal."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return CODES[errors.Internal]


def http_code(error: HexagentError) -> int:
    return codes_of(error).http


def to_status(error: HexagentError, *, time_scale: float = 1.0) -> status_pb2.Status:
    """The error as a Status. `time_scale`, model seconds a wall second, turns a retry time into the wall time that
    generic clients wait."""
    number: int = codes_of(error).grpc.value[0]
    metadata = dict(error.details)
    if error.field:
        metadata[_FIELD] = error.field
    message = error.message[:MESSAGE_MAX_CHARS]
    parts: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.field and isinstance(error, errors.InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.reason)
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_after_us = error.details.get(_RETRY_AFTER_US, "")
    if retry_after_us.isdecimal():
        wait = Duration()
        wait.FromMicroseconds(min(round(int(retry_after_us) / time_scale), DURATION_MAX_US))
        parts.append(error_details_pb2.RetryInfo(retry_delay=wait))
    return status_pb2.Status(code=number, message=message, details=[_packed(part) for part in parts])


def to_rpc_status(error: HexagentError, *, time_scale: float = 1.0) -> RpcStatus:
    """The same, for `await context.abort(*to_rpc_status(error))`."""
    status = to_status(error, time_scale=time_scale)
    metadata = ((DETAILS_KEY, status.SerializeToString(deterministic=True)),)
    return RpcStatus(codes_of(error).grpc, status.message, metadata)


def from_status(status: status_pb2.Status) -> HexagentError:
    """The typed error in a Status; one without our ErrorInfo keeps its class and has the code as its reason."""
    code = next((c for c in grpc.StatusCode if c.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    kind = _CLASSES.get(code, errors.Internal)
    for part in status.details:
        info = error_details_pb2.ErrorInfo()
        if part.Unpack(info) and info.domain == DOMAIN:
            metadata = dict(sorted(info.metadata.items()))
            field = metadata.pop(_FIELD, "")
            return kind(status.message, reason=info.reason, field=field, details=metadata)
    return kind(status.message, reason=code.name)


def from_rpc_error(error: grpc.RpcError) -> HexagentError:
    """The typed error behind a failed RPC, of the asyncio or the blocking API.

    Where a service raised it, it equals what the service raised; a connection's own failure has its code as reason.
    """
    # The blocking and the asyncio API raise objects that are calls as well, which the base class does not say.
    call = cast(_FailedCall, error)
    code, text = call.code(), call.details() or ""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == code.value[0]:
                return from_status(status)
    return _CLASSES.get(code, errors.Internal)(text, reason=code.name)


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message, deterministic=True)
    return packed
