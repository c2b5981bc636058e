"""Requests that survive a restart of the service: sent again under the same request id until answered."""

import asyncio
import random
import uuid
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from hexagent.core.errors import HexagentError
from hexagent.wire.status import from_rpc_error

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0

# A status the service itself sent has a reason of its own; these are the transport's.
_TRANSPORT: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN"})
_PASSING: Final = frozenset({"TRACKER_STOPPING", "BUS_UNAVAILABLE", "WATCHER_TOO_SLOW"})


class Retry:
    """One operation's patience: `pause` waits longer each time and raises when `patience_s` is used up."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._attempt = 0
        self._since_s = 0.0

    def succeeded(self) -> None:
        """Start anew with full patience."""
        self._attempt = 0

    async def pause(self, error: HexagentError) -> None:
        """Wait before the next attempt, in wall time; raises `error` when waiting does not help."""
        if not is_passing(error):
            raise error
        now_s = asyncio.get_running_loop().time()
        if self._attempt == 0:
            self._since_s = now_s
        if now_s - self._since_s > self._patience_s:
            raise error
        limit_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**self._attempt)
        self._attempt += 1
        await asyncio.sleep(limit_s * random.uniform(0.5, 1.0))


def is_passing(error: HexagentError) -> bool:
    """Whether the same request may be answered later: the service is away, or its bus is."""
    return error.reason in _TRANSPORT or error.reason in _PASSING


def typed(error: grpc.aio.AioRpcError) -> HexagentError:
    """The error the service raised, or the one the connection's failure stands for."""
    return from_rpc_error(error)


async def send(
    method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
    patience_s: float,
    attempt_s: float,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Response:
    """The answer to `request`, which must be safe to repeat; wall seconds for all attempts and for one.

    Raises the typed error of the service's refusal, or `Unavailable` when it stays away.
    """
    retry = Retry(patience_s)
    while True:
        try:
            return await method(request, timeout=attempt_s, metadata=metadata or None)
        except grpc.aio.AioRpcError as error:
            await retry.pause(typed(error))


def minted() -> str:
    """A fresh id of a request."""
    return uuid.uuid4().hex
