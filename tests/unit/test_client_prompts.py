"""What users write, as the API takes it."""

from typing import Any

import pytest

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.client import Join, JoinKind, Segment
from hexagent.client.options import call_request, join_of
from hexagent.client.prompts import Handle, build_prompt, parent_id
from hexagent.client.results import CallFailed, call_error, call_result
from hexagent.core.errors import Cancelled, DeadlineExceeded, HexagentError, InvalidArgument, ResourceExhausted
from hexagent.core.ids import CallId
from hexagent.core.workflow.model import CallOutcome, FinishReason, NodeStatus, SegmentRef
from hexagent.text.tools import tool_calls

CALL = CallId("w", "n")
DONE = call_result(
    CallOutcome(CALL, 1, NodeStatus.SUCCEEDED, FinishReason.STOP, output_tokens=7, output=SegmentRef("d" * 64, 7)),
    call_pb2.SegmentBody(text="größe".encode()),
)


def test_a_prompt_of_all_kinds_of_parts() -> None:
    built = build_prompt(["text", Segment("rules", "system", 900), DONE, Handle("w", "later")], "w")
    roles = [segment.role for segment in built.segments]
    assert roles == [
        enums_pb2.SEGMENT_ROLE_USER,
        enums_pb2.SEGMENT_ROLE_SYSTEM,
        enums_pb2.SEGMENT_ROLE_ASSISTANT,
        enums_pb2.SEGMENT_ROLE_ASSISTANT,
    ]
    assert [segment.ref.tokens for segment in built.segments] == [1, 900, 7, 0]
    assert built.segments[2].ref.digest == "d" * 64
    assert built.segments[3].ref.output_of == "later"
    assert built.parents == ("n", "later")
    assert set(built.bodies) == {segment.ref.digest for segment in built.segments[:3]}


def test_a_long_text_is_split_between_characters() -> None:
    text = "a" + "€" * 800_000
    built = build_prompt(Segment(text, tokens=1_000), "w")
    bodies = [built.bodies[segment.ref.digest].text for segment in built.segments]
    assert len(bodies) == 3
    assert "".join(body.decode() for body in bodies) == text
    assert sum(segment.ref.tokens for segment in built.segments) >= 1_000


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "NO_PROMPT"),
        (Segment("x", role="robot"), "BAD_ROLE"),
        (Segment("x", tokens=-1), "NEGATIVE_TOKENS"),
        (Segment("x", token_ids=(1,)), "BAD_PROMPT"),
        ([17], "BAD_PROMPT"),
        (Handle("other", "n"), "OTHER_WORKFLOW"),
    ],
)
def test_bad_prompts_are_refused(prompt: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build_prompt(prompt, "w")
    assert caught.value.reason == reason


def test_parents_may_be_ids_results_and_handles() -> None:
    assert [parent_id(parent, "w") for parent in ("a", DONE, Handle("w", "h"))] == ["a", "n", "h"]


def test_options_become_a_request() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number"}}}
    request = call_request(
        {
            "temperature": 0.0,
            "stop": "END",
            "seed": 3,
            "logit_bias": {5: -1.5},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}, {"name": "g"}],
            "tool_choice": "g",
            "response_format": schema,
        },
        "m",
        32,
        True,
    )
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")
    assert list(request.sampling.stop) == ["END"]
    assert request.sampling.logit_bias[5] == -1.5
    assert [tool.name for tool in request.tools] == ["f", "g"]
    assert request.tool_choice.mode == call_pb2.ToolChoice.MODE_NAMED
    assert request.response_format.kind == call_pb2.ResponseFormat.KIND_JSON_SCHEMA
    assert (request.model, request.sampling.max_tokens, request.stream) == ("m", 32, True)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"},
        {"tools": [{"description": "nameless"}]},
        {"response_format": "yaml"},
        {"response_format": {"type": "json_schema"}},
    ],
)
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(InvalidArgument):
        call_request(options, "", 1, False)


def test_joins_have_short_forms() -> None:
    assert join_of("all") == Join()
    assert join_of("any") == Join(JoinKind.ANY)
    assert join_of(2) == Join(JoinKind.K_OF_N, 2)
    with pytest.raises(InvalidArgument):
        join_of("some")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"tool_calls":[{"name":"a","arguments":{}},{"name":"b","arguments":{"x":1}}]}', ["a", "b"]),
        ('[{"id":"1","function":{"name":"a","arguments":"{\\"x\\":1}"}}]', ["a"]),
        ('<tool_call>{"name":"a"}</tool_call>\n<tool_call>{"name":"b"}</tool_call>', ["a", "b"]),
        ("plain text", []),
        ('{"tool_calls":[{"arguments":{}}]}', []),
        ('{"name":"a","arguments":"no json"}', []),
        ("[1,2]", []),
    ],
)
def test_tool_calls_are_parsed_where_they_are_well_formed(text: str, names: list[str]) -> None:
    assert [call.name for call in tool_calls(text)] == names


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (NodeStatus.FAILED, "ENGINE_BROKE", CallFailed),
        (NodeStatus.CANCELLED, "JOIN_MET", Cancelled),
        (NodeStatus.REFUSED, "DEADLINE_UNREACHABLE", DeadlineExceeded),
        (NodeStatus.REFUSED, "PROMPT_TOO_LARGE", InvalidArgument),
        (NodeStatus.REFUSED, "QUEUE_FULL", ResourceExhausted),
    ],
)
def test_ends_without_success_raise(status: NodeStatus, reason: str, kind: type[HexagentError]) -> None:
    error = call_error(CallOutcome(CALL, 1, status, reason=reason, retry_after_us=5))
    assert type(error) is kind
    assert error.reason == reason
    assert error.details["retry_after_us"] == "5"


def test_a_result_shows_its_output() -> None:
    assert (DONE.text, str(DONE), DONE.usage.output_tokens, DONE.instances) == ("größe", "größe", 7, ())
