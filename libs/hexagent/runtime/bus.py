"""The connection of a service to NATS: durable streams, buckets and core subjects.

Start-up waits for the server, a lost connection is restored for as long as the process lives, and what was
published meanwhile is sent again until it is acknowledged or its deadline passes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from hexagent.core.errors import HexagentError, InvalidArgument, Unavailable
from hexagent.runtime import subjects
from hexagent.runtime.connection import Arrival, Connection
from hexagent.runtime.feed import Feed, Message, Position, stream_missing
from hexagent.runtime.kv import KvBucket
from hexagent.runtime.publisher import AckedPublisher
from hexagent.runtime.streams import BODY_BYTES_MAX, StreamLimits, ensure_streams

__all__ = ["Bus", "BusOptions", "Feed", "Message"]

log = logging.getLogger(__name__)

API_WAIT_S: Final = 2.0  # one request about streams and consumers
UNSENT_BYTES_MAX: Final = 64 << 20  # beyond it what nobody answers is dropped; the rest is bounded by `in_flight_max`
_MESSAGE_ID: Final = "Nats-Msg-Id"
_EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"


class BusOptions(NamedTuple):
    """All times in seconds of wall time."""

    url: str  # nats://host:port, several separated by commas
    name: str  # of the connection, as the server lists it
    connect_s: float = 30.0  # waiting for the server at start
    deadline_s: float = 10.0  # storing or reading one message, all attempts together
    in_flight_max: int = 4_096  # unacknowledged messages; publishing further ones waits
    reconnect_wait_s: float = 0.05
    ping_s: float = 2.0  # two unanswered pings end a connection that has gone silent
    pending_bytes_max: int = 64 * 1024 * 1024  # unsent, per connection


Handler = Callable[[Sequence[Message]], Awaitable[None]]
CoreHandler = Callable[[Message], None]


class Bus:
    """Made by `Bus.connect`; close it with `close` or use it as `async with`."""

    def __init__(self, connection: Connection, options: BusOptions) -> None:
        self._connection = connection
        self._options = options
        self._jetstream: JetStreamContext = connection.jetstream(timeout=API_WAIT_S)
        self._publisher = AckedPublisher(connection, options.in_flight_max)
        self._feeds: dict[int, Feed] = {}  # by insertion, so that they open again in a fixed order
        self._feed_count = 0
        self._buckets: dict[str, KvBucket] = {}
        self._limits: StreamLimits | None = None  # of the streams this process wants there
        self._closing = False
        self._dropping = False  # what nobody answers, since the server does not read

    # -- lifecycle -----------------------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, options: BusOptions) -> "Bus":
        """Connect, trying again until the server is there. `Unavailable` (BUS_UNAVAILABLE) after `connect_s`."""
        connection = Connection()
        bus: Bus | None = None

        async def on_reconnected() -> None:
            log.warning("connected to NATS again")
            if bus is not None:
                await bus._on_reconnected()

        async def on_disconnected() -> None:
            if bus is not None and not bus._closing:
                log.warning("the connection to NATS is lost")
                bus._publisher.hold()

        async def on_error(error: Exception) -> None:
            log.info("nats: %r", error)

        try:
            async with asyncio.timeout(options.connect_s):
                await connection.connect(
                    servers=options.url.split(","),
                    name=options.name,
                    reconnected_cb=on_reconnected,
                    disconnected_cb=on_disconnected,
                    error_cb=on_error,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=options.reconnect_wait_s,  # type: ignore[arg-type]  # a fraction works
                    connect_timeout=2,
                    ping_interval=options.ping_s,  # type: ignore[arg-type]  # a fraction works
                    max_outstanding_pings=2,
                    pending_size=options.pending_bytes_max,
                )
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise Unavailable(
                f"no NATS server at {options.url} within {options.connect_s:g} s: {error!r}",
                reason="BUS_UNAVAILABLE",
                field="nats_url",
            ) from error
        bus = cls(connection, options)
        await bus._publisher.start()
        return bus

    async def ensure_streams(self, limits: StreamLimits | None = None) -> None:
        """Create or update every stream and bucket. FailedPrecondition (STREAM_CONFLICT), Unavailable.

        Tried again for `connect_s`: a server that has just started may not answer for its streams yet.
        """
        self._limits = wanted = limits or StreamLimits()
        await self._administer(lambda: ensure_streams(self._jetstream, wanted), "streams")

    async def flush(self) -> None:
        """Wait until everything published is acknowledged. `Unavailable` after the deadline."""
        await self._publisher.flush(self._options.deadline_s)

    async def close(self) -> None:
        """Flush what can be, end feeds and subscriptions, and leave. Safe to call twice."""
        self._closing = True
        if self._connection.is_closed:
            await self._publisher.close()
            return
        try:
            await self.flush()
        except Unavailable as error:
            log.warning("closing with unacknowledged messages: %s", error)
        for feed in list(self._feeds.values()):
            await feed.close()
        await self._publisher.close()
        await self._connection.close()

    async def __aenter__(self) -> "Bus":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands at the moment."""
        return bool(self._connection.is_connected)

    # -- publishing ----------------------------------------------------------------------------------------------

    async def publish(
        self,
        subject: str,
        data: bytes,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expected_sequence: int | None = None,
    ) -> int:
        """Store one message and give its sequence in the stream; errors as `publish_soon`'s future."""
        return await (await self.publish_soon(subject, data, msg_id, headers, expected_sequence))

    async def publish_soon(
        self,
        subject: str,
        data: bytes,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expected_sequence: int | None = None,
    ) -> "asyncio.Future[int]":
        """Send one message and return at once with a future of its sequence; waits only when too many are in flight.

        A message is sent again until acknowledged. With `msg_id` it is stored once; without, a lost answer may
        store it twice. `expected_sequence`: the last sequence of this very subject, 0 for none; without a `msg_id`
        beside it a message whose answer was lost counts as refused. The future fails with Unavailable
        (BUS_UNAVAILABLE), Aborted (WRONG_SEQUENCE), ResourceExhausted (MESSAGE_TOO_LARGE, STREAM_FULL) or Internal
        (BUS_REFUSED).
        """
        if msg_id is not None or expected_sequence is not None:
            headers = dict(headers or {})
            if msg_id is not None:
                headers[_MESSAGE_ID] = msg_id
            if expected_sequence is not None:
                headers[_EXPECTED_SEQUENCE] = str(expected_sequence)
        return await self._publisher.send(subject, data, headers, self._options.deadline_s)

    def publish_core(self, subject: str, data: bytes) -> None:
        """Send to whoever listens now, a stream among them; nobody answers.

        Dropped while the connection is lost, or while `UNSENT_BYTES_MAX` wait for a server that does not read.
        """
        full = self._connection.unsent_bytes > UNSENT_BYTES_MAX
        if full and not self._dropping:
            log.warning(
                "messages that nobody answers are dropped: NATS has not read the last %d bytes", UNSENT_BYTES_MAX
            )
        self._dropping = full
        if full:
            return
        try:
            self._connection.send(subject, data)
        except nats.errors.MaxPayloadError as error:
            log.info("dropped a message to %s: %r", subject, error)

    # -- reading -------------------------------------------------------------------------------------------------

    async def follow(
        self,
        stream: str,
        subject: str,
        start_sequence: int = 1,
        latest_only: bool = False,
        batch_max: int = 512,
        poll_s: float = 0.0,
    ) -> Feed:
        """A feed of the stream from `start_sequence`: first `feed.backlog()`, then `async for batch in feed`.

        Every message once, in order, no matter what happens to the connection. The filter `subject` may hold
        wildcards. `latest_only` begins with the last message of each subject. With `poll_s` messages come up to that
        much later, in seconds of wall time, and cost less. FailedPrecondition (STREAM_MISSING), Unavailable when NATS
        does not answer in time.
        """
        return await self._open_feed(Position(stream, subject, start_sequence, latest_only, poll_s=poll_s), batch_max)

    async def consume(self, stream: str, durable: str, subject: str, handler: Handler, batch_max: int = 256) -> None:
        """Hand batches to `handler` until cancelled; acknowledge each when the handler has returned.

        The server keeps the position under the name `durable`. At least once: what was handled just before a crash
        is delivered again, immediately at the next start. One process at a time may consume a name. An error of the
        handler ends the loop with its batch unacknowledged.
        """
        feed = await self._open_feed(Position(stream, subject, durable=durable), batch_max)
        try:
            while True:
                batch = await feed.next_batch()
                await handler(batch)
                feed.ack(batch[-1])
        finally:
            await feed.close()

    async def subscribe_core(self, subject: str, handler: CoreHandler) -> Subscription:
        """Call `handler` for each message on a core subject; what arrives while disconnected is lost.

        The server knows the subscription when this returns.
        Errors of the handler are logged; the subscription lives on. End it with `await subscription.unsubscribe()`.
        """

        def on_message(arrival: Arrival) -> None:
            handler(Message(arrival.subject, arrival.data, reply=arrival.reply))

        try:
            subscription = await self._connection.take(subject, on_message)
            # nats-py writes a ping ahead of what it has buffered: only the second one follows the subscription.
            await self._connection.flush()
            await self._connection.flush()
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(subject, error) from error
        return subscription

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message stored under exactly `subject`. FailedPrecondition (STREAM_MISSING), Unavailable."""
        try:
            found = await self._jetstream.get_msg(stream, subject=subject, direct=False)
        except nats.js.errors.NotFoundError as error:
            if error.err_code == _STREAM_NOT_FOUND:
                raise stream_missing(stream) from error
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(stream, error) from error
        return Message(subject, found.data or b"", found.seq or 0)

    # -- buckets -------------------------------------------------------------------------------------------------

    def bucket(self, name: str) -> KvBucket:
        """The bucket of that name in `subjects`; it exists after `ensure_streams`."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = KvBucket(name, self._connection, self._publisher, self._open_feed, self._options.deadline_s)
            self._buckets[name] = bucket
        return bucket

    async def put_bodies(self, bodies: Iterable[tuple[str, bytes]]) -> None:
        """Store segment bodies by digest, all in flight together; each begins its lifetime anew.

        InvalidArgument (BODY_TOO_LARGE) above 1 MiB, ResourceExhausted (STREAM_FULL), Unavailable.
        """
        bucket = self.bucket(subjects.SEGMENTS_BUCKET)
        pairs = list(bodies)
        for digest, body in pairs:
            if len(body) > BODY_BYTES_MAX:
                raise InvalidArgument(
                    f"segment {digest} has {len(body)} bytes; the most is {BODY_BYTES_MAX}",
                    reason="BODY_TOO_LARGE",
                    field=digest,
                    details={"limit_bytes": str(BODY_BYTES_MAX)},
                )
        await asyncio.gather(*[await bucket.put_soon(digest, body) for digest, body in pairs])

    async def get_bodies(self, digests: Sequence[str]) -> list[bytes | None]:
        """Bodies in the order asked for, None for an unknown digest. `Unavailable` when NATS does not answer."""
        bucket = self.bucket(subjects.SEGMENTS_BUCKET)
        entries = await asyncio.gather(*(bucket.get(digest) for digest in digests))
        return [entry.value if entry else None for entry in entries]

    async def delete_bodies(self, digests: Sequence[str]) -> None:
        """Remove bodies, all in flight together; what is put afterwards stays. Errors as `put_bodies`."""
        bucket = self.bucket(subjects.SEGMENTS_BUCKET)
        await asyncio.gather(*[await bucket.expire_soon(digest) for digest in digests])

    # -- inside --------------------------------------------------------------------------------------------------

    async def _open_feed(self, position: Position, batch_max: int) -> Feed:
        if batch_max < 1:
            raise InvalidArgument("batch_max must be at least 1", reason="BAD_BATCH", field="batch_max")
        feed = Feed(self._connection, self._jetstream, position, batch_max)
        await self._administer(feed.open, position.stream)
        self._feed_count += 1
        self._feeds = {number: other for number, other in self._feeds.items() if not other.is_closed}
        self._feeds[self._feed_count] = feed
        return feed

    async def _administer(self, action: Callable[[], Awaitable[object]], stream: str) -> None:
        """Run an action on the JetStream API, again while the server does not answer, up to `connect_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._options.connect_s
        while True:
            try:
                await action()
                return
            except nats.js.errors.NotFoundError as error:
                raise stream_missing(stream) from error
            except (nats.errors.Error, TimeoutError) as error:
                if loop.time() >= deadline_s or self._connection.is_closed:
                    raise _unreachable(stream, error) from error
            await asyncio.sleep(self._options.reconnect_wait_s)

    async def _on_reconnected(self) -> None:
        if self._limits is not None:  # a stream in memory ended with its server
            try:
                await self.ensure_streams(self._limits)
            except HexagentError as error:
                log.error("the streams are not all there again: %s", error)
        await self._publisher.resend()
        for feed in self._feeds.values():
            feed.mark_stale()


_STREAM_NOT_FOUND: Final = 10059


def _unreachable(stream: str, error: BaseException) -> Unavailable:
    return Unavailable(f"NATS does not answer for {stream}: {error!r}", reason="BUS_UNAVAILABLE", field=stream)
