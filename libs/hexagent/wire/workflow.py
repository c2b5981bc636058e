"""Workflow events, outcomes, dispatches and token deltas: what travels on the streams."""

from typing import NamedTuple

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import events_pb2
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowChanged,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.model import CallOutcome, CallTimes, FinishReason, NodeStatus, WorkflowStatus
from hexagent.wire.codec import (
    bad,
    call_id_from_proto,
    call_id_to_proto,
    enum_of,
    parse,
    to_bytes,
)
from hexagent.wire.nodes import node_from_record, node_to_record, terms_from_record, terms_to_record
from hexagent.wire.segments import segment_ref_from_proto, segment_ref_to_proto

Envelope = events_pb2.WorkflowEventEnvelope


class EventEnvelope(NamedTuple):
    """A workflow event with what its stream adds."""

    event: WorkflowEvent
    event_id: str
    sequence: int  # among the events of its workflow, from 1


class OutcomeEnvelope(NamedTuple):
    """An outcome with what its stream adds."""

    outcome: CallOutcome
    event_id: str
    sequence: int  # among the outcomes of its publisher, from 1
    publisher: str


# --- events -----------------------------------------------------------------------------------------------
def event_to_proto(event: WorkflowEvent, *, event_id: str, sequence: int) -> Envelope:
    """The envelope of `event`; its time stands once, in `occurred_at_us`."""
    envelope = Envelope(event_id=event_id, sequence=sequence, occurred_at_us=event.at_us)
    match event:
        case WorkflowStarted():
            envelope.workflow_started.workflow.CopyFrom(terms_to_record(event.spec))
            envelope.workflow_started.request_id = event.request_id
        case NodesRevealed():
            envelope.nodes_revealed.workflow_id = event.workflow_id
            envelope.nodes_revealed.nodes.extend(node_to_record(node) for node in event.nodes)
            envelope.nodes_revealed.request_id = event.request_id
        case CallFinished():
            envelope.call_finished.outcome.CopyFrom(outcome_to_proto(event.outcome))
            envelope.call_finished.request_id = event.request_id
        case ToolStarted() | ToolFinished():
            _tool_to_proto(event, envelope)
        case WorkflowChanged() | WorkflowFinished():
            _end_to_proto(event, envelope)
    return envelope


def event_from_proto(envelope: Envelope) -> EventEnvelope:
    """The event and its envelope; `InvalidArgument` (BAD_MESSAGE) where it holds none this version knows."""
    return EventEnvelope(_event_of(envelope), envelope.event_id, envelope.sequence)


def event_to_bytes(event: WorkflowEvent, *, event_id: str, sequence: int) -> bytes:
    return to_bytes(event_to_proto(event, event_id=event_id, sequence=sequence))


def event_from_bytes(data: bytes) -> EventEnvelope:
    return event_from_proto(parse(Envelope, data))


def _tool_to_proto(event: ToolStarted | ToolFinished, envelope: Envelope) -> None:
    node = call_id_to_proto(event.node)
    if isinstance(event, ToolStarted):
        started = events_pb2.ToolStarted(node=node, request_id=event.request_id)
        envelope.tool_started.CopyFrom(started)
        return
    finished = events_pb2.ToolFinished(
        node=node,
        status=enums_pb2.NodeStatus.ValueType(event.status),
        reason=event.reason,
        request_id=event.request_id,
        message=event.message,
    )
    envelope.tool_finished.CopyFrom(finished)


def _end_to_proto(event: WorkflowChanged | WorkflowFinished, envelope: Envelope) -> None:
    if isinstance(event, WorkflowChanged):
        changed = events_pb2.WorkflowChanged(
            workflow_id=event.workflow_id,
            priority=event.priority,
            slo_scale_milli=event.slo_scale_milli,
            deadline_us=event.deadline_us,
            paused=event.paused,
            request_id=event.request_id,
        )
        envelope.workflow_changed.CopyFrom(changed)
        return
    finished = events_pb2.WorkflowFinished(
        workflow_id=event.workflow_id,
        status=enums_pb2.WorkflowStatus.ValueType(event.status),
        reason=event.reason,
        request_id=event.request_id,
    )
    envelope.workflow_finished.CopyFrom(finished)


def _event_of(envelope: Envelope) -> WorkflowEvent:
    at_us = envelope.occurred_at_us
    match envelope.WhichOneof("event"):
        case "workflow_started":
            started = envelope.workflow_started
            return WorkflowStarted(terms_from_record(started.workflow), at_us, started.request_id)
        case "nodes_revealed":
            revealed = envelope.nodes_revealed
            nodes = tuple(node_from_record(node) for node in revealed.nodes)
            return NodesRevealed(revealed.workflow_id, nodes, at_us, revealed.request_id)
        case "call_finished":
            ended = envelope.call_finished
            return CallFinished(outcome_from_proto(ended.outcome), at_us, ended.request_id)
        case "tool_started":
            tool = envelope.tool_started
            return ToolStarted(call_id_from_proto(tool.node), at_us, tool.request_id)
        case "tool_finished":
            return _tool_finished_of(envelope.tool_finished, at_us)
        case "workflow_changed":
            return _changed_of(envelope.workflow_changed, at_us)
        case "workflow_finished":
            finished = envelope.workflow_finished
            status = enum_of(WorkflowStatus, finished.status, "workflow_finished.status")
            return WorkflowFinished(finished.workflow_id, status, at_us, finished.reason, finished.request_id)
        case None:
            raise bad("BAD_MESSAGE", "event", "the envelope holds no event this version knows")


def _tool_finished_of(message: events_pb2.ToolFinished, at_us: int) -> ToolFinished:
    return ToolFinished(
        node=call_id_from_proto(message.node),
        status=enum_of(NodeStatus, message.status, "tool_finished.status"),
        at_us=at_us,
        reason=message.reason,
        request_id=message.request_id,
        message=message.message,
    )


def _changed_of(message: events_pb2.WorkflowChanged, at_us: int) -> WorkflowChanged:
    return WorkflowChanged(
        workflow_id=message.workflow_id,
        priority=message.priority,
        slo_scale_milli=message.slo_scale_milli,
        deadline_us=message.deadline_us,
        paused=message.paused,
        at_us=at_us,
        request_id=message.request_id,
    )


# --- outcomes ---------------------------------------------------------------------------------------------
def outcome_to_proto(outcome: CallOutcome) -> events_pb2.CallOutcome:
    return events_pb2.CallOutcome(
        call=call_id_to_proto(outcome.call),
        attempt=outcome.attempt,
        status=enums_pb2.NodeStatus.ValueType(outcome.status),
        finish_reason=enums_pb2.FinishReason.ValueType(outcome.finish_reason),
        reason=outcome.reason,
        message=outcome.message,
        retry_after_us=outcome.retry_after_us,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        output_tokens=outcome.output_tokens,
        output=segment_ref_to_proto(outcome.output),
        output_body=outcome.output_body,
        prefill_instance=outcome.prefill_instance,
        decode_instance=outcome.decode_instance,
        kv_bytes=outcome.kv_bytes,
        times=times_to_proto(outcome.times),
        decode_us=outcome.decode_us,
    )


def outcome_from_proto(message: events_pb2.CallOutcome) -> CallOutcome:
    return CallOutcome(
        call=call_id_from_proto(message.call),
        attempt=message.attempt,
        status=enum_of(NodeStatus, message.status, "outcome.status"),
        finish_reason=enum_of(FinishReason, message.finish_reason, "outcome.finish_reason"),
        reason=message.reason,
        message=message.message,
        retry_after_us=message.retry_after_us,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
        output=segment_ref_from_proto(message.output),
        output_body=message.output_body,
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        kv_bytes=message.kv_bytes,
        times=times_from_proto(message.times),
        decode_us=message.decode_us,
    )


def outcome_id(outcome: CallOutcome) -> str:
    """The message id that the stream dedupes by: one outcome a call and attempt."""
    return f"{outcome.call}#{outcome.attempt}"


def outcome_to_bytes(outcome: CallOutcome, *, publisher: str, sequence: int) -> bytes:
    """The entry of the outcome stream, dated by the end of the attempt."""
    return to_bytes(
        events_pb2.CallOutcomeMessage(
            event_id=outcome_id(outcome),
            sequence=sequence,
            occurred_at_us=outcome.times.end_us,
            publisher=publisher,
            outcome=outcome_to_proto(outcome),
        )
    )


def outcome_from_bytes(data: bytes) -> OutcomeEnvelope:
    message = parse(events_pb2.CallOutcomeMessage, data)
    return OutcomeEnvelope(outcome_from_proto(message.outcome), message.event_id, message.sequence, message.publisher)


def times_to_proto(times: CallTimes) -> call_pb2.CallTimes:
    return call_pb2.CallTimes(
        dispatched_us=times.dispatched_us,
        prefill_start_us=times.prefill_start_us,
        prefill_end_us=times.prefill_end_us,
        transfer_start_us=times.transfer_start_us,
        transfer_end_us=times.transfer_end_us,
        decode_start_us=times.decode_start_us,
        first_token_us=times.first_token_us,
        end_us=times.end_us,
    )


def times_from_proto(message: call_pb2.CallTimes) -> CallTimes:
    return CallTimes(
        dispatched_us=message.dispatched_us,
        prefill_start_us=message.prefill_start_us,
        prefill_end_us=message.prefill_end_us,
        transfer_start_us=message.transfer_start_us,
        transfer_end_us=message.transfer_end_us,
        decode_start_us=message.decode_start_us,
        first_token_us=message.first_token_us,
        end_us=message.end_us,
    )
