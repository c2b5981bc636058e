"""Watchers: who sees which updates of a workflow, with a bound on what waits for a slow reader."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.errors import HexagentError, ResourceExhausted, Unavailable

Update = workflow_pb2.WorkflowUpdate

LAZY_S: Final = 0.1  # news that nobody acts on waits this long, in wall time, for company
MESSAGE_BYTES: Final = 1024 * 1024  # of updates put into one message, unless a single one is larger
UPDATE_BYTES: Final = 64  # counted for every update beside its content


class RelayLimits(NamedTuple):
    """Each has a defined answer when it is hit."""

    watchers: int = 10_000  # open at a time; further ones are refused with TOO_MANY_WATCHERS
    queued_bytes: int = 8 * 1024 * 1024  # unread by one watcher; it ends with WATCHER_TOO_SLOW and can resume


class Watcher:
    """One open WatchWorkflow stream; its reader calls `next`."""

    __slots__ = ("_alarm", "_bytes", "_failure", "_limit_bytes", "_queue", "_wake", "tokens", "workflow_id")

    def __init__(self, workflow_id: str, tokens: bool, limit_bytes: int) -> None:
        self.workflow_id = workflow_id
        self.tokens = tokens  # wants token deltas
        self._limit_bytes = limit_bytes
        self._queue: list[Update] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._failure: HexagentError | None = None

    def push(self, updates: Sequence[Update], size: int, urgent: bool) -> None:
        """Queue updates of together `size` bytes; beyond the limit the watcher ends.

        Those that are not urgent are read with the next that are, or after `LAZY_S`: a message costs more than what
        is in it.
        """
        if self._failure is not None:
            return
        if self._bytes + size > self._limit_bytes:
            self.fail(
                ResourceExhausted(
                    f"the watcher of {self.workflow_id} reads too slowly: {self._bytes} bytes wait; watch again from"
                    " the last update",
                    reason="WATCHER_TOO_SLOW",
                    details={"limit_bytes": str(self._limit_bytes)},
                )
            )
            return
        self._queue.extend(updates)
        self._bytes += size
        if urgent:
            self._wake.set()
        elif self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(LAZY_S, self._wake.set)

    def fail(self, error: HexagentError) -> None:
        """End the stream with an error, in place of what was queued."""
        self._queue.clear()
        self._failure = error
        self._wake.set()

    async def next(self) -> list[Update]:
        """All that is queued; waits for what is urgent. Raises what `fail` was given."""
        await self._wake.wait()
        self._wake.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._failure is not None:
            self._wake.set()
            raise self._failure
        queue = self._queue
        self._queue = []
        self._bytes = 0
        return queue


class Relay:
    """All watchers by workflow. Nothing is kept for a workflow that nobody watches."""

    def __init__(self, limits: RelayLimits) -> None:
        self._limits = limits
        self._watchers: dict[str, list[Watcher]] = {}
        self._count = 0
        self._closed = False

    def watched(self, workflow_id: str) -> bool:
        """Whether updates of the workflow are worth making."""
        return workflow_id in self._watchers

    def attach(self, workflow_id: str, tokens: bool) -> Watcher:
        """A new watcher, which sees what is shown from now on. `ResourceExhausted`, or `Unavailable` at the end."""
        if self._closed:
            raise _stopping()
        if self._count >= self._limits.watchers:
            raise ResourceExhausted(
                f"{self._count} watchers are open", reason="TOO_MANY_WATCHERS", details={"limit": str(self._count)}
            )
        watcher = Watcher(workflow_id, tokens, self._limits.queued_bytes)
        self._watchers.setdefault(workflow_id, []).append(watcher)
        self._count += 1
        return watcher

    def detach(self, watcher: Watcher) -> None:
        """Forget a watcher that has ended."""
        watchers = self._watchers[watcher.workflow_id]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[watcher.workflow_id]
        self._count -= 1

    def show(self, workflow_id: str, updates: Sequence[Update]) -> None:
        """Updates for every watcher of the workflow."""
        watchers = self._watchers.get(workflow_id)
        if watchers:
            size = sum(update.ByteSize() + UPDATE_BYTES for update in updates)
            urgent = any(_is_urgent(update) for update in updates)
            for watcher in watchers:
                watcher.push(updates, size, urgent)

    def show_tokens(self, workflow_id: str, update: Update) -> None:
        """A token delta, for those who want tokens."""
        size = update.ByteSize() + UPDATE_BYTES
        for watcher in self._watchers.get(workflow_id, ()):
            if watcher.tokens:
                watcher.push((update,), size, urgent=True)

    async def close(self) -> None:
        """End every watcher: its client watches again elsewhere or later."""
        self._closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.fail(_stopping())


def _is_urgent(update: Update) -> bool:
    """Whether somebody may wait for it: not for a call to become ready or run, which is the cluster's business."""
    node = update.node
    return (
        not update.HasField("node")
        or node.status > enums_pb2.NODE_STATUS_RUNNING
        or (node.kind == enums_pb2.NODE_KIND_TOOL and node.status > enums_pb2.NODE_STATUS_BLOCKED)
    )


def chunks(updates: Iterable[Update]) -> Iterable[list[Update]]:
    """The updates in messages of about `MESSAGE_BYTES`; those of one event stay together, so that a client that
    lost its stream can resume behind any message."""
    chunk: list[Update] = []
    size = 0
    for update in updates:
        bytes_ = update.ByteSize()
        if chunk and size + bytes_ > MESSAGE_BYTES and (update.sequence == 0 or update.sequence != chunk[-1].sequence):
            yield chunk
            chunk, size = [], 0
        chunk.append(update)
        size += bytes_
    if chunk:
        yield chunk


def _stopping() -> Unavailable:
    return Unavailable("the tracker stops; watch again", reason="TRACKER_STOPPING")
