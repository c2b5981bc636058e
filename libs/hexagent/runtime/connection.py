"""nats-py's client with a short way in and out for the messages that every call costs.

nats-py gives each subscription a queue and a task, and each message an object with a dictionary of its headers; what
is sent goes through a second task. That is three turns of the event loop around an acknowledgement of forty bytes.
Here a plain function takes each message from the parser, and all that one turn sends is written at its end. Connecting,
reconnecting, subscribing and the JetStream API stay nats-py's.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

log = logging.getLogger(__name__)

_HEADER_LINE: Final = b"NATS/1.0"


class Arrival(NamedTuple):
    """A message as it came."""

    subject: str
    reply: str
    data: bytes
    header_block: bytes  # b"" = none; `headers_of` reads it

    @property
    def no_responders(self) -> bool:
        """Whether the server says that nobody listens on the subject of a request."""
        return self.header_block.startswith(b"NATS/1.0 503")


Take = Callable[[Arrival], None]


class Connection(Client):
    """`take` and `send` beside nats-py's own methods."""

    def __init__(self) -> None:
        super().__init__()
        self._takers: dict[int, Take] = {}
        self._answers: dict[str, asyncio.Future[Arrival]] = {}
        self._inbox = ""
        self._asked = 0
        self._writing = False

    @property
    def unsent_bytes(self) -> int:
        """What has not left this process yet: it grows while the server does not read."""
        writer = getattr(self._transport, "_io_writer", None)
        return self._pending_data_size + (writer.transport.get_write_buffer_size() if writer is not None else 0)

    async def take(self, subject: str, taker: Take) -> Subscription:
        """Subscribe; `taker` is called for each message in order. What it raises is logged."""
        self._takers[self._sid + 1] = taker  # the number that `subscribe` gives before it waits for anything
        return await self.subscribe(subject)

    def send(self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Write a message at the end of this turn of the event loop; dropped while the connection is lost.

        `nats.errors.MaxPayloadError`. Subjects and headers are those of `subjects` and are not checked again.
        """
        if len(data) > self._max_payload:
            raise nats.errors.MaxPayloadError
        if not self.is_connected:
            return
        if headers:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            block = b"%s\r\n%s\r\n" % (_HEADER_LINE, lines.encode())
            line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(data)}\r\n".encode()
            command = b"%s%s%s\r\n" % (line, block, data)
        else:
            command = b"%s%s\r\n" % (f"PUB {subject} {reply} {len(data)}\r\n".encode(), data)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write)

    async def ask(self, subject: str, timeout_s: float) -> Arrival:
        """The first answer to an empty request. `TimeoutError`, `nats.errors.NoRespondersError`."""
        if not self._inbox:
            self._inbox = self.new_inbox() + "."
            await self.take(self._inbox + "*", self._take_answer)
        self._asked += 1
        token = str(self._asked)
        answer: asyncio.Future[Arrival] = asyncio.get_running_loop().create_future()
        self._answers[token] = answer
        try:
            self.send(subject, b"", self._inbox + token)
            async with asyncio.timeout(timeout_s):
                arrival = await answer
        finally:
            del self._answers[token]
        if arrival.no_responders:
            raise nats.errors.NoRespondersError
        return arrival

    def _take_answer(self, arrival: Arrival) -> None:
        answer = self._answers.get(arrival.subject.rpartition(".")[2])
        if answer is not None and not answer.done():
            answer.set_result(arrival)

    def _write(self) -> None:
        self._writing = False
        if self._pending and self.is_connected and self._transport is not None:
            commands, self._pending, self._pending_data_size = self._pending, [], 0
            with contextlib.suppress(OSError, RuntimeError):  # lost: the reader finds out and connects again
                self._transport.writelines(commands)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        taker = self._takers.get(sid)
        if taker is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        elif sid in self._subs:
            try:
                taker(Arrival(subject.decode(), reply.decode(), data, headers or b""))
            except Exception:
                log.exception("handling a message on %s failed", subject.decode())

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._takers.pop(sid, None)


def headers_of(block: bytes) -> dict[str, str]:
    """Fields of a header block; the server's word, where its first line holds one, as `Status` and `Description`."""
    if not block:
        return {}
    first, *lines = block.decode(errors="replace").split("\r\n")
    fields: dict[str, str] = {}
    if word := first[len(_HEADER_LINE) :].strip():
        fields["Status"], _, fields["Description"] = word.partition(" ")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields[name] = value.strip()
    return fields
