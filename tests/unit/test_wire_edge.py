"""The public edge: what a client sends becomes core values, or is refused with the path of the field."""

import math
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.core.errors import DeadlineExceeded, FailedPrecondition, HexagentError, InvalidArgument, ResourceExhausted
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.commands import ChangeWorkflow
from hexagent.core.workflow.model import Hints, Join, JoinKind, NodeKind, SegmentRef, ToolSpec, WorkflowSpec
from hexagent.wire import edge
from hexagent.wire.segments import INLINE_BODY_MAX_BYTES, Segment, SegmentKind, SegmentRole
from tests.unit.wire_nodes import BODY, call, inline, output_of, stored, tool

Node = workflow_pb2.NodeSpec
ORIGIN_S = 1_700_000_000
NOW_US = 50 * US_PER_S


def model_us_of(wall_ns: int) -> int:
    """A stack that runs ten model seconds a wall second."""
    return (wall_ns - ORIGIN_S * 10**9) * 10 // 1000


def terms(message: workflow_pb2.WorkflowSpec) -> WorkflowSpec:
    return edge.workflow_spec_from_proto(message, minted_id="minted", now_us=NOW_US, model_us_of=model_us_of)


def reveal(*nodes: Node, stored_tokens: dict[str, int] | None = None) -> edge.Reveal:
    return edge.nodes_from_proto(nodes, stored=stored_tokens or {})


# --- workflow terms ---------------------------------------------------------------------------------------
def test_an_empty_spec_has_every_default() -> None:
    assert terms(workflow_pb2.WorkflowSpec()) == WorkflowSpec("minted", "default", "default")


def test_a_full_spec() -> None:
    message = workflow_pb2.WorkflowSpec(
        workflow_id="w:1",
        tenant="acme",
        workflow_class="research",
        priority=-100,
        slo_scale=2.5,
        deadline=Timestamp(seconds=ORIGIN_S + 60),
        hints=workflow_pb2.WorkflowHints(total_solo=Duration(seconds=3, nanos=1), total_calls=4),
        metadata={"b": "2", "a": "1"},
    )
    hints = Hints(total_solo_us=3 * US_PER_S + 1, total_calls=4)
    expected = WorkflowSpec(
        "w:1", "acme", "research", -100, 2_500, 600 * US_PER_S, hints, metadata=(("a", "1"), ("b", "2"))
    )
    assert terms(message) == expected


def test_a_budget_counts_from_now() -> None:
    assert terms(workflow_pb2.WorkflowSpec(budget=Duration(seconds=7))).deadline_us == NOW_US + 7 * US_PER_S


@pytest.mark.parametrize("seconds", [0, ORIGIN_S - 1, ORIGIN_S, ORIGIN_S + 5])
def test_a_passed_deadline_is_refused_and_never_becomes_none(seconds: int) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        terms(workflow_pb2.WorkflowSpec(deadline=Timestamp(seconds=seconds)))
    assert (caught.value.reason, caught.value.field) == ("DEADLINE_PASSED", "spec.deadline")


@pytest.mark.parametrize(
    ("message", "reason", "field"),
    [
        (workflow_pb2.WorkflowSpec(workflow_id="a b"), "BAD_ID", "workflow_id"),
        (workflow_pb2.WorkflowSpec(tenant="a/b"), "BAD_ID", "tenant"),
        (workflow_pb2.WorkflowSpec(workflow_class="*"), "BAD_ID", "workflow_class"),
        (workflow_pb2.WorkflowSpec(priority=101), "BAD_PRIORITY", "priority"),
        (workflow_pb2.WorkflowSpec(slo_scale=-1), "BAD_SLO_SCALE", "slo_scale"),
        (workflow_pb2.WorkflowSpec(slo_scale=math.nan), "BAD_SLO_SCALE", "slo_scale"),
        (workflow_pb2.WorkflowSpec(slo_scale=1e308), "BAD_SLO_SCALE", "slo_scale"),
        (workflow_pb2.WorkflowSpec(slo_scale=1e-9), "BAD_SLO_SCALE", "slo_scale"),
        (workflow_pb2.WorkflowSpec(budget=Duration()), "BAD_DURATION", "budget"),
        (workflow_pb2.WorkflowSpec(budget=Duration(seconds=-1)), "BAD_DURATION", "budget"),
        (workflow_pb2.WorkflowSpec(budget=Duration(seconds=2**62)), "BAD_DURATION", "budget"),
        (workflow_pb2.WorkflowSpec(deadline=Timestamp(seconds=-1)), "BAD_TIMESTAMP", "deadline"),
        (workflow_pb2.WorkflowSpec(deadline=Timestamp(seconds=2**62)), "BAD_TIMESTAMP", "deadline"),
        (
            workflow_pb2.WorkflowSpec(hints=workflow_pb2.WorkflowHints(total_calls=-1)),
            "BAD_HINT",
            "hints.total_calls",
        ),
        (
            workflow_pb2.WorkflowSpec(hints=workflow_pb2.WorkflowHints(total_solo=Duration(nanos=-1))),
            "BAD_DURATION",
            "hints.total_solo",
        ),
    ],
)
def test_bad_terms(message: workflow_pb2.WorkflowSpec, reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        terms(message)
    assert (caught.value.reason, caught.value.field) == (reason, f"spec.{field}")


Due = workflow_service_pb2.SetDeadlineRequest


@pytest.mark.parametrize(
    ("request_", "scale", "deadline_us"),
    [
        (Due(workflow_id="w", budget=Duration(seconds=1)), None, NOW_US + US_PER_S),
        (Due(workflow_id="w", no_deadline=True), None, 0),
        (Due(workflow_id="w", slo_scale=0.0), 0, None),
        (Due(workflow_id="w", slo_scale=1.5, no_deadline=True), 1_500, 0),
    ],
)
def test_set_deadline(request_: Due, scale: int | None, deadline_us: int | None) -> None:
    change = edge.change_from_set_deadline(request_, now_us=NOW_US, model_us_of=model_us_of)
    assert change == ChangeWorkflow("w", slo_scale_milli=scale, deadline_us=deadline_us)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [(Due(workflow_id="w"), "NOTHING_TO_CHANGE"), (Due(workflow_id="w", no_deadline=False), "BAD_DEADLINE")],
)
def test_set_deadline_refusals(request_: Due, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        edge.change_from_set_deadline(request_, now_us=NOW_US, model_us_of=model_us_of)
    assert caught.value.reason == reason


# --- nodes ------------------------------------------------------------------------------------------------
def test_outputs_in_the_prompt_imply_edges() -> None:
    nodes = reveal(call("a"), call("b", inline(), output_of("a", 9), output_of("a"), after=("z", "c", "z"))).nodes
    assert nodes[1].after == ("a", "c", "z")
    assert nodes[1].call is not None
    assert nodes[1].call.segments[1:] == (SegmentRef("", 9, "a"), SegmentRef("", 0, "a"))
    assert nodes[1].call.prompt_tokens == BODY.counted_tokens + 9


def test_a_tool() -> None:
    message = tool("t", "a")
    message.tool.start_now = True
    node = reveal(message).nodes[0]
    assert (node.kind, node.after, node.join, node.call) == (NodeKind.TOOL, ("a",), Join(), None)
    assert node.tool == ToolSpec("search", 2 * US_PER_S, 30 * US_PER_S, start_now=True)


def test_a_join() -> None:
    message = tool("t", "a", "b")
    message.join.CopyFrom(call_pb2.Join(kind=enums_pb2.JOIN_KIND_K_OF_N, k=1, keep_losers=True))
    assert reveal(message).nodes[0].join == Join(JoinKind.K_OF_N, 1, True)


def test_the_payload_is_the_request_without_bodies() -> None:
    result = reveal(call("a"))
    spec = result.nodes[0].call
    assert spec is not None
    request = call_pb2.CallRequest.FromString(spec.payload)
    assert not request.segments[0].HasField("body")
    assert request.segments[0].ref.digest == BODY.digest
    assert request.engine_options["emulated.output_tokens"] == "7"
    assert result.bodies == {BODY.digest: BODY}


def test_a_repeated_reveal_equals_the_first_however_the_body_travels() -> None:
    first = reveal(call("a", inline()))
    again = reveal(call("a", stored()), stored_tokens={BODY.digest: BODY.counted_tokens})
    assert again.nodes == first.nodes
    assert again.bodies == {}


def test_a_body_serves_every_node_of_the_request() -> None:
    other = stored()
    other.ref.tokens = 5
    nodes = reveal(call("b", other), call("a", inline())).nodes
    assert nodes[0].call is not None
    assert nodes[0].call.segments == (SegmentRef(BODY.digest, 5),)
    assert edge.referenced_digests([call("b", other), call("a", inline())]) == (BODY.digest,)


def test_the_request_stays_as_the_client_sent_it() -> None:
    message = call("a")
    before = message.SerializeToString(deterministic=True)
    reveal(message)
    assert message.SerializeToString(deterministic=True) == before


def test_missing_segments_are_listed() -> None:
    other = Segment(SegmentRole.SYSTEM, SegmentKind.TEXT, b"Be brief.")
    with pytest.raises(FailedPrecondition) as caught:
        reveal(call("a", stored(), stored(other)), stored_tokens={BODY.digest: 8})
    assert caught.value.reason == "SEGMENTS_MISSING"
    assert caught.value.details == {"digests": other.digest, "missing": "1"}


def test_large_bodies_do_not_ride_along() -> None:
    large = Segment(SegmentRole.USER, SegmentKind.TEXT, b"x" * (INLINE_BODY_MAX_BYTES + 1))
    with pytest.raises(ResourceExhausted) as caught:
        reveal(call("a", inline(large)))
    assert caught.value.reason == "SEGMENT_TOO_LARGE"
    assert caught.value.field == "nodes[0].call.request.segments[0].body"


def spoil(change: Callable[[Node], object], node: Node | None = None) -> Node:
    message = node or call("a")
    change(message)
    return message


def segment(message: Node) -> call_pb2.PromptSegment:
    return message.call.request.segments[0]


CASES: list[tuple[str, str, Callable[[Node], object]]] = [
    ("BAD_ENUM", "kind", lambda m: m.ClearField("kind")),
    ("BAD_ENUM", "kind", lambda m: setattr(m, "kind", 99)),
    ("BAD_ID", "node_id", lambda m: setattr(m, "node_id", "")),
    ("BAD_ID", "after[0]", lambda m: m.after.append("a b")),
    ("BAD_ID", "role", lambda m: setattr(m, "role", "a b")),
    ("BAD_ID", "template", lambda m: setattr(m, "template", "/")),
    ("BAD_NODE", "call", lambda m: m.tool.SetInParent()),
    ("BAD_NODE", "call", lambda m: m.ClearField("call")),
    ("BAD_ENUM", "join.kind", lambda m: m.join.SetInParent()),
    ("CYCLE", "after", lambda m: m.after.append("a")),
    ("CYCLE", "after", lambda m: m.call.request.segments.append(output_of("a"))),
    ("NEGATIVE_TOKENS", "call.hints.expected_output_tokens", lambda m: _set_hint(m, -1)),
    ("BAD_ID", "call.hints.min_precision", lambda m: setattr(m.call.hints, "min_precision", "b f")),
    ("NO_PROMPT", "call.request.segments", lambda m: m.call.request.ClearField("segments")),
    ("BAD_ENUM", "call.request.segments[0].role", lambda m: segment(m).ClearField("role")),
    ("BAD_ENUM", "call.request.segments[0].kind", lambda m: segment(m).ClearField("kind")),
    ("BAD_ENUM", "call.request.segments[0].body.role", lambda m: segment(m).body.ClearField("role")),
    ("BAD_SEGMENT", "call.request.segments[0].body", lambda m: setattr(segment(m), "role", 1)),
    ("BAD_DIGEST", "call.request.segments[0].body.digest", lambda m: setattr(segment(m).body, "digest", "0" * 64)),
    ("BAD_DIGEST", "call.request.segments[0].ref.digest", lambda m: setattr(segment(m).ref, "digest", "0" * 64)),
    ("BAD_SEGMENT", "call.request.segments[0].ref.output_of", lambda m: setattr(segment(m).ref, "output_of", "b")),
    ("NEGATIVE_TOKENS", "call.request.segments[0].ref.tokens", lambda m: setattr(segment(m).ref, "tokens", -1)),
    ("NEGATIVE_TOKENS", "call.request.segments[0].body.tokens", lambda m: setattr(segment(m).body, "tokens", -1)),
    ("BAD_SEGMENT", "call.request.segments[0].ref", lambda m: segment(m).ClearField("body")),
    ("BAD_UTF8", "call.request.segments[0].body.text", lambda m: setattr(segment(m).body, "text", b"\xff")),
    ("BAD_DIGEST", "call.request.segments[1].ref.digest", lambda m: _add(m, digest="A" * 64)),
    ("BAD_SEGMENT", "call.request.segments[1].kind", lambda m: _add(m, output_of="b")),
    ("BAD_MAX_TOKENS", "call.request.sampling.max_tokens", lambda m: m.call.request.sampling.Clear()),
]


def _set_hint(message: Node, tokens: int) -> None:
    message.call.hints.expected_output_tokens = tokens


def _add(message: Node, digest: str = "", output_of: str = "") -> None:
    added = message.call.request.segments.add(role=enums_pb2.SEGMENT_ROLE_USER, kind=enums_pb2.SEGMENT_KIND_TEXT)
    added.ref.digest, added.ref.output_of = digest, output_of


@pytest.mark.parametrize(("reason", "field", "change"), CASES)
def test_bad_nodes(reason: str, field: str, change: Callable[[Node], object]) -> None:
    with pytest.raises(HexagentError) as caught:
        reveal(call("ok"), spoil(change))
    assert isinstance(caught.value, InvalidArgument)
    assert (caught.value.reason, caught.value.field) == (reason, f"nodes[1].{field}")


@pytest.mark.parametrize("field", ["expected", "timeout"])
def test_negative_tool_times(field: str) -> None:
    message = spoil(lambda m: getattr(m.tool, field).FromSeconds(-1), tool("t"))
    with pytest.raises(InvalidArgument) as caught:
        reveal(message)
    assert (caught.value.reason, caught.value.field) == ("BAD_DURATION", f"nodes[0].tool.{field}")
