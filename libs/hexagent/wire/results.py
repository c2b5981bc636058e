"""How a call ended, as the public API shows it."""

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.ids import CallId
from hexagent.core.workflow.model import CallOutcome, FinishReason, NodeStatus
from hexagent.wire.codec import enum_of, parse, to_bytes
from hexagent.wire.segments import segment_ref_from_proto, segment_ref_to_proto
from hexagent.wire.times import duration_from_proto, duration_to_proto
from hexagent.wire.workflow import times_from_proto, times_to_proto


def call_result_to_proto(outcome: CallOutcome) -> workflow_pb2.CallResult:
    """The result for a client, which knows the call by where it stands."""
    message = workflow_pb2.CallResult(
        status=enums_pb2.NodeStatus.ValueType(outcome.status),
        attempt=outcome.attempt,
        finish_reason=enums_pb2.FinishReason.ValueType(outcome.finish_reason),
        reason=outcome.reason,
        message=outcome.message,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        output_tokens=outcome.output_tokens,
        output=segment_ref_to_proto(outcome.output),
        prefill_instance=outcome.prefill_instance,
        decode_instance=outcome.decode_instance,
        kv_bytes=outcome.kv_bytes,
        times=times_to_proto(outcome.times),
        decode_us=outcome.decode_us,
    )
    if outcome.retry_after_us:
        message.retry_after.CopyFrom(duration_to_proto(outcome.retry_after_us))
    if outcome.output_body:
        message.output_body.CopyFrom(parse(call_pb2.SegmentBody, outcome.output_body))
    return message


def call_result_from_proto(message: workflow_pb2.CallResult, call: CallId) -> CallOutcome:
    return CallOutcome(
        call=call,
        attempt=message.attempt,
        status=enum_of(NodeStatus, message.status, "result.status"),
        finish_reason=enum_of(FinishReason, message.finish_reason, "result.finish_reason"),
        reason=message.reason,
        message=message.message,
        retry_after_us=duration_from_proto(message.retry_after, "result.retry_after"),
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
        output=segment_ref_from_proto(message.output),
        output_body=to_bytes(message.output_body) if message.HasField("output_body") else b"",
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        kv_bytes=message.kv_bytes,
        times=times_from_proto(message.times),
        decode_us=message.decode_us,
    )
