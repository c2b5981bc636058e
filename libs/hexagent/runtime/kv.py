"""Key-value buckets: the last value of each key, with revisions."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

import nats.errors

from hexagent.core.errors import Aborted, AlreadyExists, InvalidArgument, ResourceExhausted, Unavailable
from hexagent.runtime.connection import Arrival, Connection, headers_of
from hexagent.runtime.feed import Feed, Message, Position
from hexagent.runtime.publisher import AckedPublisher
from hexagent.runtime.streams import MESSAGE_BYTES_MAX

log = logging.getLogger(__name__)

ATTEMPT_S: Final = 1.0  # a read without an answer is asked again after this
RETRY_WAIT_S: Final = 0.05
MARKER_TTL: Final = "60s"  # a watcher that is away for longer does not hear of the deletion

_OPERATION: Final = "KV-Operation"
_EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
_MESSAGE_ID: Final = "Nats-Msg-Id"
_TTL: Final = "Nats-TTL"


class KvEntry(NamedTuple):
    """One key's state; `value` is None where the key was deleted."""

    key: str
    value: bytes | None
    revision: int


OpenFeed = Callable[[Position, int], Awaitable[Feed]]


class KvBucket:
    """One bucket. Keys are dot-separated tokens as `subjects` makes them; values at most 8 MB.

    Every method raises Unavailable (BUS_UNAVAILABLE) when NATS does not answer within the deadline.
    """

    def __init__(
        self, name: str, connection: Connection, publisher: AckedPublisher, open_feed: OpenFeed, deadline_s: float
    ) -> None:
        self.name = name
        self._connection = connection
        self._publisher = publisher
        self._open_feed = open_feed
        self._deadline_s = deadline_s
        self._prefix = f"$KV.{name}."
        self._get_prefix = f"$JS.API.DIRECT.GET.KV_{name}.{self._prefix}"

    async def get(self, key: str) -> KvEntry | None:
        """The last value, None where there is none or it was deleted."""
        entry = await self._last(key)
        return entry if entry is not None and entry.value is not None else None

    async def put(self, key: str, value: bytes) -> int:
        """Set the value whatever it was; gives the new revision. ResourceExhausted (STREAM_FULL, VALUE_TOO_LARGE)."""
        return await (await self.put_soon(key, value))

    async def put_soon(self, key: str, value: bytes) -> "asyncio.Future[int]":
        """Like `put`, but returns once the value is on its way; the future gives the revision."""
        if len(value) > MESSAGE_BYTES_MAX:
            raise ResourceExhausted(
                f"a value of {len(value)} bytes exceeds {MESSAGE_BYTES_MAX} bytes",
                reason="VALUE_TOO_LARGE",
                field=key,
                details={"limit_bytes": str(MESSAGE_BYTES_MAX)},
            )
        return await self._publisher.send(self._subject(key), value, None, self._deadline_s)

    async def create(self, key: str, value: bytes) -> int:
        """Set the value of a key that has none; gives the revision. AlreadyExists (KEY_EXISTS)."""
        try:
            return await self._write(key, value, 0)
        except Aborted:
            entry = await self._last(key)
        if entry is not None and entry.value is not None:
            raise AlreadyExists(f"key {key} of bucket {self.name} has a value", reason="KEY_EXISTS", field=key)
        # A deleted key leaves a marker, whose revision is the one to replace.
        try:
            return await self._write(key, value, entry.revision if entry else 0)
        except Aborted as error:
            raise AlreadyExists(
                f"key {key} of bucket {self.name} was created by another", reason="KEY_EXISTS", field=key
            ) from error

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Set the value if the key is still at `revision`; gives the new one. Aborted (WRONG_SEQUENCE) if it is not."""
        return await self._write(key, value, revision)

    async def delete(self, key: str) -> None:
        """Remove the value; watchers see an entry without one. Nothing happens to a key that has none."""
        headers = {_OPERATION: "DEL"}
        await (await self._publisher.send(self._subject(key), b"", headers, self._deadline_s))

    async def expire_soon(self, key: str) -> "asyncio.Future[int]":
        """Like `delete`, but the marker goes as well, a moment later; returns once it is on its way."""
        headers = {_OPERATION: "DEL", _TTL: MARKER_TTL}
        return await self._publisher.send(self._subject(key), b"", headers, self._deadline_s)

    async def entries(self, pattern: str = ">") -> list[KvEntry]:
        """Every key with a value that matches the subject pattern, in order of revision."""
        async with await self.watch(pattern) as watch:
            last = {entry.key: entry async for entry in watch.backlog()}
        return sorted((e for e in last.values() if e.value is not None), key=lambda entry: entry.revision)

    async def watch(self, pattern: str = ">") -> "KvWatch":
        """The last value of every key that matches, then every change. Values that expire by age go unseen."""
        position = Position(f"KV_{self.name}", self._subject(pattern), latest_only=True)
        return KvWatch(await self._open_feed(position, _WATCH_BATCH), len(self._prefix))

    async def _write(self, key: str, value: bytes, revision: int) -> int:
        # The id lets a write whose answer was lost be sent again: without it the second one finds its own revision.
        headers = {_EXPECTED_REVISION: str(revision), _MESSAGE_ID: uuid.uuid4().hex}
        return await (await self._publisher.send(self._subject(key), value, headers, self._deadline_s))

    async def _last(self, key: str) -> KvEntry | None:
        answer = await self._request(self._get_prefix + _checked_key(key))
        headers = headers_of(answer.header_block)
        if "Nats-Sequence" not in headers:
            return None  # status 404
        deleted = headers.get(_OPERATION) in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers
        return KvEntry(key, None if deleted else answer.data, int(headers["Nats-Sequence"]))

    async def _request(self, subject: str) -> Arrival:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._deadline_s
        while (left_s := deadline_s - loop.time()) > 0:
            try:
                return await self._connection.ask(subject, min(ATTEMPT_S, left_s))
            except nats.errors.NoRespondersError:
                await asyncio.sleep(RETRY_WAIT_S)  # the server is starting
            except TimeoutError:
                pass
            except nats.errors.Error as error:
                raise Unavailable(f"cannot reach NATS: {error}", reason="BUS_UNAVAILABLE") from error
        raise Unavailable(
            f"bucket {self.name} did not answer within {self._deadline_s:g} s",
            reason="BUS_UNAVAILABLE",
            field=self.name,
        )

    def _subject(self, key: str) -> str:
        return self._prefix + _checked_key(key)


class KvWatch:
    """A bucket's present and future; use it as `async with`."""

    def __init__(self, feed: Feed, prefix_chars: int) -> None:
        self._feed = feed
        self._prefix_chars = prefix_chars

    async def backlog(self) -> AsyncIterator[KvEntry]:
        """The entries there were when the watch began, then stop."""
        async for batch in self._feed.backlog():
            for message in batch:
                yield self._entry(message)

    async def __aiter__(self) -> AsyncIterator[KvEntry]:
        async for batch in self._feed:
            for message in batch:
                yield self._entry(message)

    async def close(self) -> None:
        """End the watch."""
        await self._feed.close()

    async def __aenter__(self) -> "KvWatch":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _entry(self, message: Message) -> KvEntry:
        headers = message.headers
        deleted = headers.get(_OPERATION) in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers
        key = message.subject[self._prefix_chars :]
        return KvEntry(key, None if deleted else message.data, message.sequence)


_WATCH_BATCH: Final = 256


def _checked_key(key: str) -> str:
    if not key or any(character.isspace() for character in key):
        raise InvalidArgument(f"{key[:80]!r} is not a key", reason="BAD_KEY", field="key")
    return key
