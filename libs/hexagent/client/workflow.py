"""A workflow while its program runs: calls, tools, the graph they make, and its end."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Unpack

from hexagent.api.common.v1 import call_pb2, enums_pb2, ids_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.client import views
from hexagent.client.board import Board, Stub
from hexagent.client.nodes import CallStream, NodeHandle, ToolHandle
from hexagent.client.options import MAX_TOKENS_DEFAULT, CallOptions, call_request, join_of
from hexagent.client.prompts import Parent, Prompt, build_prompt, parent_id
from hexagent.client.results import CallResult
from hexagent.client.reveal import KnownBodies, Pending, Revealer, Timing
from hexagent.client.rpc import minted, send
from hexagent.client.tracing import trace_metadata
from hexagent.core import errors
from hexagent.core.errors import HexagentError, Internal
from hexagent.core.ids import CallId
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.model import Join, NodeStatus
from hexagent.wire.nodes import join_to_proto
from hexagent.wire.times import duration_to_proto

log = logging.getLogger(__name__)

api = workflow_service_pb2

REASON_CHARS: Final = 128
MESSAGE_CHARS: Final = 4_096
LEAVE_S: Final = 10.0  # a workflow that is left by an exception is cancelled within this, or left to its idle expiry


class Defaults(NamedTuple):
    """What calls get that do not say otherwise."""

    model: str = ""  # the cluster's only model
    max_tokens: int = MAX_TOKENS_DEFAULT


class Workflow:
    """Made by `Client.workflow`, used as `async with`.

    Leaving the block finishes the workflow: normally as COMPLETED, with open nodes cancelled; by an exception as
    cancelled, with the exception as its reason. `outcome` then says how it ended and in what time.
    """

    def __init__(
        self,
        stub: Stub,
        spec: workflow_pb2.WorkflowSpec,
        defaults: Defaults,
        known: KnownBodies,
        timing: Timing,
    ) -> None:
        self.workflow_id = spec.workflow_id  # "" until the workflow has started, where none was given
        self.outcome: views.WorkflowOutcome | None = None
        self._stub = stub
        self._spec = spec
        self._defaults = defaults
        self._known = known
        self._timing = timing
        self._board: Board | None = None
        self._revealer: Revealer | None = None
        self._names: dict[str, int] = {}  # nodes named so far, by role
        self._rounds: dict[str, int] = {}  # next round, by template
        self._background: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> "Workflow":
        request = api.StartWorkflowRequest(request_id=minted(), spec=self._spec)
        answer = await send(self._stub.StartWorkflow, request, *self._timing, trace_metadata())
        self.workflow_id = answer.workflow_id
        self._board = Board(self._stub, self.workflow_id, self._output)
        self._revealer = Revealer(self._stub, self.workflow_id, self._known, self._timing)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._settle()
                if self.outcome is None:
                    await self.finish()
            else:
                await self._leave(error)
        finally:
            if self._board is not None:
                ended = errors.Cancelled(f"workflow {self.workflow_id} has ended", reason="WORKFLOW_FINISHED")
                await self._board.close(ended)

    async def finish(self, *, failed: bool = False, reason: str = "") -> views.WorkflowOutcome:
        """End the workflow now, as completed or failed; open nodes are cancelled.

        `FailedPrecondition` (WORKFLOW_FINISHED) where it has ended otherwise.
        """
        status = enums_pb2.WORKFLOW_STATUS_FAILED if failed else enums_pb2.WORKFLOW_STATUS_COMPLETED
        request = api.FinishWorkflowRequest(
            request_id=minted(), workflow_id=self.workflow_id, status=status, reason=reason[:REASON_CHARS]
        )
        answer = await send(self._stub.FinishWorkflow, request, *self._timing)
        self.outcome = views.outcome(self.workflow_id, answer.ended)
        return self.outcome

    async def cancel(self, reason: str = "") -> views.WorkflowOutcome:
        """Cancel the workflow and every open node; what waits for them raises `Cancelled`."""
        request = api.CancelWorkflowRequest(
            request_id=minted(), workflow_id=self.workflow_id, reason=reason[:REASON_CHARS]
        )
        answer = await send(self._stub.CancelWorkflow, request, *self._timing)
        self.outcome = views.outcome(self.workflow_id, answer.ended)
        return self.outcome

    # -- calls ---------------------------------------------------------------------------------------------------

    async def call(self, prompt: Prompt, **options: Unpack[CallOptions]) -> CallResult:
        """Run one LLM call and give its result.

        `prompt` is text, a `Segment`, a `CallResult`, a handle, or a list of those; a result or handle makes the
        call a child of that node. `options` are those of `CallOptions`. Calls made in the same turn of the event
        loop, as by `asyncio.gather`, travel in one request. Cancelling the awaiting task cancels the call.

        Raises `CallFailed` where the call fails, `Cancelled` where it is cancelled, and the same errors for a call
        that is refused under load as for a request that is refused at once: `InvalidArgument` (the field is named),
        `NotFound` (UNKNOWN_MODEL), `FailedPrecondition` (WORKFLOW_FINISHED), `ResourceExhausted` (with
        `retry_after_us` where waiting helps), `DeadlineExceeded`, `Unavailable` where the service stays away.
        """
        return await self.result_of(self.node(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[CallOptions]) -> CallStream:
        """Run one call and read its output as it is generated: `async for piece in wf.stream(...)`."""
        return CallStream(self._node(prompt, options, stream=True))

    def node(self, prompt: Prompt, **options: Unpack[CallOptions]) -> NodeHandle:
        """A call to be revealed by `reveal`, or when it is first awaited. Options and errors as in `call`."""
        return self._node(prompt, options, stream=False)

    async def reveal(self, nodes: Sequence[NodeHandle | ToolHandle]) -> None:
        """Reveal a graph in one request, all or nothing, in any order; then await the handles.

        Raises as `call`, for the first node that is refused.
        """
        await self._ready().all_or_none([handle.pending for handle in nodes])
        for handle in nodes:
            self._tracks().revealed(handle.pending.future.result())

    def round(self, template: str) -> int:
        """The number of the next repetition of a loop's node template, from 0."""
        number = self._rounds.get(template, 0)
        self._rounds[template] = number + 1
        return number

    # -- tools ---------------------------------------------------------------------------------------------------

    def tool(
        self,
        name: str,
        *,
        after: Sequence[Parent] = (),
        join: Join | str | int = "all",
        role: str = "",
        timeout: float | None = None,
        expected: float | None = None,
        template: str = "",
        round: int | None = None,
        node_id: str | None = None,
    ) -> ToolHandle:
        """A tool that this program runs: `async with wf.tool("search", after=[plan]): ...`.

        `timeout` and `expected` are seconds of model time; a tool that runs longer than `timeout` fails, with the
        stack's limit where none is given. `name` is what run times are learned by.
        """
        tool = workflow_pb2.ToolNode(name=name, start_now=True)
        if timeout is not None:
            tool.timeout.CopyFrom(duration_to_proto(_us(timeout, "timeout")))
        if expected is not None:
            tool.expected.CopyFrom(duration_to_proto(_us(expected, "expected")))
        spec = workflow_pb2.NodeSpec(
            node_id=node_id or self._name(role or name),
            kind=enums_pb2.NODE_KIND_TOOL,
            role=role,
            after=sorted({parent_id(parent, self.workflow_id) for parent in after}),
            join=join_to_proto(join_of(join)),
            tool=tool,
            template=template,
            round=self._round(template, round),
        )
        pending = Pending(spec, {}, asyncio.get_running_loop().create_future())
        return ToolHandle(self, pending, self._tracks().track(spec.node_id, tokens=False))

    async def start_tool(self, tool: ToolHandle) -> None:
        """Reveal a tool where that has not happened, and return when it runs; what `async with` does first."""
        try:
            await self.revealed(tool)
            status = await tool.track.reach(NodeStatus.READY, NodeStatus.RUNNING)
        except asyncio.CancelledError:
            self.cancel_soon(tool)
            raise
        if status is NodeStatus.READY:
            request = api.StartToolRequest(request_id=minted(), node=self._id(tool.node_id))
            await send(self._stub.StartTool, request, *self._timing)

    async def finish_tool(self, tool: ToolHandle, error: BaseException | None) -> None:
        """End a tool; what `async with` does last. With an `error`, failing to say so is only logged."""
        request = api.FinishToolRequest(
            request_id=minted(), node=self._id(tool.node_id), status=enums_pb2.NODE_STATUS_SUCCEEDED
        )
        if error is None:
            await send(self._stub.FinishTool, request, *self._timing)
            return
        cancelled = isinstance(error, asyncio.CancelledError)
        request.status = enums_pb2.NODE_STATUS_CANCELLED if cancelled else enums_pb2.NODE_STATUS_FAILED
        request.reason = type(error).__name__[:REASON_CHARS]
        request.message = str(error)[:MESSAGE_CHARS]
        self._later(send(self._stub.FinishTool, request, *self._timing), f"tool {tool.node_id}")

    # -- terms and views -----------------------------------------------------------------------------------------

    async def describe(self) -> views.WorkflowDescription:
        """Every node, the critical path, and what the workflow waits for."""
        request = api.DescribeWorkflowRequest(workflow_id=self.workflow_id)
        return views.description(await send(self._stub.DescribeWorkflow, request, *self._timing))

    async def pause(self) -> None:
        """Hold back further calls; dispatched ones go on."""
        request = api.PauseWorkflowRequest(request_id=minted(), workflow_id=self.workflow_id)
        await send(self._stub.PauseWorkflow, request, *self._timing)

    async def resume(self) -> None:
        """End a pause."""
        request = api.ResumeWorkflowRequest(request_id=minted(), workflow_id=self.workflow_id)
        await send(self._stub.ResumeWorkflow, request, *self._timing)

    async def set_priority(self, priority: int) -> None:
        """-100 to 100, higher = sooner."""
        request = api.SetPriorityRequest(request_id=minted(), workflow_id=self.workflow_id, priority=priority)
        await send(self._stub.SetPriority, request, *self._timing)

    async def set_deadline(self, *, slo_scale: float | None = None, budget_s: float | None = None) -> None:
        """New terms: a multiple of the horizon (0 = none), or seconds of model time from now (0 = no deadline)."""
        request = api.SetDeadlineRequest(request_id=minted(), workflow_id=self.workflow_id)
        if slo_scale is not None:
            request.slo_scale = slo_scale
        if budget_s == 0:
            request.no_deadline = True
        elif budget_s is not None:
            request.budget.CopyFrom(duration_to_proto(_us(budget_s, "budget_s")))
        await send(self._stub.SetDeadline, request, *self._timing)

    async def cancel_node(self, node_id: str, reason: str = "") -> None:
        """Stop a call or tool; nodes below fail unless their join can still be met."""
        request = api.CancelNodeRequest(request_id=minted(), node=self._id(node_id), reason=reason[:REASON_CHARS])
        await send(self._stub.CancelNode, request, *self._timing)

    # -- what handles use ----------------------------------------------------------------------------------------

    async def revealed(self, handle: NodeHandle | ToolHandle) -> None:
        """Return when the node is part of the workflow, revealing it if need be; raises its refusal."""
        pending = handle.pending
        if not pending.future.done():
            self._ready().soon(pending)
            try:
                revealed = await asyncio.shield(pending.future)
            except HexagentError as error:
                handle.track.fail(error)
                raise
            self._tracks().revealed(revealed)
        elif handle.track.status is None:
            self._tracks().revealed(pending.future.result())

    async def result_of(self, handle: NodeHandle) -> CallResult:
        """Reveal a call if need be and wait for its result."""
        try:
            await self.revealed(handle)
            result = await asyncio.shield(handle.track.done)
        except asyncio.CancelledError:
            self.cancel_soon(handle)
            raise
        if result is None:
            raise Internal(f"call {handle.node_id} ended as a tool", reason="INTERNAL")
        self._known.add((result.digest,))
        return result

    def cancel_soon(self, handle: NodeHandle | ToolHandle) -> None:
        """Cancel a node without waiting for it; one that is not revealed yet will not be."""
        if handle.track.done.done() or self.outcome is not None:
            return
        if self._ready().withdraw(handle.pending):
            handle.track.fail(errors.Cancelled(f"{handle.node_id} was withdrawn", reason="NODE_CANCELLED"))
            return
        self._later(self._cancel_revealed(handle), f"node {handle.node_id}")

    # -- inside --------------------------------------------------------------------------------------------------

    def _node(self, prompt: Prompt, options: CallOptions, *, stream: bool) -> NodeHandle:
        built = build_prompt(prompt, self.workflow_id)
        request = call_request(
            options,
            options.get("model", self._defaults.model),
            options.get("max_tokens", self._defaults.max_tokens),
            stream,
        )
        request.segments.extend(built.segments)
        role, template = options.get("role", ""), options.get("template", "")
        after = {parent_id(parent, self.workflow_id) for parent in options.get("after", ())}
        hints = workflow_pb2.CallHints(
            expected_output_tokens=options.get("expected_output_tokens", 0),
            min_precision=options.get("min_precision", ""),
        )
        spec = workflow_pb2.NodeSpec(
            node_id=options.get("node_id") or self._name(role or "call"),
            kind=enums_pb2.NODE_KIND_CALL,
            role=role,
            after=sorted(after.union(built.parents)),
            join=join_to_proto(join_of(options.get("join", "all"))),
            call=workflow_pb2.CallNode(request=request, hints=hints),
            template=template,
            round=self._round(template, options.get("round")),
        )
        pending = Pending(spec, built.bodies, asyncio.get_running_loop().create_future())
        return NodeHandle(self, pending, self._tracks().track(spec.node_id, tokens=stream))

    def _name(self, role: str) -> str:
        number = self._names.get(role, 0) + 1
        self._names[role] = number
        return f"{role}-{number}"

    def _round(self, template: str, given: int | None) -> int:
        if given is not None:
            return given
        return self.round(template) if template else 0

    def _id(self, node_id: str) -> ids_pb2.CallId:
        return ids_pb2.CallId(workflow_id=self.workflow_id, node_id=node_id)

    def _tracks(self) -> Board:
        if self._board is None:
            raise errors.FailedPrecondition(
                "the workflow has not started; use it as `async with`", reason="WORKFLOW_NOT_STARTED"
            )
        return self._board

    def _ready(self) -> Revealer:
        self._tracks()
        assert self._revealer is not None
        return self._revealer

    async def _output(self, call: CallId) -> call_pb2.SegmentBody:
        request = api.GetCallRequest(call=self._id(call.node_id))
        return (await send(self._stub.GetCall, request, *self._timing)).output

    async def _cancel_revealed(self, handle: NodeHandle | ToolHandle) -> None:
        await asyncio.wait((handle.pending.future,))
        if handle.pending.future.exception() is None:
            await self.cancel_node(handle.node_id, "TASK_CANCELLED")

    def _later(self, work: Coroutine[Any, Any, object], what: str) -> None:
        """Run beside the program; a failure is only logged, and leaving the workflow waits for the end."""

        async def run() -> None:
            try:
                await work
            except HexagentError as error:
                log.info("%s of workflow %s: %s", what, self.workflow_id, error)

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _settle(self) -> None:
        await self._ready().settle()
        while self._background:
            await asyncio.wait(self._background)

    async def _leave(self, error: BaseException) -> None:
        """Cancel the workflow because of `error`, which goes on; failing to do so is only logged."""
        if self.outcome is not None or self._board is None:
            return
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        try:
            async with asyncio.timeout(LEAVE_S):
                await self.cancel(reason)
        except (HexagentError, TimeoutError) as failure:
            log.warning("workflow %s could not be cancelled: %s", self.workflow_id, failure)


def _us(seconds: float, field: str) -> int:
    """Model microseconds; `InvalidArgument` for what is no time."""
    if not 0 <= seconds < float("inf"):
        raise errors.InvalidArgument(
            f"{field}: must be 0 or more seconds; got {seconds}", reason="BAD_DURATION", field=field
        )
    return round(seconds * US_PER_S)
