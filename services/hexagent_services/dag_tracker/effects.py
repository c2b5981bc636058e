"""Writing events: stored in the stream in order, and only then shown to anyone.

State changes once, when a command is handled; the event that says so is stored afterwards. A process that cannot
store an event has a state that its stream does not know, so it ends, and its successor starts from the stream.
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.errors import HexagentError, Unavailable
from hexagent.core.workflow.events import WorkflowEvent
from hexagent.runtime import subjects
from hexagent.wire.workflow import event_to_bytes
from hexagent_services.dag_tracker.trail import Trail

log = logging.getLogger(__name__)

Update = workflow_pb2.WorkflowUpdate
Show = Callable[[str, Sequence[Update]], None]  # workflow id, updates to its watchers


class Publisher(Protocol):
    """What the log needs of the bus."""

    async def publish_soon(
        self,
        subject: str,
        data: bytes,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expected_sequence: int | None = None,
    ) -> "asyncio.Future[int]":
        """Send a message; the future gives its sequence in the stream."""


class _Entry:
    """One event on its way to the stream."""

    __slots__ = ("data", "expected", "future", "headers", "msg_id", "stored", "trail", "updates", "waiter")

    def __init__(self, trail: Trail, data: bytes, msg_id: str, expected: int | None) -> None:
        self.trail = trail
        self.data = data
        self.headers = trail.trace_context
        self.msg_id = msg_id
        self.expected = expected  # the subject's last sequence in the stream, None where it is still on its way
        self.future: asyncio.Future[int] | None = None  # of its sequence in the stream
        self.updates: list[Update] = []  # shown once it is stored
        self.waiter: asyncio.Future[None] | None = None
        self.stored = False


class EventLog:
    """The one writer of the stream. Many events are in flight together; each is shown after all before it."""

    def __init__(self, publisher: Publisher, show: Show) -> None:
        self._publisher = publisher
        self._show = show
        # Two processes never give one id to different events, so the stream's memory of ids cannot swallow one.
        self._run = uuid.uuid4().hex[:8]
        self._unsent: deque[_Entry] = deque()
        self._sent: deque[_Entry] = deque()
        self._tails: dict[str, _Entry] = {}  # last event of each workflow that has some on their way
        self._tail: _Entry | None = None
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    def append(self, trail: Trail, event: WorkflowEvent, updates: Sequence[Update]) -> None:
        """Put the event, already counted by `trail`, on its way; `updates` are shown once it is stored."""
        workflow_id = trail.workflow_id
        msg_id = f"{workflow_id}/{trail.sequence}.{self._run}"
        data = event_to_bytes(event, event_id=msg_id, sequence=trail.sequence)
        # The first of a chain names its predecessor: a second writer of the workflow is found out and both stop.
        expected = None if workflow_id in self._tails else trail.stored_at
        entry = _Entry(trail, data, msg_id, expected)
        for update in updates:
            update.event_id = msg_id
        entry.updates.extend(updates)
        self._tails[workflow_id] = self._tail = entry
        self._unsent.append(entry)
        self._wake.set()

    def show(self, workflow_id: str, updates: Sequence[Update]) -> None:
        """Show updates that no event keeps, behind the events of the workflow that are on their way."""
        entry = self._tails.get(workflow_id)
        if entry is None:
            self._show(workflow_id, updates)
        else:
            entry.updates.extend(updates)

    async def settled(self, workflow_id: str) -> None:
        """Return when every event so far of the workflow is stored. `Unavailable` if the log has failed."""
        await self._wait(self._tails.get(workflow_id))

    async def all_settled(self) -> None:
        """Return when every event so far is stored. `Unavailable` if the log has failed."""
        await self._wait(self._tail)

    async def run(self) -> None:
        """Send events until cancelled; one that cannot be stored raises the bus's error, which ends the process."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._send_all()
            except HexagentError as error:
                self._failure = error
            if self._failure is not None:
                self._fail_waiters(self._failure)
                raise self._failure

    async def _send_all(self) -> None:
        while self._unsent and self._failure is None:
            entry = self._unsent.popleft()
            self._sent.append(entry)
            subject = subjects.workflow(entry.trail.workflow_id)
            future = await self._publisher.publish_soon(
                subject, entry.data, entry.msg_id, entry.headers, entry.expected
            )
            entry.future = future
            entry.data = b""
            future.add_done_callback(self._on_answer)

    def _on_answer(self, _: "asyncio.Future[int]") -> None:
        """Show what is stored, in order."""
        while self._sent:
            entry = self._sent[0]
            future = entry.future
            if future is None or not future.done():
                return
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            if error is not None:
                log.critical("event %s cannot be stored: %s", entry.msg_id, error)
                self._failure = error
                self._wake.set()
                return
            self._sent.popleft()
            self._land(entry, future.result())

    def _land(self, entry: _Entry, stored_at: int) -> None:
        entry.stored = True
        trail = entry.trail
        trail.stored_at = stored_at
        if self._tails.get(trail.workflow_id) is entry:
            del self._tails[trail.workflow_id]
        if entry.updates:
            self._show(trail.workflow_id, entry.updates)
        if entry.waiter is not None and not entry.waiter.done():
            entry.waiter.set_result(None)

    async def _wait(self, entry: _Entry | None) -> None:
        if self._failure is not None:
            raise _failed(self._failure)
        if entry is None or entry.stored:
            return
        if entry.waiter is None:
            entry.waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(entry.waiter)

    def _fail_waiters(self, failure: BaseException) -> None:
        for entry in (*self._sent, *self._unsent):
            if entry.waiter is not None and not entry.waiter.done():
                entry.waiter.set_exception(_failed(failure))


def _failed(error: BaseException) -> HexagentError:
    return Unavailable(f"the tracker stops: an event could not be stored ({error})", reason="TRACKER_STOPPING")
