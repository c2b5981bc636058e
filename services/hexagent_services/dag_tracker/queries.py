"""Reads: a call, a workflow, all workflows, what they used."""

import asyncio
import base64
import binascii
import hashlib
from typing import Final

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.core.errors import FailedPrecondition, HexagentError, InvalidArgument, NotFound
from hexagent.core.ids import checked_id
from hexagent.core.workflow.description import horizon_of
from hexagent.core.workflow.graph import WorkflowGraph, is_call
from hexagent.core.workflow.model import NodeStatus, WorkflowStatus
from hexagent.runtime.clock import ModelClock
from hexagent.wire.codec import checked_call_id, enum_of
from hexagent.wire.results import call_result_to_proto
from hexagent.wire.segments import segment_to_proto
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.segments import SegmentStore
from hexagent_services.dag_tracker.views import description, result_of, summary
from hexagent_services.dag_tracker.writer import Writer

api = workflow_service_pb2

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1_000
ROWS_A_TURN: Final = 20  # rows made before other requests get their turn


class Queries:
    """Answers from the state as it is; what is on its way to the stream is waited for first."""

    def __init__(self, writer: Writer, segments: SegmentStore, estimates: Estimates, clock: ModelClock) -> None:
        self._writer = writer
        self._segments = segments
        self._estimates = estimates
        self._clock = clock

    async def get_call(self, request: api.GetCallRequest) -> api.GetCallResponse:
        """One call. `NotFound`, `FailedPrecondition` (NOT_A_CALL)."""
        call = checked_call_id(request.call, "call")
        node = (await self._graph(call.workflow_id)).node(call.node_id)
        if not is_call(node):
            raise FailedPrecondition(f"{call} is a tool", reason="NOT_A_CALL", field="call.node_id")
        spec = node.spec.call
        assert spec is not None
        response = api.GetCallResponse(
            status=enums_pb2.NodeStatus.ValueType(node.status),
            model=spec.model,
            lora=spec.lora,
            min_precision=spec.min_precision,
        )
        outcome = result_of(node)
        if outcome is None:
            return response
        response.result.CopyFrom(call_result_to_proto(outcome._replace(output_body=b"")))
        if outcome.status is NodeStatus.SUCCEEDED and not request.without_body and outcome.output.digest:
            if outcome.output_body:
                response.output.CopyFrom(call_pb2.SegmentBody.FromString(outcome.output_body))
                return response
            body = await self._segments.get(outcome.output.digest)
            if body is None:
                raise NotFound(f"the output of {call} has expired", reason="OUTPUT_EXPIRED", field="call")
            response.output.CopyFrom(segment_to_proto(body))
        return response

    async def describe(self, request: api.DescribeWorkflowRequest) -> api.DescribeWorkflowResponse:
        """One workflow with its nodes. `NotFound`."""
        graph = await self._graph(checked_id(request.workflow_id, "workflow_id"))
        await self._estimates.refresh()
        return description(graph, self._clock, self._clock.now_us(), self._estimates.solo(graph))

    async def summary(self, workflow_id: str) -> workflow_pb2.WorkflowSummary:
        """One workflow in one row. `NotFound`."""
        graph = await self._graph(workflow_id)
        await self._estimates.refresh()
        return self._row(graph)

    async def list(self, request: api.ListWorkflowsRequest) -> api.ListWorkflowsResponse:
        """A page of workflows, newest first. `InvalidArgument`."""
        size = request.page_size or PAGE_DEFAULT
        if not 1 <= size <= PAGE_MAX:
            raise InvalidArgument(
                f"page_size must be 1 to {PAGE_MAX}; got {size}", reason="BAD_PAGE_SIZE", field="page_size"
            )
        statuses = {enum_of(WorkflowStatus, status, "statuses") for status in request.statuses}
        filters = _fingerprint(request)
        before_us, last_id = _position(request.page_token, filters)
        await self._writer.events.all_settled()
        await self._estimates.refresh()
        response = api.ListWorkflowsResponse()
        skipping = bool(last_id)
        for workflow_id in reversed(self._writer.tracker.history.workflow_ids()):
            graph = self._writer.graph(workflow_id)
            if skipping:
                # The last row may be forgotten by now; then the first older one ends the search.
                if workflow_id == last_id:
                    skipping = False
                    continue
                if graph.started.at_us >= before_us:
                    continue
                skipping = False
            if not _matches(graph, request, statuses):
                continue
            if len(response.workflows) == size:
                last = response.workflows[-1].workflow_id
                response.next_page_token = _token(self._writer.graph(last).started.at_us, last, filters)
                break
            response.workflows.append(self._row(graph))
            if len(response.workflows) % ROWS_A_TURN == 0:
                await asyncio.sleep(0)
        return response

    async def usage(self, request: api.GetUsageRequest) -> api.GetUsageResponse:
        """Sums of a workflow, a tenant, or every tenant. `NotFound`."""
        accounts = self._writer.accounts
        subject = request.WhichOneof("subject")
        if subject == "workflow_id":
            graph = await self._graph(checked_id(request.workflow_id, "workflow_id"))
            return api.GetUsageResponse(usage=[accounts.of_workflow(graph)])
        await self._writer.events.all_settled()
        if subject == "tenant":
            if request.tenant not in accounts.tenants():
                raise NotFound(f"there is no tenant {request.tenant[:40]!r}", reason="UNKNOWN_TENANT", field="tenant")
            return api.GetUsageResponse(usage=[accounts.of_tenant(request.tenant)])
        return api.GetUsageResponse(usage=[accounts.of_tenant(tenant) for tenant in accounts.tenants()])

    async def _graph(self, workflow_id: str) -> WorkflowGraph:
        graph = self._writer.graph(workflow_id)
        await self._writer.events.settled(workflow_id)
        return graph

    def _row(self, graph: WorkflowGraph) -> workflow_pb2.WorkflowSummary:
        horizon_us = horizon_of(graph, self._estimates.solo(graph)).total_us()
        return summary(graph, horizon_us, self._clock, self._clock.now_us())


def _matches(graph: WorkflowGraph, request: api.ListWorkflowsRequest, statuses: set[WorkflowStatus]) -> bool:
    spec = graph.spec
    return (
        (not request.tenant or spec.tenant == request.tenant)
        and (not request.workflow_class or spec.workflow_class == request.workflow_class)
        and (not statuses or graph.status in statuses)
    )


def _fingerprint(request: api.ListWorkflowsRequest) -> str:
    statuses = ",".join(str(status) for status in sorted(request.statuses))
    text = f"{request.tenant}\n{request.workflow_class}\n{statuses}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _token(started_us: int, workflow_id: str, filters: str) -> str:
    return base64.urlsafe_b64encode(f"{filters}/{started_us}/{workflow_id}".encode()).decode()


def _position(token: str, filters: str) -> tuple[int, str]:
    """Start time and id of the last row of the previous page; ("", 0) before the first."""
    if not token:
        return 0, ""
    try:
        made_for, started_us, workflow_id = base64.urlsafe_b64decode(token).decode().split("/")
        if made_for == filters:
            return int(started_us), checked_id(workflow_id, "page_token")
    except (binascii.Error, ValueError, HexagentError):
        pass
    raise InvalidArgument(
        "page_token is not one of a previous page with the same filters", reason="BAD_PAGE_TOKEN", field="page_token"
    )
