"""gRPC channels with deadlines, bounded retries and keepalive, and typed errors."""

import asyncio
import contextlib
import json
from collections.abc import Collection, Iterator
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

    Unary RPCs of the named services get `deadline_s` seconds of wall time where a call sets no timeout, and are sent
    again up to four times while the server is UNAVAILABLE: every mutation carries a request id or a ticket, so a
    second sending changes nothing. `no_retry` names methods exempt from that. Streams get neither.
    """
    options: list[tuple[str, int | str]] = list(_OPTIONS)
    options.append(("grpc.service_config", service_config(services, deadline_s, no_retry)))
    return grpc.aio.insecure_channel(address, options=options)


def service_config(services: Collection[ServiceDescriptor], deadline_s: float, no_retry: Collection[str]) -> str:
    """gRPC's JSON form of the deadlines and retries of unary methods."""
    once: list[dict[str, str]] = []
    again: list[dict[str, str]] = []
    for service in services:
        for method in service.methods:
            if not (method.client_streaming or method.server_streaming):
                name = {"service": service.full_name, "method": method.name}
                (once if method.name in no_retry else again).append(name)
    timeout = f"{deadline_s:.3f}s"
    configs: list[dict[str, Any]] = []
    if once:
        configs.append({"name": once, "timeout": timeout})
    if again:
        retry = {
            "maxAttempts": RETRIES_MAX + 1,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        configs.append({"name": again, "timeout": timeout, "retryPolicy": retry})
    return json.dumps({"methodConfig": configs})


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
