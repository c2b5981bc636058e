"""gRPC channels with deadlines, bounded retries and keepalive, and typed errors."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from hexagent.core.errors import Unavailable
from hexagent.runtime.streams import MESSAGE_BYTES_MAX
from hexagent.wire.status import from_rpc_error

RPC_DEADLINE_S: Final = 5.0
RETRIES_MAX: Final = 4  # gRPC allows 5 attempts in all

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Proxies named in the environment are for the way out of the house, not for service to service.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(
    address: str,
    *services: ServiceDescriptor,
    deadline_s: float = RPC_DEADLINE_S,
    no_retry: Collection[str] = (),
) -> grpc.aio.Channel:
    """A channel to `host:port`; it connects at its first use and again whenever the connection is lost.

    Unary RPCs get `deadline_s` seconds of wall time where a call sets no `timeout`; streams have none. Unary RPCs of
    the named services are sent again up to four times while the server is UNAVAILABLE: every mutation carries a
    request id or a ticket, so a second sending changes nothing. `no_retry` names methods exempt from that.
    """
    options: list[tuple[str, int | str]] = list(_OPTIONS)
    options.append(("grpc.service_config", service_config(services, no_retry)))
    channel = grpc.aio.insecure_channel(address, options=options)
    # Not by the service config: gRPC's core ends calls by a timeout from there up to two seconds early.
    channel.unary_unary = _with_deadline(channel.unary_unary, deadline_s)  # type: ignore[method-assign]
    return channel


def _with_deadline(unary_unary: Callable[..., Any], deadline_s: float) -> Callable[..., Any]:
    """`Channel.unary_unary` whose methods have a default timeout."""

    def method(*arguments: Any, **options: Any) -> Callable[..., Any]:
        call = unary_unary(*arguments, **options)

        def start(request: Any, *, timeout: float | None = None, **more: Any) -> Any:
            return call(request, timeout=deadline_s if timeout is None else timeout, **more)

        return start

    return method


def service_config(services: Collection[ServiceDescriptor], no_retry: Collection[str] = ()) -> str:
    """gRPC's JSON form of the retries of unary methods."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if not (method.client_streaming or method.server_streaming or method.name in no_retry)
    ]
    retry = {
        "maxAttempts": RETRIES_MAX + 1,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}] if names else []})


async def await_ready(channel: grpc.aio.Channel, address: str, timeout_s: float) -> None:
    """Wait until the server accepts the connection. `Unavailable` (SERVER_UNREACHABLE) after `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await channel.channel_ready()
    except TimeoutError:
        raise Unavailable(
            f"no gRPC server at {address} within {timeout_s:g} s", reason="SERVER_UNREACHABLE", field="address"
        ) from None


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Inside, a failed RPC raises the HexagentError its server raised, or the one its status stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
