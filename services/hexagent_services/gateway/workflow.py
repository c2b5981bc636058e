"""A workflow as the gateway holds it: calls that come one by one, from requests that do not know of each other."""

import asyncio
import codecs
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hexagent.api.common.v1 import call_pb2, enums_pb2, ids_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.client import CallResult
from hexagent.client.board import Board, Stub, Track
from hexagent.client.reveal import KnownBodies, Pending, Revealer, Timing
from hexagent.client.rpc import minted, send
from hexagent.core import errors
from hexagent.core.errors import HexagentError
from hexagent.core.ids import CallId
from hexagent.core.tracing import TraceContext, carrier_of

log = logging.getLogger(__name__)

api = workflow_service_pb2

REASON_CHARS: Final = 128


class Background:
    """Requests that nobody waits for; a failure is only logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, object], what: str) -> None:
        """Run `work` beside everything else."""

        async def run() -> None:
            try:
                await work
            except HexagentError as error:
                log.info("%s: %s", what, error)

        task = asyncio.create_task(run(), name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when nothing runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class Tracker:
    """The connection to the dag-tracker and what all workflows share over it."""

    def __init__(self, stub: Stub, patience_s: float, attempt_s: float) -> None:
        self.stub: Final = stub
        self.timing: Final = Timing(patience_s, attempt_s)
        self.known: Final = KnownBodies()
        self.background: Final = Background()


class Workflow:
    """One workflow, possibly shared with other gateways. It does not end by being closed."""

    def __init__(self, tracker: Tracker, workflow_id: str) -> None:
        self.workflow_id: Final = workflow_id
        self.usable = True  # False once its watch has failed: what is revealed then would never be heard of
        self._tracker = tracker
        self._board = Board(tracker.stub, workflow_id, self._output)
        self._revealer = Revealer(tracker.stub, workflow_id, tracker.known, tracker.timing)

    async def start(self, spec: workflow_pb2.WorkflowSpec, trace: TraceContext | None) -> bool:
        """Start it under `trace`, or join the one that another gateway or an earlier life of this one has started.

        Whether its terms are those of `spec`: who starts it first sets them, and its place in a trace.
        """
        # The id follows from the workflow's, so that of several gateways that start it at once each succeeds.
        request = api.StartWorkflowRequest(request_id=f"start-{self.workflow_id}", spec=spec)
        try:
            metadata = () if trace is None else tuple(carrier_of(trace).items())
            await send(self._tracker.stub.StartWorkflow, request, *self._tracker.timing, metadata)
        except errors.AlreadyExists:
            return False
        return True

    async def reveal(self, spec: workflow_pb2.NodeSpec, bodies: dict[str, call_pb2.SegmentBody]) -> "Call":
        """Make a node part of the workflow. Raises its refusal; cancelling the task takes the node back."""
        node_id = spec.node_id
        track = self._board.track(node_id, tokens=spec.call.request.stream)
        pending = Pending(spec, bodies, asyncio.get_running_loop().create_future())
        self._revealer.soon(pending)
        try:
            revealed = await asyncio.shield(pending.future)
        except asyncio.CancelledError:
            if not self._revealer.withdraw(pending):
                self._tracker.background.start(self._cancel_revealed(pending), f"cancel {track.node}")
            self._board.forget(node_id)
            raise
        except HexagentError:
            self._board.forget(node_id)
            raise
        self._board.revealed(revealed)
        return Call(self, track)

    async def set_priority(self, priority: int) -> None:
        """-100 to 100, higher = sooner."""
        request = api.SetPriorityRequest(request_id=minted(), workflow_id=self.workflow_id, priority=priority)
        await send(self._tracker.stub.SetPriority, request, *self._tracker.timing)

    async def calls_open(self) -> bool:
        """Whether any gateway waits for a call of it."""
        request = api.DescribeWorkflowRequest(workflow_id=self.workflow_id)
        row = (await send(self._tracker.stub.DescribeWorkflow, request, *self._tracker.timing)).workflow
        return row.calls > row.calls_ended

    def cancel_soon(self, node_id: str, reason: str) -> None:
        """Cancel a call without waiting for it."""
        self._tracker.background.start(self._cancel(node_id, reason), f"cancel {self.workflow_id}/{node_id}")

    async def finish(self, *, cancelled_for: str = "", failed_for: str = "") -> None:
        """End it for everybody: as completed, or as cancelled or failed for a reason."""
        try:
            if cancelled_for:
                cancel = api.CancelWorkflowRequest(
                    request_id=minted(), workflow_id=self.workflow_id, reason=cancelled_for[:REASON_CHARS]
                )
                await send(self._tracker.stub.CancelWorkflow, cancel, *self._tracker.timing)
            else:
                failed, completed = enums_pb2.WORKFLOW_STATUS_FAILED, enums_pb2.WORKFLOW_STATUS_COMPLETED
                finish = api.FinishWorkflowRequest(
                    request_id=minted(),
                    workflow_id=self.workflow_id,
                    status=failed if failed_for else completed,
                    reason=failed_for[:REASON_CHARS],
                )
                await send(self._tracker.stub.FinishWorkflow, finish, *self._tracker.timing)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop following it."""
        self.usable = False
        ended = errors.Cancelled(f"workflow {self.workflow_id} has ended", reason="WORKFLOW_FINISHED")
        await self._board.close(ended)

    def forget(self, node_id: str) -> None:
        """Keep nothing of a call that nobody asks about any more."""
        self._board.forget(node_id)

    async def _output(self, call: CallId) -> call_pb2.SegmentBody:
        request = api.GetCallRequest(call=ids_pb2.CallId(workflow_id=call.workflow_id, node_id=call.node_id))
        return (await send(self._tracker.stub.GetCall, request, *self._tracker.timing)).output

    async def _cancel(self, node_id: str, reason: str) -> None:
        node = ids_pb2.CallId(workflow_id=self.workflow_id, node_id=node_id)
        request = api.CancelNodeRequest(request_id=minted(), node=node, reason=reason[:REASON_CHARS])
        await send(self._tracker.stub.CancelNode, request, *self._tracker.timing)

    async def _cancel_revealed(self, pending: Pending) -> None:
        await asyncio.wait((pending.future,))
        if not pending.future.cancelled() and pending.future.exception() is None:
            await self._cancel(pending.spec.node_id, "CLIENT_DISCONNECTED")


class Call:
    """A call that is part of its workflow; `close` it whatever happened."""

    def __init__(self, workflow: Workflow, track: Track) -> None:
        self.workflow: Final = workflow
        self.on_success: Callable[[CallResult], None] = lambda result: None
        self.on_close: Callable[[str], None] = lambda cancelled_for: None
        self.failure = ""  # reason, once the call has failed
        self._track = track
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded = False
        self._open = True

    @property
    def node_id(self) -> str:
        """Id of the call in its workflow."""
        return self._track.node.node_id

    @property
    def ended(self) -> bool:
        """Whether its result or its failure is known."""
        return self._track.done.done()

    async def next_text(self) -> str | None:
        """What has been generated since, ending between characters; None at the end, also that of a failed call."""
        text = self._track.text
        if text is None or self._decoded:
            return None
        while (data := await text.next()) is not None:
            if piece := self._decoder.decode(data):
                return piece
        self._decoded = True
        return self._decoder.decode(b"", final=True) or None

    async def result(self) -> CallResult:
        """Wait for the end; raises the call's failure."""
        try:
            result = await asyncio.shield(self._track.done)
        except HexagentError as error:
            self.failure = error.reason
            # A failed call names itself; another failure is that of the watch, which then is of no further use.
            self.workflow.usable = self.workflow.usable and "node_id" in error.details
            raise
        if result is None:
            raise errors.Internal(f"call {self.node_id} ended as a tool", reason="INTERNAL")
        self.on_success(result)
        return result

    def close(self, cancelled_for: str = "CLIENT_DISCONNECTED") -> None:
        """Nobody asks any more: a call that still runs is cancelled."""
        if not self._open:
            return
        self._open = False
        self.workflow.forget(self.node_id)
        self.on_close("" if self.ended else cancelled_for)
