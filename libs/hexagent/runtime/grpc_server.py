"""A gRPC server with health, reflection and limits, and the boundary that turns errors into statuses."""

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hexagent.core.errors import HexagentError, Internal, Unavailable
from hexagent.runtime.streams import MESSAGE_BYTES_MAX
from hexagent.wire.codec import bad
from hexagent.wire.status import to_rpc_status

log = logging.getLogger(__name__)

KEEPALIVE_MS: Final = 30_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000
LEAST_CLIENT_PING_MS: Final = 5_000  # clients that ping more often are disconnected

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", LEAST_CLIENT_PING_MS),
    # Two processes on one port would share its connections unseen; a taken port is an error instead.
    ("grpc.so_reuseport", 0),
)


class GrpcServer:
    """One listener. Add servicers to `raw`, then `start`; not ready until `set_ready(True)`."""

    def __init__(self, host: str, port: int, services: Sequence[ServiceDescriptor]) -> None:
        self.raw: Final = grpc.aio.server(options=_OPTIONS)
        self.host: Final = host
        self.port = port  # 0 = a free one, known after `start`
        self._names = tuple(service.full_name for service in services)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.raw)
        reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.raw)
        # After those of gRPC's own services, whose methods are not guarded.
        add: Any = functools.partial(_add_handlers, self.raw.add_registered_method_handlers)
        self.raw.add_registered_method_handlers = add  # type: ignore[method-assign]

    async def start(self) -> int:
        """Listen; gives the port. `Unavailable` (PORT_TAKEN) where the address cannot be bound."""
        await self.set_ready(False)
        try:
            bound = self.raw.add_insecure_port(f"{self.host}:{self.port}")
        except RuntimeError as error:
            raise _port_taken(self.host, self.port) from error
        if bound == 0:
            raise _port_taken(self.host, self.port)
        self.port = bound
        await self.raw.start()
        return bound

    async def set_ready(self, ready: bool) -> None:
        """What health checks answer, for the whole server ("") and for each of its services."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new RPCs, let running ones end for up to `grace_s` seconds of wall time, then cancel them."""
        await self.set_ready(False)
        await self.raw.stop(grace_s)


def _add_handlers(add: Callable[..., None], service: str, handlers: dict[str, Any]) -> None:
    """`add_registered_method_handlers` for methods that are `guarded`."""
    add(service, {name: _refusing_garbage(handler) for name, handler in handlers.items()})


def _refusing_garbage(handler: Any) -> Any:
    """The handler with a refusal in place of a request that cannot be parsed.

    gRPC would end the call as UNKNOWN, in words of the parser. A stream of requests raises the refusal; a single
    request becomes it, as nothing but the method can choose the status.
    """
    parse = handler.request_deserializer

    def request(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            refusal = bad("BAD_MESSAGE", "request", f"its {len(data)} bytes are no message of this RPC")
            if handler.request_streaming:
                raise refusal from error
            return refusal

    return handler._replace(request_deserializer=request)


_Servicer = TypeVar("_Servicer")
_Context = grpc.aio.ServicerContext[Any, Any]


def guarded(servicer: type[_Servicer]) -> type[_Servicer]:
    """Class decorator: every RPC method of a servicer answers errors with a status.

    HexagentError becomes the status `wire.status` gives it; anything else INTERNAL, with the traceback in the log
    only. RPC methods are the async methods with a capital first letter: coroutines for unary responses, async
    generators for streams. A servicer's attribute `time_scale` turns retry times into the wall time clients wait.
    """
    for name, method in list(vars(servicer).items()):
        if not name[:1].isupper():
            continue
        if inspect.iscoroutinefunction(method):
            setattr(servicer, name, _guarded_unary(method))
        elif inspect.isasyncgenfunction(method):
            setattr(servicer, name, _guarded_stream(method))
    return servicer


def _guarded_unary(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def answer(self: Any, request: Any, context: _Context) -> Any:
        try:
            if isinstance(request, HexagentError):
                raise request
            return await method(self, request, context)
        except Exception as error:
            await _abort(self, method, error, context)

    return answer


def _guarded_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def answer(self: Any, request: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            if isinstance(request, HexagentError):
                raise request
            async for response in method(self, request, context):
                yield response
        except Exception as error:
            await _abort(self, method, error, context)

    return answer


async def _abort(servicer: object, method: Callable[..., Any], error: Exception, context: _Context) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error  # the method has answered by itself
    if not isinstance(error, HexagentError):
        log.error("%s failed", method.__qualname__, exc_info=error)
        error = Internal("internal error; the service's log has the cause", reason="INTERNAL")
    await context.abort(*to_rpc_status(error, time_scale=getattr(servicer, "time_scale", 1.0)))


def _port_taken(host: str, port: int) -> Unavailable:
    return Unavailable(f"cannot listen on {host}:{port}", reason="PORT_TAKEN", field="listen_port")
