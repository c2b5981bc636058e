"""Descriptions of workflows and what they used, as plain values."""

from collections.abc import Mapping
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.core.workflow.attribution import NodeTimeline
from hexagent.core.workflow.graph import NEVER
from hexagent.core.workflow.model import NodeKind, NodeStatus, WorkflowStatus
from hexagent.wire.codec import enum_of
from hexagent.wire.workflow import times_from_proto


class WorkflowOutcome(NamedTuple):
    """How a workflow ended; times in seconds of model time."""

    workflow_id: str
    status: WorkflowStatus
    reason: str
    completion_s: float  # from start to end
    horizon_s: float  # its critical path, served alone

    @property
    def stretch(self) -> float:
        """Completion time over horizon; 0 without calls."""
        return self.completion_s / self.horizon_s if self.horizon_s else 0.0


class WorkflowSummary(NamedTuple):
    """A workflow in one row; ages and horizons in seconds of model time, instants in seconds since the epoch."""

    workflow_id: str
    tenant: str
    workflow_class: str
    status: WorkflowStatus
    reason: str
    priority: int
    slo_scale: float  # 0 = none
    deadline: float  # 0 = none
    started_at: float
    age_s: float
    horizon_s: float
    calls: int
    calls_ended: int
    tools: int
    metadata: Mapping[str, str]


class NodeState(NamedTuple):
    """One node of a described workflow; times in seconds of model time."""

    node_id: str
    kind: NodeKind
    role: str
    status: NodeStatus
    after: tuple[str, ...]
    solo_s: float
    horizon_s: float  # longest path from the start through it
    below_s: float  # longest known path from its start to the end
    critical: bool
    waiting_s: float  # since it became ready, 0 = ended or not ready
    prefill_instance: str  # of a call that ended
    decode_instance: str
    reason: str
    timeline: NodeTimeline  # when it went where


class WorkflowDescription(NamedTuple):
    """How a workflow stands."""

    workflow: WorkflowSummary
    remaining_s: float  # expected to the end of what is known, model time
    critical_path: tuple[str, ...]
    bottleneck: str  # the open node that delays it most, "" = none is open
    bottleneck_reason: str
    nodes: tuple[NodeState, ...]


class UsageRow(NamedTuple):
    """What a workflow or tenant used."""

    tenant: str
    workflow_id: str  # "" in a tenant's total
    workflows: int
    calls: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    prefill_gpu_s: float
    decode_gpu_s: float
    kv_bytes: int


def seconds(message: Duration | Timestamp) -> float:
    """Of a duration, or since the epoch."""
    return message.seconds + message.nanos / 1e9


def outcome(workflow_id: str, ended: workflow_pb2.WorkflowEnded) -> WorkflowOutcome:
    """From the API's message."""
    return WorkflowOutcome(
        workflow_id,
        enum_of(WorkflowStatus, ended.status, "status"),
        ended.reason,
        seconds(ended.completion_time),
        seconds(ended.horizon),
    )


def summary(message: workflow_pb2.WorkflowSummary) -> WorkflowSummary:
    """From the API's message."""
    return WorkflowSummary(
        workflow_id=message.workflow_id,
        tenant=message.tenant,
        workflow_class=message.workflow_class,
        status=enum_of(WorkflowStatus, message.status, "status"),
        reason=message.reason,
        priority=message.priority,
        slo_scale=message.slo_scale,
        deadline=seconds(message.deadline),
        started_at=seconds(message.started_at),
        age_s=seconds(message.age),
        horizon_s=seconds(message.horizon),
        calls=message.calls,
        calls_ended=message.calls_ended,
        tools=message.tools,
        metadata=dict(message.metadata),
    )


def description(message: workflow_service_pb2.DescribeWorkflowResponse) -> WorkflowDescription:
    """From the API's message."""
    return WorkflowDescription(
        workflow=summary(message.workflow),
        remaining_s=seconds(message.remaining),
        critical_path=tuple(message.critical_path),
        bottleneck=message.bottleneck,
        bottleneck_reason=message.bottleneck_reason,
        nodes=tuple(_node(row) for row in message.nodes),
    )


def usage(message: workflow_pb2.Usage) -> UsageRow:
    """From the API's message."""
    return UsageRow(
        tenant=message.tenant,
        workflow_id=message.workflow_id,
        workflows=message.workflows,
        calls=message.calls,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
        prefill_gpu_s=message.prefill_gpu_seconds,
        decode_gpu_s=message.decode_gpu_seconds,
        kv_bytes=message.kv_bytes,
    )


def _node(row: workflow_pb2.NodeRow) -> NodeState:
    return NodeState(
        node_id=row.node_id,
        kind=enum_of(NodeKind, row.kind, "kind"),
        role=row.role,
        status=enum_of(NodeStatus, row.status, "status"),
        after=tuple(row.after),
        solo_s=seconds(row.solo),
        horizon_s=seconds(row.horizon),
        below_s=seconds(row.below),
        critical=row.critical,
        waiting_s=seconds(row.waiting),
        prefill_instance=row.result.prefill_instance,
        decode_instance=row.result.decode_instance,
        reason=row.reason,
        timeline=_timeline(row),
    )


def _timeline(row: workflow_pb2.NodeRow) -> NodeTimeline:
    return NodeTimeline(
        node_id=row.node_id,
        kind=enum_of(NodeKind, row.kind, "kind"),
        status=enum_of(NodeStatus, row.status, "status"),
        after=tuple(row.after),
        ready_us=row.ready_at_us if row.HasField("ready_at_us") else NEVER,
        started_us=row.started_at_us if row.HasField("started_at_us") else NEVER,
        finished_us=row.finished_at_us if row.HasField("finished_at_us") else NEVER,
        times=times_from_proto(row.result.times),
    )
