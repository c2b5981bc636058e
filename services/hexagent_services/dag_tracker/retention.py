"""How long bodies stay: until a while after the end of the last workflow that names them."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from hexagent.core.errors import HexagentError
from hexagent.core.workflow.events import CallFinished, NodesRevealed, WorkflowEvent, WorkflowFinished
from hexagent.runtime import subjects
from hexagent.runtime.clock import Clock
from hexagent.runtime.kv import KvBucket
from hexagent_services.dag_tracker.effects import EventLog
from hexagent_services.dag_tracker.segments import SegmentStore
from hexagent_services.dag_tracker.trail import Trail

log = logging.getLogger(__name__)

BATCH: Final = 64  # bodies deleted at a time, so that events do not wait behind them


class Ended(NamedTuple):
    """A workflow at its end, with the bodies it named."""

    trail: Trail
    at_us: int
    digests: tuple[str, ...]


class Retention:
    """Counts the holders of each body: workflows that name it, until their grace after the end is over.

    Of more than `ended_max` ended ones the oldest have no grace left. What ended at or before `freed_up_to`, a
    sequence of the stream, was freed by an earlier process.
    """

    def __init__(self, grace_us: int, ended_max: int, freed_up_to: int) -> None:
        self._grace_us = grace_us
        self._ended_max = ended_max
        self._freed_up_to = freed_up_to
        self._holders: dict[str, int] = {}  # by digest
        self._named: dict[str, dict[str, None]] = {}  # digests by workflow that runs
        self._ended: deque[Ended] = deque()  # in the order of the stream

    def note(self, event: WorkflowEvent, trail: Trail, stored_at: int = 0) -> None:
        """Take in an event; a replayed one comes with its sequence in the stream."""
        match event:
            case NodesRevealed(nodes=nodes):
                calls = (node.call for node in nodes if node.call is not None)
                self._name(trail.workflow_id, (segment.digest for call in calls for segment in call.segments))
            case CallFinished(outcome=outcome):
                self._name(trail.workflow_id, (outcome.output.digest,))
            case WorkflowFinished():
                digests = tuple(self._named.pop(trail.workflow_id, ()))
                if 0 < stored_at <= self._freed_up_to:
                    self.release(digests)
                else:
                    self._ended.append(Ended(trail, event.at_us, digests))

    def due(self, now_us: int) -> Ended | None:
        """The longest ended workflow, out of the others, if its grace was over before `now_us`."""
        if self._ended:
            grace_us = self._grace_us if len(self._ended) <= self._ended_max else 0
            if self._ended[0].at_us + grace_us < now_us:
                return self._ended.popleft()
        return None

    def release(self, digests: Iterable[str]) -> list[str]:
        """One holder less of each; those without any."""
        free: list[str] = []
        for digest in digests:
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]
                free.append(digest)
        return free

    def _name(self, workflow_id: str, digests: Iterable[str]) -> None:
        named = self._named.setdefault(workflow_id, {})
        for digest in digests:
            if digest and digest not in named:
                named[digest] = None
                self._holders[digest] = self._holders.get(digest, 0) + 1


async def freed_up_to(bucket: KvBucket) -> int:
    """The end in the stream up to which bodies were freed."""
    entry = await bucket.get(subjects.FREED_KEY)
    return int(entry.value) if entry is not None and entry.value is not None else 0


async def free_bodies(
    retention: Retention, segments: SegmentStore, events: EventLog, bucket: KvBucket, clock: Clock, period_s: float
) -> None:
    """Delete bodies when their time is over and keep in `bucket` how far that has come, until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        now_us = clock.now_us()
        await events.all_settled()  # an end before `now_us` that is not stored might never have been
        freed: Ended | None = None
        while (ended := retention.due(now_us)) is not None:
            freed = ended
            await _free(retention, segments, ended.digests)
        if freed is not None:
            try:
                await bucket.put(subjects.FREED_KEY, str(freed.trail.stored_at).encode())
            except HexagentError as error:
                log.warning("a restart will delete bodies again that are gone: %s", error)


async def _free(retention: Retention, segments: SegmentStore, digests: Sequence[str]) -> None:
    for start in range(0, len(digests), BATCH):
        free = retention.release(digests[start : start + BATCH])
        try:
            await segments.delete(free)
        except HexagentError as error:
            log.warning("%d bodies are left to their lifetime in the bucket: %s", len(free), error)
