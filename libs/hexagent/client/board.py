"""One workflow's nodes as its client knows them, kept up to date by one stream of updates."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import grpc

from hexagent.api.common.v1 import call_pb2, ids_pb2
from hexagent.api.workflow.v1 import events_pb2, workflow_pb2, workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.client.results import CallResult, call_error, call_result, tool_error
from hexagent.client.rpc import Retry, typed
from hexagent.core import errors
from hexagent.core.errors import HexagentError
from hexagent.core.ids import CallId
from hexagent.core.workflow.model import TERMINAL, CallOutcome, NodeStatus
from hexagent.wire.codec import enum_of
from hexagent.wire.results import call_result_from_proto

log = logging.getLogger(__name__)

# A string, as only the stubs' type information knows the name.
Stub: TypeAlias = "workflow_service_pb2_grpc.WorkflowServiceAsyncStub"
FetchBody = Callable[[CallId], Awaitable[call_pb2.SegmentBody]]

WATCH_PATIENCE_S: Final = 3600.0  # a watch that cannot be opened again fails what waits for it only after this


class TextStream:
    """The bytes of one output as they arrive, each once."""

    def __init__(self) -> None:
        self.offset = 0  # tokens received
        self._bytes = 0
        self._pieces: list[bytes] = []
        self._wake = asyncio.Event()
        self._ended = False

    def take(self, delta: events_pb2.TokenDelta) -> None:
        """Add what comes next; repetitions and what follows a gap are left to the result."""
        if delta.choice == 0 and delta.offset == self.offset and not self._ended:
            self.offset += delta.tokens
            self._add(delta.text)

    def end(self, output: bytes) -> None:
        """The call ended, with its whole output if it succeeded: whatever did not arrive is taken from that."""
        self._add(output[self._bytes :])
        self._ended = True
        self._wake.set()

    async def next(self) -> bytes | None:
        """All bytes that have arrived; waits for the first; None at the end."""
        while not self._pieces:
            if self._ended:
                return None
            self._wake.clear()
            await self._wake.wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def _add(self, data: bytes) -> None:
        if data:
            self._bytes += len(data)
            self._pieces.append(data)
            self._wake.set()


class Track:
    """One node: its last known status and its end."""

    __slots__ = ("changed", "done", "node", "status", "text")

    def __init__(self, node: CallId, text: TextStream | None) -> None:
        self.node = node
        self.status: NodeStatus | None = None  # None = not revealed
        self.changed = asyncio.Event()
        self.text = text  # of a call whose tokens somebody reads
        self.done: asyncio.Future[CallResult | None] = asyncio.get_running_loop().create_future()
        # A failure that nobody waits for is no fault: its children or the end of the workflow show it.
        self.done.add_done_callback(_retrieve)

    def set_status(self, status: NodeStatus) -> None:
        """Move on, and wake who waits for that."""
        self.status = status
        self.changed.set()

    def fail(self, error: BaseException) -> None:
        """End without a result."""
        if not self.done.done():
            self.done.set_exception(error)
            if self.text is not None:
                self.text.end(b"")
            self.changed.set()

    def succeed(self, result: CallResult | None) -> None:
        """End with a result; None for a tool."""
        if not self.done.done():
            self.done.set_result(result)
            if self.text is not None and result is not None:
                self.text.end(result.body.text)

    async def reach(self, *statuses: NodeStatus) -> NodeStatus:
        """Wait until the node is in one of `statuses`. Raises its error where it ends otherwise."""
        while self.status not in statuses:
            if self.done.done():
                self.done.result()
                raise errors.FailedPrecondition(f"{self.node} has ended", reason="NODE_FINISHED", field="node_id")
            self.changed.clear()
            await self.changed.wait()
        return self.status


class Board:
    """All tracks of a workflow, and the watch that moves them."""

    def __init__(self, stub: Stub, workflow_id: str, fetch_body: FetchBody) -> None:
        self.workflow_id = workflow_id
        self._stub = stub
        self._fetch_body = fetch_body
        self._tracks: dict[str, Track] = {}
        self._sequence = 0
        self._tokens = False  # somebody reads tokens
        self._task: asyncio.Task[None] | None = None
        self._call: grpc.aio.UnaryStreamCall[
            workflow_service_pb2.WatchWorkflowRequest, workflow_service_pb2.WatchWorkflowResponse
        ] | None = None  # fmt: skip
        self._reopen = False
        self._fetches: set[asyncio.Task[None]] = set()
        self.ended: workflow_pb2.WorkflowEnded | None = None

    def track(self, node_id: str, tokens: bool) -> Track:
        """Follow a node that is about to be revealed; begins the watch at the first."""
        track = Track(CallId(self.workflow_id, node_id), TextStream() if tokens else None)
        self._tracks[node_id] = track
        if self._task is None:
            self._tokens = tokens
            self._task = asyncio.create_task(self._watch(), name=f"watch {self.workflow_id}")
        elif tokens and not self._tokens:
            # The server reads back what was generated before the new watch stands.
            self._tokens = self._reopen = True
            if self._call is not None:
                self._call.cancel()
        return track

    def revealed(self, node: workflow_pb2.RevealedNode) -> None:
        """Where a reveal's answer says the node is; the watch may know better by now."""
        track = self._tracks.get(node.node_id)
        if track is not None and track.status is None:
            track.set_status(enum_of(NodeStatus, node.status, "status"))

    def forget(self, node_id: str) -> None:
        """A node that was not revealed after all."""
        self._tracks.pop(node_id, None)

    async def close(self, error: HexagentError) -> None:
        """End the watch; what still waits gets `error`."""
        for task in (self._task, *self._fetches):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._fail_all(error)

    async def _watch(self) -> None:
        retry = Retry(WATCH_PATIENCE_S)
        while self.ended is None:
            request = workflow_service_pb2.WatchWorkflowRequest(
                workflow_id=self.workflow_id,
                after_sequence=self._sequence,
                offsets=self._offsets(),
                without_tokens=not self._tokens,
            )
            self._reopen = False
            self._call = self._stub.WatchWorkflow(request)
            try:
                async for response in self._call:
                    retry.succeeded()
                    for update in response.updates:
                        self._take(update)
            except grpc.aio.AioRpcError as rpc_error:
                error = typed(rpc_error)
            except asyncio.CancelledError:
                if self._ends():
                    raise
                continue  # only the call was cancelled, to open it again with tokens
            else:
                error = errors.Unavailable("the watch ended early", reason="UNAVAILABLE")
            if self.ended is not None:
                return
            try:
                await retry.pause(error)
            except HexagentError:
                log.error("watching %s failed: %s", self.workflow_id, error)
                self._fail_all(error)
                return

    def _ends(self) -> bool:
        """Whether a cancellation means the watch as a whole, and not only the call it has open."""
        task = asyncio.current_task()
        return not self._reopen or (task is not None and task.cancelling() > 0)

    def _offsets(self) -> list[workflow_pb2.TokenOffset]:
        return [
            workflow_pb2.TokenOffset(
                call=ids_pb2.CallId(workflow_id=self.workflow_id, node_id=node_id), offset=track.text.offset
            )
            for node_id, track in self._tracks.items()
            if track.text is not None and track.text.offset and not track.done.done()
        ]

    def _take(self, update: workflow_pb2.WorkflowUpdate) -> None:
        self._sequence = max(self._sequence, update.sequence)
        match update.WhichOneof("update"):
            case "tokens":
                track = self._tracks.get(update.tokens.call.node_id)
                if track is not None and track.text is not None:
                    track.text.take(update.tokens)
            case "node":
                self._take_node(update.node)
            case "ended":
                self.ended = update.ended

    def _take_node(self, node: workflow_pb2.NodeUpdate) -> None:
        track = self._tracks.get(node.node_id)
        if track is None or track.done.done():
            return
        status = enum_of(NodeStatus, node.status, "status")
        if status in TERMINAL:
            if not node.HasField("result"):
                if status is NodeStatus.SUCCEEDED:
                    track.succeed(None)
                else:
                    track.fail(tool_error(track.node, status, node.reason, node.message))
            else:
                self._take_result(track, call_result_from_proto(node.result, track.node), node.result)
        track.set_status(status)

    def _take_result(self, track: Track, outcome: CallOutcome, message: workflow_pb2.CallResult) -> None:
        if outcome.status is not NodeStatus.SUCCEEDED:
            track.fail(call_error(outcome))
        elif message.HasField("output_body") or not outcome.output.digest:
            track.succeed(call_result(outcome, message.output_body))
        else:
            task = asyncio.create_task(self._fetch(track, outcome))
            self._fetches.add(task)
            task.add_done_callback(self._fetches.discard)

    async def _fetch(self, track: Track, outcome: CallOutcome) -> None:
        """An output too large to ride along is read by itself."""
        try:
            track.succeed(call_result(outcome, await self._fetch_body(track.node)))
        except HexagentError as error:
            track.fail(error)

    def _fail_all(self, error: HexagentError) -> None:
        for track in self._tracks.values():
            track.fail(error)


def _retrieve(future: "asyncio.Future[CallResult | None]") -> None:
    if not future.cancelled():
        future.exception()
