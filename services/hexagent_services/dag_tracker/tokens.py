"""Token deltas from the bus to watchers: live ones routed, missed ones read again from their stream."""

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final

from hexagent.api.workflow.v1 import events_pb2, workflow_pb2
from hexagent.core.errors import FailedPrecondition, HexagentError
from hexagent.core.ids import CallId
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus, Message
from hexagent.wire.codec import parse
from hexagent_services.dag_tracker.relay import Relay

log = logging.getLogger(__name__)

Update = workflow_pb2.WorkflowUpdate
Position = tuple[str, int]  # node id, which of its outputs

READ_BATCH: Final = 256


class TokenSource:
    """One wildcard subscription a process; a delta of a workflow that nobody watches is dropped unread."""

    def __init__(self, bus: Bus, relay: Relay) -> None:
        self._bus = bus
        self._relay = relay

    async def start(self) -> None:
        """Begin to route live deltas."""
        await self._bus.subscribe_core(subjects.ALL_TOKENS, self._on_delta)

    async def stored(self, subject: str) -> AsyncIterator[events_pb2.TokenDelta]:
        """The deltas that the stream holds under `subject` now, oldest first; none where it ended with its server."""
        try:
            feed = await self._bus.follow(subjects.TOKENS, subject, batch_max=READ_BATCH)
        except FailedPrecondition as error:
            log.warning("deltas under %s are not read again: %s", subject, error)
            return
        async with feed:
            async for batch in feed.backlog():
                for message in batch:
                    delta = _parsed(message)
                    if delta is not None:
                        yield delta

    def _on_delta(self, message: Message) -> None:
        workflow_id = subjects.workflow_of(message.subject)
        if self._relay.watched(workflow_id):
            delta = _parsed(message)
            if delta is not None:
                self._relay.show_tokens(workflow_id, Update(tokens=delta))


class TokenPositions:
    """How far one watcher has read each output, so that it gets every token once and in order."""

    def __init__(
        self, source: TokenSource, workflow_id: str, offsets: Mapping[Position, int], done: Collection[str]
    ) -> None:
        self._source = source
        self._workflow_id = workflow_id
        self._offsets = dict(offsets)
        self._done = done  # nodes whose end the watcher has seen, and with it their output

    async def backlog(self) -> AsyncIterator[Update]:
        """What the stream holds beyond the positions."""
        async for delta in self._source.stored(subjects.workflow_tokens(self._workflow_id)):
            if self._take(delta):
                yield Update(tokens=delta)

    async def next(self, delta: events_pb2.TokenDelta) -> list[Update]:
        """The updates a live delta leads to: none for a repetition, missed ones before it after a gap."""
        position = (delta.call.node_id, delta.choice)
        updates = []
        if delta.offset > self._offsets.get(position, 0):
            updates = await self._missed(delta.call.node_id)
            # What the stream has lost as well is passed over; the call's result has the whole output.
            self._offsets[position] = max(self._offsets.get(position, 0), delta.offset)
        if self._take(delta):
            updates.append(Update(tokens=delta))
        return updates

    async def _missed(self, node_id: str) -> list[Update]:
        subject = subjects.token(CallId(self._workflow_id, node_id))
        try:
            return [Update(tokens=delta) async for delta in self._source.stored(subject) if self._take(delta)]
        except HexagentError as error:
            log.warning("tokens of %s cannot be read again: %s", subject, error)
            return []

    def _take(self, delta: events_pb2.TokenDelta) -> bool:
        """Whether the delta comes next; if so, the position moves behind it."""
        position = (delta.call.node_id, delta.choice)
        at = self._offsets.get(position, 0)
        if delta.call.node_id in self._done or delta.offset != at or (delta.tokens == 0 and not delta.last):
            return False
        self._offsets[position] = at + delta.tokens
        return True


def _parsed(message: Message) -> events_pb2.TokenDelta | None:
    try:
        return parse(events_pb2.TokenDelta, message.data)
    except HexagentError as error:
        log.error("a message on %s is no token delta: %s", message.subject, error)
        return None
