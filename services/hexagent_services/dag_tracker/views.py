"""What clients see of workflows: updates, summaries and descriptions as messages."""

from collections.abc import Callable

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.core.units import MILLI
from hexagent.core.workflow.description import describe, horizon_of
from hexagent.core.workflow.graph import NEVER, Node, WorkflowGraph, is_call
from hexagent.core.workflow.horizon import Horizon
from hexagent.core.workflow.model import CallOutcome, NodeStatus
from hexagent.runtime.clock import ModelClock
from hexagent.wire.nodes import join_to_proto
from hexagent.wire.results import call_result_to_proto
from hexagent.wire.segments import segment_ref_to_proto
from hexagent.wire.times import duration_to_proto, timestamp_to_proto
from hexagent_services.dag_tracker.trail import Trail

Update = workflow_pb2.WorkflowUpdate
Solo = Callable[[Node], int]  # microseconds of a node alone on the cluster


def result_of(node: Node) -> CallOutcome | None:
    """How a call ended, None while it is open or when the node is a tool."""
    return node.outcome if not node.open else None


def revealed_node(graph: WorkflowGraph, node_id: str) -> workflow_pb2.RevealedNode:
    """A node after its reveal; outputs that exist by now stand with their digests."""
    node = graph.node(node_id)
    message = workflow_pb2.RevealedNode(node_id=node_id, status=enums_pb2.NodeStatus.ValueType(node.status))
    call = node.spec.call
    if call is not None:
        message.prompt_tokens = call.prompt_tokens
        for ref in call.segments:
            outcome = result_of(graph.node(ref.output_of)) if ref.output_of else None
            known = ref if outcome is None or not outcome.output.digest else outcome.output
            message.segments.append(segment_ref_to_proto(known))
    return message


def node_update(node: Node, sequence: int, at_us: int) -> Update:
    """Where the node is now."""
    update = Update(sequence=sequence, occurred_at_us=at_us)
    message = update.node
    message.node_id = node.node_id
    message.kind = enums_pb2.NodeKind.ValueType(node.spec.kind)
    message.status = enums_pb2.NodeStatus.ValueType(node.status)
    outcome = result_of(node)
    if outcome is not None:
        message.result.CopyFrom(call_result_to_proto(outcome))
    elif not node.open and node.status is not NodeStatus.SUCCEEDED:
        message.reason, message.message = node.reason, node.message
    return update


def ended_update(graph: WorkflowGraph, sequence: int, solo: Solo) -> Update:
    """The last update of a workflow."""
    return Update(sequence=sequence, occurred_at_us=graph.finished_us, ended=ended(graph, solo))


def missed_updates(graph: WorkflowGraph, trail: Trail, after_sequence: int, solo: Solo) -> list[Update]:
    """What a watcher who has everything up to `after_sequence` has missed, by sequence.

    A node is shown where it is now: a status it only passed through is left out.
    """
    changed = sorted((sequence, index) for index, sequence in enumerate(trail.changed) if sequence > after_sequence)
    updates = [node_update(graph.nodes[index], sequence, changed_us(graph.nodes[index])) for sequence, index in changed]
    if trail.ended > after_sequence:
        updates.append(ended_update(graph, trail.ended, solo))
    return updates


def changed_us(node: Node) -> int:
    """When the node reached its status, model time."""
    if node.finished_us != NEVER:
        return node.finished_us
    return max(node.revealed_us, node.ready_us, node.started_us if node.status is NodeStatus.RUNNING else NEVER)


def ended(graph: WorkflowGraph, solo: Solo) -> workflow_pb2.WorkflowEnded:
    """How a workflow ended and in what time."""
    return workflow_pb2.WorkflowEnded(
        status=enums_pb2.WorkflowStatus.ValueType(graph.status),
        reason=graph.reason,
        completion_time=duration_to_proto(max(graph.finished_us - graph.started.at_us, 0)),
        horizon=duration_to_proto(horizon_of(graph, solo).total_us()),
    )


def summary(graph: WorkflowGraph, horizon_us: int, clock: ModelClock, now_us: int) -> workflow_pb2.WorkflowSummary:
    """A workflow in one row."""
    spec = graph.spec
    calls = [node for node in graph.nodes if is_call(node)]
    end_us = now_us if graph.finished_us == NEVER else graph.finished_us
    message = workflow_pb2.WorkflowSummary(
        workflow_id=spec.workflow_id,
        tenant=spec.tenant,
        workflow_class=spec.workflow_class,
        status=enums_pb2.WorkflowStatus.ValueType(graph.status),
        priority=spec.priority,
        slo_scale=spec.slo_scale_milli / MILLI,
        started_at=timestamp_to_proto(clock.wall_ns_of(graph.started.at_us)),
        age=duration_to_proto(max(end_us - graph.started.at_us, 0)),
        horizon=duration_to_proto(horizon_us),
        calls=len(calls),
        calls_ended=sum(1 for node in calls if not node.open),
        tools=len(graph.nodes) - len(calls),
        reason=graph.reason,
        metadata=dict(spec.metadata),
    )
    if spec.deadline_us:
        message.deadline.CopyFrom(timestamp_to_proto(clock.wall_ns_of(spec.deadline_us)))
    if graph.finished_us != NEVER:
        message.ended_at.CopyFrom(timestamp_to_proto(clock.wall_ns_of(graph.finished_us)))
    return message


def description(
    graph: WorkflowGraph, clock: ModelClock, now_us: int, solo: Solo
) -> workflow_service_pb2.DescribeWorkflowResponse:
    """A workflow with every node, what its length hangs on and what it waits for."""
    known = describe(graph, solo)
    horizon = horizon_of(graph, solo)
    critical = set(known.critical_path)
    return workflow_service_pb2.DescribeWorkflowResponse(
        workflow=summary(graph, known.horizon_us, clock, now_us),
        critical_path=known.critical_path,
        bottleneck=known.bottleneck,
        bottleneck_reason=_waits_for(graph, graph.node(known.bottleneck)) if known.bottleneck else "",
        nodes=[_row(node, horizon, node.node_id in critical, now_us) for node in graph.nodes],
        remaining=duration_to_proto(known.remaining_us),
    )


def _row(node: Node, horizon: Horizon, critical: bool, now_us: int) -> workflow_pb2.NodeRow:
    spec = node.spec
    row = workflow_pb2.NodeRow(
        node_id=spec.node_id,
        kind=enums_pb2.NodeKind.ValueType(spec.kind),
        role=spec.role,
        status=enums_pb2.NodeStatus.ValueType(node.status),
        after=spec.after,
        join=join_to_proto(spec.join),
        template=spec.template,
        round=spec.round,
        solo=duration_to_proto(horizon.cost_us(node.index)),
        horizon=duration_to_proto(horizon.finish_us(node.index)),
        below=duration_to_proto(horizon.below_us(node.index)),
        critical=critical,
        reason=node.reason,
    )
    if node.open and node.ready_us != NEVER:
        row.waiting.CopyFrom(duration_to_proto(max(now_us - node.ready_us, 0)))
    for name in ("revealed", "ready", "started", "finished"):
        if (at_us := getattr(node, f"{name}_us")) != NEVER:
            setattr(row, f"{name}_at_us", at_us)
    outcome = result_of(node)
    if outcome is not None:
        row.result.CopyFrom(call_result_to_proto(outcome._replace(output_body=b"")))
    return row


def _waits_for(graph: WorkflowGraph, node: Node) -> str:
    """What keeps an open node from ending, for people."""
    if node.status is NodeStatus.BLOCKED:
        parents = (graph.nodes[index] for index in node.parents)
        return f"waits for {', '.join(parent.node_id for parent in parents if parent.open)}"
    if node.status is NodeStatus.READY:
        return "waits for the scheduler" if is_call(node) else "waits for its client"
    if not is_call(node):
        return "its client runs it"
    where = dict.fromkeys(name for name in (node.prefill_instance, node.decode_instance) if name)
    return f"runs on {' and '.join(where) or 'the cluster'}, attempt {node.attempt}"
