"""Reading a stream: in order, without gaps, each message once to a process, across lost connections.

A feed is a pull consumer with a standing request: the server sends as soon as a message is stored, and the request
is topped up when half of it is used. A reader who need not know at once polls instead: what came meanwhile arrives in
one go, which costs a fraction. Whenever a message may have been missed (the connection was lost, a delivery
number is skipped, heartbeats stop) the consumer is opened again behind the last message that was taken.
"""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from hexagent.core.errors import FailedPrecondition, Unavailable
from hexagent.runtime.connection import Arrival, Connection, headers_of

log = logging.getLogger(__name__)

REQUEST_S: Final = 30.0  # a standing request is renewed at least this often
HEARTBEAT_S: Final = 1.0  # the server says this often that a quiet request still stands
SILENCE_S: Final = 3.5  # no message and no heartbeat for this long: open again
REQUEST_BYTES_MAX: Final = 16 * 1024 * 1024  # that the server sends ahead of the reader
ACK_WAIT_S: Final = 60.0  # handling a batch may take this long before it is delivered again
ACK_DELAY_S: Final = 0.2  # an acknowledgement waits this long for later ones, which include it
UNUSED_CONSUMER_S: Final = 60.0  # the server forgets an unnamed consumer after this
REOPEN_WAIT_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

_FATAL_CONFLICTS: Final = ("Consumer Deleted", "Leadership Change", "Server Shutdown", "Consumer is push based")


class Message(NamedTuple):
    """One message of a stream, or of a core subject (then all numbers are 0)."""

    subject: str
    data: bytes
    sequence: int = 0  # in the stream, from 1
    pending: int = 0  # messages stored behind this one when it was sent
    stored_ns: int = 0  # wall time, ns since the epoch
    reply: str = ""
    header_block: bytes = b""

    @property
    def headers(self) -> Mapping[str, str]:
        """Read when asked for: most readers do not need them."""
        return headers_of(self.header_block)


class Position(NamedTuple):
    """What a feed reads and from where."""

    stream: str
    subject: str  # filter
    start_sequence: int = 1
    latest_only: bool = False  # begin with the last message of each subject
    durable: str = ""  # named: the server keeps the position, moved by `Feed.ack`
    poll_s: float = 0.0  # ask this often, in wall time, for what there is; 0 = have it sent at once


class Feed:
    """Made by `Bus.follow` and `Bus.consume`; one reader at a time."""

    def __init__(self, connection: Connection, jetstream: JetStreamContext, position: Position, batch_max: int) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._position = position
        self._batch_max = batch_max
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._consumer = ""
        self._outstanding = 0  # messages the server may still send to standing requests
        self._expected = 1  # number of the next delivery
        self._queued_sequence = 0  # last put into the queue
        self._taken_sequence = 0  # last given to the reader
        self._acked_sequence = 0
        self._unsent_ack = ""
        self._unacked = 0  # messages given out since an acknowledgement was sent
        self._ack_timer: asyncio.TimerHandle | None = None
        self._backlog = 0  # messages that were stored at the opening and are not yet given out
        self._pause_s = 0.0  # before the next request of a feed that polls
        self._heard_s = 0.0
        self._stale = False
        self._closed = False

    # -- reading -------------------------------------------------------------------------------------------------

    async def backlog(self) -> AsyncIterator[list[Message]]:
        """Batches up to the end of the stream as it was when the feed was opened, then stop."""
        while self._backlog > 0:
            try:
                batch = await self.next_batch()
            except _FeedClosed:
                return
            yield batch

    def __aiter__(self) -> AsyncIterator[list[Message]]:
        return self._live()

    async def _live(self) -> AsyncIterator[list[Message]]:
        while True:
            try:
                batch = await self.next_batch()
            except _FeedClosed:
                return
            yield batch

    async def next_batch(self) -> list[Message]:
        """All messages that have arrived, at most `batch_max`; waits for the first.

        FailedPrecondition (STREAM_MISSING, STREAM_RESET) where the stream is gone or was made anew, Unavailable
        where the connection is closed for good. Lost connections are waited for.
        """
        while not self._queue:
            if self._closed:
                raise _FeedClosed("the feed is closed", reason="FEED_CLOSED")
            if self._stale:
                await self._reopen()
            elif self._outstanding == 0:  # a feed that polls has all there was
                await asyncio.sleep(self._pause_s)
                self._request()
            else:
                await self._wait()
        queue = self._queue
        batch = [queue.popleft() for _ in range(min(len(queue), self._batch_max))]
        last = batch[-1]
        self._taken_sequence = last.sequence
        self._unacked += len(batch)
        self._backlog = 0 if last.pending == 0 else max(0, self._backlog - len(batch))
        return batch

    def ack(self, message: Message) -> None:
        """Move a durable position behind `message`, which also acknowledges all messages before it.

        Not confirmed, and sent for several at a time: after a crash messages may be delivered again.
        """
        self._acked_sequence = max(self._acked_sequence, message.sequence)
        self._unsent_ack = message.reply
        if self._unacked >= self._batch_max:
            self._send_ack()
        elif self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._send_ack)

    def _send_ack(self) -> None:
        """Not while stale: delivery numbers start over when the consumer is opened again, behind what is handled."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._unsent_ack and not self._stale:
            self._connection.send(self._unsent_ack, b"")
        self._unsent_ack, self._unacked = "", 0

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def close(self) -> None:
        """End the feed; a waiting reader stops."""
        self._closed = True
        self._wake()
        self._send_ack()
        await self._unsubscribe()
        if self._consumer and not self._position.durable and self._connection.is_connected:
            try:
                await self._jetstream.delete_consumer(self._position.stream, self._consumer)
            except (nats.errors.Error, TimeoutError):
                log.debug("an unused consumer of %s is left to expire", self._position.stream)

    async def __aenter__(self) -> "Feed":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- opening -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """One attempt to make the consumer and ask for messages. Errors of nats-py pass through."""
        await self._unsubscribe()
        self._queue.clear()
        self._queued_sequence = self._taken_sequence
        state = (await self._jetstream.stream_info(self._position.stream)).state
        if state.last_seq < self._taken_sequence:
            raise FailedPrecondition(
                f"stream {self._position.stream} ends at {state.last_seq}, but {self._taken_sequence} was read from it",
                reason="STREAM_RESET",
                field=self._position.stream,
            )
        info = await (self._open_durable() if self._position.durable else self._open_unnamed())
        self._consumer = info.name
        self._backlog = info.num_pending or 0
        self._expected = 1
        self._outstanding = 0
        self._pause_s = 0.0
        self._unsent_ack = ""
        self._stale = False
        self._heard_s = self._loop.time()
        self._inbox = self._connection.new_inbox()
        self._subscription = await self._connection.take(self._inbox, self._on_message)
        self._request()

    async def _open_unnamed(self) -> ConsumerInfo:
        position = self._position
        config = ConsumerConfig(
            filter_subject=position.subject,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=UNUSED_CONSUMER_S,
        )
        if position.latest_only and self._taken_sequence == 0:
            config.deliver_policy = DeliverPolicy.LAST_PER_SUBJECT
        else:
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = max(position.start_sequence, self._taken_sequence + 1)
        return await self._jetstream.add_consumer(position.stream, config)

    async def _open_durable(self) -> ConsumerInfo:
        """Take over the named consumer: what its last reader had not acknowledged is delivered again at once."""
        position = self._position
        config = ConsumerConfig(
            durable_name=position.durable,
            filter_subject=position.subject,
            ack_policy=AckPolicy.ALL,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=4 * self._batch_max,
        )
        await self._jetstream.add_consumer(position.stream, config)
        # What this process has handled needs no second delivery, even where its acknowledgement was lost.
        await self._jetstream.reset_consumer(
            position.stream, position.durable, seq=self._acked_sequence + 1 if self._acked_sequence else None
        )
        info: ConsumerInfo = await self._jetstream.consumer_info(position.stream, position.durable)
        return info

    async def _reopen(self) -> None:
        attempt = 0
        while not self._closed:
            if self._connection.is_closed:
                raise Unavailable("the connection to NATS is closed", reason="BUS_CLOSED")
            if self._connection.is_connected:
                try:
                    await self.open()
                    return
                except nats.js.errors.NotFoundError as error:
                    raise stream_missing(self._position.stream) from error
                except (nats.errors.Error, TimeoutError) as error:
                    log.info("opening %s again failed: %r", self._position.stream, error)
            await asyncio.sleep(REOPEN_WAIT_S[min(attempt, len(REOPEN_WAIT_S) - 1)])
            attempt += 1

    async def _unsubscribe(self) -> None:
        if self._subscription is not None:
            # The connection may be closed or draining, and the subscription gone with it.
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()
            self._subscription = None

    # -- receiving -----------------------------------------------------------------------------------------------

    def mark_stale(self) -> None:
        """Messages may have been missed: open again before the next wait."""
        self._stale = True
        self._wake()

    def _request(self) -> None:
        missing = self._batch_max - self._outstanding
        request: dict[str, int | bool] = {"batch": missing, "max_bytes": REQUEST_BYTES_MAX}
        if self._position.poll_s:
            request["no_wait"] = True
            self._pause_s = 0.0
        else:
            request |= {"expires": int(REQUEST_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        self._outstanding += missing
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._position.stream}.{self._consumer}"
        self._connection.send(subject, json.dumps(request).encode(), self._inbox)

    def _on_message(self, message: Arrival) -> None:
        self._heard_s = self._loop.time()
        if self._stale:
            return
        reply = message.reply
        if not reply.startswith("$JS.ACK."):
            self._on_status(message.header_block)
            return
        # $JS.ACK.[domain.account.]stream.consumer.deliveries.stream_seq.consumer_seq.time.pending[.random]
        tokens = reply.split(".")
        at = 4 if len(tokens) == 9 else 6
        sequence, delivery, stored_ns, pending = map(int, tokens[at + 1 : at + 5])
        if delivery != self._expected:
            self.mark_stale()
            return
        self._expected += 1
        self._outstanding -= 1
        if sequence > self._queued_sequence:
            self._queued_sequence = sequence
            self._queue.append(
                Message(message.subject, message.data, sequence, pending, stored_ns, reply, message.header_block)
            )
            self._wake()
        elif sequence <= self._acked_sequence:
            self._connection.send(reply, b"")  # its acknowledgement was lost
        self._top_up()

    def _top_up(self) -> None:
        """Keep a standing request at least half open."""
        if not self._position.poll_s and self._outstanding * 2 <= self._batch_max:
            self._request()

    def _on_status(self, header_block: bytes) -> None:
        """The server's word on a request: 100 heartbeat, 404 and 408 over, 409 over or cut short, 503 nobody there."""
        headers = headers_of(header_block)
        status = headers.get("Status", "")
        description = headers.get("Description", "")
        if status == "100":
            return
        if status == "503" or any(conflict in description for conflict in _FATAL_CONFLICTS):
            self.mark_stale()
            return
        unused = headers.get("Nats-Pending-Messages")
        self._outstanding = max(0, self._outstanding - int(unused)) if unused else 0
        if self._position.poll_s:
            self._outstanding, self._pause_s = 0, self._position.poll_s
            self._wake()
        self._top_up()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        alarm = self._loop.call_later(SILENCE_S, self._on_silence)
        try:
            await self._waiter
        finally:
            alarm.cancel()
            self._waiter = None

    def _on_silence(self) -> None:
        if self._connection.is_closed or self._loop.time() - self._heard_s >= SILENCE_S - HEARTBEAT_S:
            self.mark_stale()
        else:
            self._wake()


class _FeedClosed(Unavailable):
    """`close` was called while a reader waited."""


def stream_missing(stream: str) -> FailedPrecondition:
    """The error for a stream or bucket that nobody made."""
    return FailedPrecondition(f"stream {stream} does not exist", reason="STREAM_MISSING", field=stream)
