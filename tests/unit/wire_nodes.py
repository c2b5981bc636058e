"""Requests that the public edge accepts, for tests to spoil."""

from google.protobuf.duration_pb2 import Duration

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.wire.segments import Segment, SegmentKind, SegmentRole, segment_to_proto

BODY = Segment(SegmentRole.USER, SegmentKind.TEXT, b"What is the capital of France?")


def inline(body: Segment = BODY) -> call_pb2.PromptSegment:
    return call_pb2.PromptSegment(
        role=enums_pb2.SegmentRole.ValueType(body.role),
        kind=enums_pb2.SegmentKind.ValueType(body.kind),
        body=segment_to_proto(body),
    )


def stored(body: Segment = BODY) -> call_pb2.PromptSegment:
    segment = inline(body)
    segment.ClearField("body")
    segment.ref.digest = body.digest
    return segment


def output_of(node_id: str, tokens: int = 0) -> call_pb2.PromptSegment:
    return call_pb2.PromptSegment(
        role=enums_pb2.SEGMENT_ROLE_ASSISTANT,
        kind=enums_pb2.SEGMENT_KIND_OUTPUT,
        ref=call_pb2.SegmentRef(output_of=node_id, tokens=tokens),
    )


def call(node_id: str, *segments: call_pb2.PromptSegment, after: tuple[str, ...] = ()) -> workflow_pb2.NodeSpec:
    request = call_pb2.CallRequest(
        model="meta-llama/Llama-3.1-8B",
        segments=segments or [inline()],
        sampling=call_pb2.SamplingParams(max_tokens=64),
        engine_options={"emulated.output_tokens": "7", "emulated.text": "Paris"},
    )
    return workflow_pb2.NodeSpec(
        node_id=node_id,
        kind=enums_pb2.NODE_KIND_CALL,
        role="worker",
        after=after,
        call=workflow_pb2.CallNode(request=request),
    )


def tool(node_id: str, *after: str) -> workflow_pb2.NodeSpec:
    return workflow_pb2.NodeSpec(
        node_id=node_id,
        kind=enums_pb2.NODE_KIND_TOOL,
        after=after,
        tool=workflow_pb2.ToolNode(name="search", expected=Duration(seconds=2), timeout=Duration(seconds=30)),
    )
