"""Acknowledged publishing to JetStream: many messages in flight, sent again until stored or given up."""

import asyncio
import json
import logging
from collections.abc import Coroutine, Mapping
from typing import Final

import nats.errors
import nats.js.errors

from hexagent.core.errors import Aborted, HexagentError, Internal, ResourceExhausted, Unavailable
from hexagent.runtime.connection import Arrival, Connection

log = logging.getLogger(__name__)

ACK_WAIT_S: Final = 2.0  # a message without an answer is sent again after this
RESEND_CHECK_S: Final = 0.1  # how often unanswered and refused messages are looked at

_WRONG_LAST_SEQUENCE: Final = (10071, 10164)
_MESSAGE_ID: Final = "Nats-Msg-Id"
_TOO_LARGE: Final = 10054
_STREAM_FULL: Final = (10077, 10047)  # maximum bytes exceeded, insufficient storage


class _Flight:
    """A message on its way."""

    __slots__ = ("data", "deadline_s", "future", "headers", "resend_at_s", "sent", "subject")

    def __init__(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str] | None,
        future: "asyncio.Future[int]",
        deadline_s: float,
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.future = future
        self.deadline_s = deadline_s
        self.resend_at_s = 0.0  # loop time
        self.sent = 0  # times

    def may_be_stored(self) -> bool:
        """Whether it was sent before and can be told from others."""
        return self.sent > 1 and _MESSAGE_ID in (self.headers or {})


class AckedPublisher:
    """Publishes of one connection; at most `in_flight_max` unanswered, further ones wait.

    Messages reach the stream in the order of `send`, also across a lost connection. Only where the server refuses
    one and takes later ones can the order differ; whoever needs more awaits each message.
    """

    def __init__(self, connection: Connection, in_flight_max: int) -> None:
        self._connection = connection
        self._jetstream = connection.jetstream(timeout=ACK_WAIT_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(in_flight_max)
        self._flights: dict[str, _Flight] = {}
        self._in_flight = asyncio.Event()
        self._next = 0
        self._held = False
        self._losses = 0  # of the connection
        self._inbox = ""
        self._watcher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Subscribe to the answers."""
        self._inbox = self._connection.new_inbox() + "."
        await self._connection.take(self._inbox + "*", self._on_answer)
        self._watcher = self._loop.create_task(self._watch(), name="bus-resend")

    async def send(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, deadline_s: float
    ) -> "asyncio.Future[int]":
        """Put one message in flight; the future gives its stream sequence.

        The future fails with Unavailable (BUS_UNAVAILABLE: not stored within `deadline_s` seconds of wall time, as
        far as is known), Aborted (WRONG_SEQUENCE: an expected sequence differs), ResourceExhausted
        (MESSAGE_TOO_LARGE, STREAM_FULL) or Internal.
        """
        deadline = self._loop.time() + deadline_s
        if self._slots.locked():
            try:
                async with asyncio.timeout_at(deadline):
                    await self._slots.acquire()
            except TimeoutError:
                raise _unavailable(subject) from None
        else:
            await self._slots.acquire()
        self._next += 1
        token = str(self._next)
        flight = _Flight(subject, data, dict(headers) if headers else None, self._loop.create_future(), deadline)
        self._flights[token] = flight
        self._in_flight.set()
        try:
            self._write(token, flight)
        except BaseException:
            self._land(token)
            raise
        return flight.future

    def hold(self) -> None:
        """Send nothing until `resend`; called when the connection is lost.

        What nats-py still has in its buffer would arrive ahead of what was lost on the wire, and what is sent
        between its reconnection and `resend` likewise. All of it is in flight here, so the buffer is dropped.
        """
        self._held = True
        self._losses += 1
        self._connection._pending.clear()
        self._connection._pending_data_size = 0

    async def resend(self) -> None:
        """Send all unanswered messages again, in order; called when a connection is back."""
        loss, last = self._losses, 0
        while flights := [(token, flight) for token, flight in self._flights.items() if int(token) > last]:
            for token, flight in flights:
                try:
                    self._transmit(token, flight)
                except HexagentError as error:
                    self._fail(token, flight, error)
            last = int(flights[-1][0])
        if loss == self._losses:  # else the connection was lost meanwhile, and this begins again
            self._held = False

    async def flush(self, deadline_s: float) -> None:
        """Wait until every message is answered. `Unavailable` if that takes longer than `deadline_s`."""
        futures = [flight.future for flight in self._flights.values()]
        if futures:
            _, waiting = await asyncio.wait(futures, timeout=deadline_s)
            if waiting:
                raise Unavailable(
                    f"{len(waiting)} messages are not acknowledged after {deadline_s:g} s", reason="BUS_UNAVAILABLE"
                )

    async def close(self) -> None:
        """Fail what is still in flight with `Unavailable`."""
        if self._watcher is not None:
            self._watcher.cancel()
        for token, flight in list(self._flights.items()):
            self._fail(token, flight, _unavailable(flight.subject))

    def _write(self, token: str, flight: _Flight) -> None:
        if self._connection.is_closed or self._connection.is_draining:
            raise _unavailable(flight.subject)
        if self._connection.is_connected and not self._held:  # else `resend` follows when the connection is back
            self._transmit(token, flight)

    def _transmit(self, token: str, flight: _Flight) -> None:
        flight.sent += 1
        flight.resend_at_s = self._loop.time() + ACK_WAIT_S
        try:
            self._connection.send(flight.subject, flight.data, self._inbox + token, flight.headers)
        except nats.errors.MaxPayloadError:
            raise ResourceExhausted(
                f"a message of {len(flight.data)} bytes to {flight.subject} exceeds the server's maximum",
                reason="MESSAGE_TOO_LARGE",
                field="data",
                details={"bytes": str(len(flight.data))},
            ) from None

    def _on_answer(self, message: Arrival) -> None:
        token = message.subject.rpartition(".")[2]
        flight = self._flights.get(token)
        if flight is None:
            return
        if flight.future.done():  # given up by its owner
            self._land(token)
            return
        if message.no_responders:
            # The stream is not up yet: the server answers for it a moment after it accepts connections.
            flight.resend_at_s = self._loop.time() + RESEND_CHECK_S
            return
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is None:
            self._land(token)
            flight.future.set_result(answer["seq"])
        elif (
            error.get("err_code") in _WRONG_LAST_SEQUENCE and flight.sent > 1 and _MESSAGE_ID in (flight.headers or {})
        ):
            self._start(self._settle_conflict(token, flight, error))
        elif error.get("code") == 503 and error.get("err_code") not in _STREAM_FULL:
            flight.resend_at_s = self._loop.time() + RESEND_CHECK_S
        else:
            self._fail(token, flight, _refused(flight, error))

    async def _watch(self) -> None:
        """Send again what got no answer in time, give up what is past its deadline."""
        while True:
            if not self._flights:
                self._in_flight.clear()
                await self._in_flight.wait()
            await asyncio.sleep(RESEND_CHECK_S)
            now_s = self._loop.time()
            for token, flight in list(self._flights.items()):
                if flight.future.done():
                    self._land(token)
                elif now_s >= flight.deadline_s:
                    self._fail(token, flight, _unavailable(flight.subject))
                elif now_s >= flight.resend_at_s:
                    try:
                        self._write(token, flight)
                    except HexagentError as error:
                        self._fail(token, flight, error)

    async def _settle_conflict(self, token: str, flight: _Flight, error: Mapping[str, object]) -> None:
        """Find out what a wrong sequence means for a message that was sent twice.

        The server looks at the sequence before it looks at the id, so a second sending is refused where the first
        was stored. The last message of the subject tells: it carries the id.
        """
        try:
            stream = await self._jetstream.find_stream_name_by_subject(flight.subject)
            last = await self._jetstream.get_msg(stream, subject=flight.subject)
        except nats.js.errors.NotFoundError:
            self._fail(token, flight, _refused(flight, error))
            return
        except (nats.errors.Error, TimeoutError):
            flight.resend_at_s = self._loop.time() + RESEND_CHECK_S  # ask once more
            return
        headers = flight.headers or {}
        if (last.headers or {}).get(_MESSAGE_ID) != headers[_MESSAGE_ID]:
            self._fail(token, flight, _refused(flight, error))
        elif not flight.future.done():
            self._land(token)
            flight.future.set_result(last.seq or 0)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _land(self, token: str) -> None:
        if self._flights.pop(token, None) is not None:
            self._slots.release()

    def _fail(self, token: str, flight: _Flight, error: HexagentError) -> None:
        self._land(token)
        if not flight.future.done():
            flight.future.set_exception(error)


def _unavailable(subject: str) -> Unavailable:
    return Unavailable(f"NATS did not acknowledge a message to {subject}", reason="BUS_UNAVAILABLE", field="subject")


def _refused(flight: _Flight, error: Mapping[str, object]) -> HexagentError:
    code = error.get("err_code")
    text = f"NATS refused a message to {flight.subject}: {error.get('description')}"
    details = {"nats_error_code": str(code)}
    if code in _WRONG_LAST_SEQUENCE:
        return Aborted(text, reason="WRONG_SEQUENCE", field="subject", details=details)
    if code == _TOO_LARGE:
        return ResourceExhausted(text, reason="MESSAGE_TOO_LARGE", field="data", details=details)
    if code in _STREAM_FULL:
        return ResourceExhausted(text, reason="STREAM_FULL", field="subject", details=details)
    return Internal(text, reason="BUS_REFUSED", field="subject", details=details)
