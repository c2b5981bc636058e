"""WorkflowService: requests to commands and back; every answer waits until what it says is stored."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.core.ids import CallId, checked_id
from hexagent.core.tracing import TRACEPARENT, TRACESTATE, carrier_of, context_from
from hexagent.core.workflow import commands
from hexagent.core.workflow.events import WorkflowChanged
from hexagent.core.workflow.model import NodeStatus, WorkflowStatus
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.grpc_server import guarded
from hexagent.wire.codec import checked_call_id, enum_of
from hexagent.wire.edge import change_from_set_deadline, checked_priority, workflow_spec_from_proto
from hexagent.wire.times import timestamp_to_proto
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.queries import Queries
from hexagent_services.dag_tracker.reveals import Reveals, minted_id
from hexagent_services.dag_tracker.views import ended, revealed_node
from hexagent_services.dag_tracker.watch import Watches
from hexagent_services.dag_tracker.writer import NO_TRACE, Writer

Context = grpc.aio.ServicerContext[Any, Any]
api = workflow_service_pb2


@guarded
class WorkflowServicer(workflow_service_pb2_grpc.WorkflowServiceServicer):
    """One method an RPC; errors leave it as they are and become statuses at the guard."""

    def __init__(
        self,
        writer: Writer,
        reveals: Reveals,
        queries: Queries,
        watches: Watches,
        estimates: Estimates,
        clock: ModelClock,
    ) -> None:
        self._writer = writer
        self._reveals = reveals
        self._queries = queries
        self._watches = watches
        self._estimates = estimates
        self._clock = clock
        self.time_scale = clock.time_scale

    # -- workflows -----------------------------------------------------------------------------------------------

    async def StartWorkflow(self, request: api.StartWorkflowRequest, context: Context) -> api.StartWorkflowResponse:
        request_id = request.request_id
        mint = minted_id(request_id)
        workflow_id = request.spec.workflow_id or mint
        history = self._writer.tracker.history
        first = history.record(workflow_id).graph.started if workflow_id in history else None
        if first is not None and (first.request_id != request_id or not request_id):
            first = None  # another's workflow: refused below
        # A repeated request is judged at the time it was first made, and its budget ran from then.
        now_us = self._clock.now_us() if first is None else first.at_us
        spec = workflow_spec_from_proto(
            request.spec, minted_id=mint, now_us=now_us, model_us_of=self._clock.model_us_of
        )
        if first is not None and request.spec.HasField("budget"):
            spec = spec._replace(deadline_us=first.spec.deadline_us)
        nodes = (await self._reveals.take(request.nodes)).nodes if request.nodes else ()
        await self._do(commands.StartWorkflow(spec, request_id, nodes), workflow_id, _trace_context(context))
        graph = self._writer.graph(workflow_id)
        return api.StartWorkflowResponse(
            workflow_id=workflow_id,
            started_at=timestamp_to_proto(self._clock.wall_ns_of(graph.started.at_us)),
            nodes=[revealed_node(graph, node.node_id) for node in request.nodes],
        )

    async def FinishWorkflow(self, request: api.FinishWorkflowRequest, context: Context) -> api.FinishWorkflowResponse:
        status = enum_of(WorkflowStatus, request.status, "status")
        command = commands.FinishWorkflow(request.workflow_id, status, request.reason, request.request_id)
        return api.FinishWorkflowResponse(ended=await self._end(command))

    async def CancelWorkflow(self, request: api.CancelWorkflowRequest, context: Context) -> api.CancelWorkflowResponse:
        command = commands.CancelWorkflow(request.workflow_id, request.reason, request.request_id)
        return api.CancelWorkflowResponse(ended=await self._end(command))

    async def PauseWorkflow(self, request: api.PauseWorkflowRequest, context: Context) -> api.PauseWorkflowResponse:
        command = commands.ChangeWorkflow(request.workflow_id, paused=True, request_id=request.request_id)
        return api.PauseWorkflowResponse(workflow=await self._change(command))

    async def ResumeWorkflow(self, request: api.ResumeWorkflowRequest, context: Context) -> api.ResumeWorkflowResponse:
        command = commands.ChangeWorkflow(request.workflow_id, paused=False, request_id=request.request_id)
        return api.ResumeWorkflowResponse(workflow=await self._change(command))

    async def SetPriority(self, request: api.SetPriorityRequest, context: Context) -> api.SetPriorityResponse:
        priority = checked_priority(request.priority, "priority")
        command = commands.ChangeWorkflow(request.workflow_id, priority=priority, request_id=request.request_id)
        return api.SetPriorityResponse(workflow=await self._change(command))

    async def SetDeadline(self, request: api.SetDeadlineRequest, context: Context) -> api.SetDeadlineResponse:
        record = self._writer.tracker.history.record(checked_id(request.workflow_id, "workflow_id"))
        answered = record.requests.get(request.request_id) if request.request_id else None
        now_us = self._clock.now_us() if answered is None else answered.at_us
        command = change_from_set_deadline(request, now_us=now_us, model_us_of=self._clock.model_us_of)
        if isinstance(answered, WorkflowChanged) and request.HasField("budget"):
            command = command._replace(deadline_us=answered.deadline_us)  # the budget ran from the first request
        return api.SetDeadlineResponse(workflow=await self._change(command))

    # -- nodes ---------------------------------------------------------------------------------------------------

    async def PutSegments(self, request: api.PutSegmentsRequest, context: Context) -> api.PutSegmentsResponse:
        self._writer.tracker.history.live(checked_id(request.workflow_id, "workflow_id"))
        return api.PutSegmentsResponse(segments=await self._reveals.put(request.segments))

    async def RevealNodes(self, request: api.RevealNodesRequest, context: Context) -> api.RevealNodesResponse:
        workflow_id = checked_id(request.workflow_id, "workflow_id")
        self._writer.graph(workflow_id)  # an unknown workflow is refused before bodies are stored
        reveal = await self._reveals.take(request.nodes)
        await self._do(commands.RevealNodes(workflow_id, reveal.nodes, request.request_id), workflow_id)
        graph = self._writer.graph(workflow_id)
        return api.RevealNodesResponse(nodes=[revealed_node(graph, node.node_id) for node in request.nodes])

    async def StartTool(self, request: api.StartToolRequest, context: Context) -> api.StartToolResponse:
        node = checked_call_id(request.node, "node")
        await self._do(commands.StartTool(node, request.request_id), node.workflow_id)
        return api.StartToolResponse(status=self._status(node))

    async def FinishTool(self, request: api.FinishToolRequest, context: Context) -> api.FinishToolResponse:
        node = checked_call_id(request.node, "node")
        status = enum_of(NodeStatus, request.status, "status")
        command = commands.FinishTool(node, status, request.reason, request.message, request.request_id)
        await self._do(command, node.workflow_id)
        return api.FinishToolResponse(status=self._status(node))

    async def CancelNode(self, request: api.CancelNodeRequest, context: Context) -> api.CancelNodeResponse:
        node = checked_call_id(request.node, "node")
        await self._do(commands.CancelNode(node, request.reason, request.request_id), node.workflow_id)
        outcome = self._writer.graph(node.workflow_id).node(node.node_id).outcome
        return api.CancelNodeResponse(
            status=self._status(node), output_tokens=outcome.output_tokens if outcome is not None else 0
        )

    # -- reads ---------------------------------------------------------------------------------------------------

    async def GetCall(self, request: api.GetCallRequest, context: Context) -> api.GetCallResponse:
        return await self._queries.get_call(request)

    async def DescribeWorkflow(
        self, request: api.DescribeWorkflowRequest, context: Context
    ) -> api.DescribeWorkflowResponse:
        return await self._queries.describe(request)

    async def ListWorkflows(self, request: api.ListWorkflowsRequest, context: Context) -> api.ListWorkflowsResponse:
        return await self._queries.list(request)

    async def GetUsage(self, request: api.GetUsageRequest, context: Context) -> api.GetUsageResponse:
        return await self._queries.usage(request)

    async def WatchWorkflow(
        self, request: api.WatchWorkflowRequest, context: Context
    ) -> AsyncIterator[api.WatchWorkflowResponse]:
        async for response in self._watches.watch(request):
            yield response

    # -- inside --------------------------------------------------------------------------------------------------

    async def _do(
        self, command: commands.Command, workflow_id: str, trace_context: Mapping[str, str] = NO_TRACE
    ) -> None:
        """Handle the command and wait until its events, and those of an earlier equal request, are stored."""
        self._writer.do(command, trace_context)
        await self._writer.events.settled(workflow_id)

    async def _end(self, command: commands.FinishWorkflow | commands.CancelWorkflow) -> workflow_pb2.WorkflowEnded:
        await self._do(command, checked_id(command.workflow_id, "workflow_id"))
        graph = self._writer.graph(command.workflow_id)
        return ended(graph, self._estimates.solo(graph))

    async def _change(self, command: commands.ChangeWorkflow) -> workflow_pb2.WorkflowSummary:
        await self._do(command, checked_id(command.workflow_id, "workflow_id"))
        return await self._queries.summary(command.workflow_id)

    def _status(self, node: CallId) -> enums_pb2.NodeStatus.ValueType:
        return enums_pb2.NodeStatus.ValueType(self._writer.graph(node.workflow_id).node(node.node_id).status)


def _trace_context(context: Context) -> Mapping[str, str]:
    """The W3C trace context among the request's metadata; what is malformed counts as none."""
    metadata = context.invocation_metadata() or ()
    sent = {key: value for key, value in metadata if key in (TRACEPARENT, TRACESTATE) and isinstance(value, str)}
    known = context_from(sent) if sent else None
    return NO_TRACE if known is None else carrier_of(known)
