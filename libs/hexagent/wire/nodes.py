"""Workflow terms and nodes as the workflow stream keeps them."""

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import events_pb2
from hexagent.core.workflow.model import (
    CallSpec,
    Hints,
    Join,
    JoinKind,
    NodeKind,
    NodeSpec,
    ToolSpec,
    WorkflowSpec,
)
from hexagent.wire.codec import enum_of
from hexagent.wire.segments import segment_ref_from_proto, segment_ref_to_proto


def terms_to_record(spec: WorkflowSpec) -> events_pb2.WorkflowRecord:
    return events_pb2.WorkflowRecord(
        workflow_id=spec.workflow_id,
        tenant=spec.tenant,
        workflow_class=spec.workflow_class,
        priority=spec.priority,
        slo_scale_milli=spec.slo_scale_milli,
        deadline_us=spec.deadline_us,
        hint_total_solo_us=spec.hints.total_solo_us,
        hint_total_calls=spec.hints.total_calls,
        metadata=dict(spec.metadata),
    )


def terms_from_record(message: events_pb2.WorkflowRecord) -> WorkflowSpec:
    return WorkflowSpec(
        workflow_id=message.workflow_id,
        tenant=message.tenant,
        workflow_class=message.workflow_class,
        priority=message.priority,
        slo_scale_milli=message.slo_scale_milli,
        deadline_us=message.deadline_us,
        hints=Hints(message.hint_total_solo_us, message.hint_total_calls),
        metadata=tuple(sorted(message.metadata.items())),
    )


def node_to_record(node: NodeSpec) -> events_pb2.NodeRecord:
    return events_pb2.NodeRecord(
        node_id=node.node_id,
        kind=enums_pb2.NodeKind.ValueType(node.kind),
        role=node.role,
        after=node.after,
        join=join_to_proto(node.join),
        call=None if node.call is None else _call_to_record(node.call),
        tool=None if node.tool is None else _tool_to_record(node.tool),
        template=node.template,
        round=node.round,
    )


def node_from_record(message: events_pb2.NodeRecord) -> NodeSpec:
    return NodeSpec(
        node_id=message.node_id,
        kind=enum_of(NodeKind, message.kind, "node.kind"),
        role=message.role,
        after=tuple(message.after),
        join=join_from_proto(message.join, "node.join"),
        call=_call_from_record(message.call) if message.HasField("call") else None,
        tool=_tool_from_record(message.tool) if message.HasField("tool") else None,
        template=message.template,
        round=message.round,
    )


def join_to_proto(join: Join) -> call_pb2.Join:
    return call_pb2.Join(kind=enums_pb2.JoinKind.ValueType(join.kind), k=join.k, keep_losers=join.keep_losers)


def join_from_proto(message: call_pb2.Join, path: str) -> Join:
    return Join(enum_of(JoinKind, message.kind, f"{path}.kind"), message.k, message.keep_losers)


def _call_to_record(call: CallSpec) -> events_pb2.CallRecord:
    return events_pb2.CallRecord(
        model=call.model,
        segments=[segment_ref_to_proto(segment) for segment in call.segments],
        prompt_tokens=call.prompt_tokens,
        max_tokens=call.max_tokens,
        lora=call.lora,
        expected_output_tokens=call.expected_output_tokens,
        min_precision=call.min_precision,
        cache_salt=call.cache_salt,
        payload=call.payload,
    )


def _call_from_record(message: events_pb2.CallRecord) -> CallSpec:
    return CallSpec(
        model=message.model,
        segments=tuple(segment_ref_from_proto(segment) for segment in message.segments),
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        lora=message.lora,
        expected_output_tokens=message.expected_output_tokens,
        min_precision=message.min_precision,
        cache_salt=message.cache_salt,
        payload=message.payload,
    )


def _tool_to_record(tool: ToolSpec) -> events_pb2.ToolRecord:
    return events_pb2.ToolRecord(
        name=tool.name, expected_us=tool.expected_us, timeout_us=tool.timeout_us, start_now=tool.start_now
    )


def _tool_from_record(message: events_pb2.ToolRecord) -> ToolSpec:
    return ToolSpec(message.name, message.expected_us, message.timeout_us, message.start_now)
