"""What the gateway makes of results: prompts that recognise outputs, completions, events, errors."""

import json
from typing import Any

import pytest

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.client import CallResult, FinishReason
from hexagent.client.results import call_result
from hexagent.core.errors import HexagentError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from hexagent.core.ids import CallId
from hexagent.core.instance.spec import TextSpec
from hexagent.core.workflow.model import CallOutcome, NodeStatus, SegmentRef
from hexagent.text.reader import Piece, Whole
from hexagent_services.gateway.chat import Chat, Models, parse_chat
from hexagent_services.gateway.completions import Completion
from hexagent_services.gateway.failures import Failures, client_field
from hexagent_services.gateway.prompts import Outputs, node_of

MODELS = Models(("m",), "m", 100)
TOOLS = '{"tool_calls":[{"name":"find","arguments":{"q":"kv"}},{"name":"stop","arguments":{}}]}'


def result_of(text: str, node_id: str = "c1", finish: FinishReason = FinishReason.STOP, wf: str = "w") -> CallResult:
    outcome = CallOutcome(
        CallId(wf, node_id), 1, NodeStatus.SUCCEEDED, finish, prompt_tokens=9, cached_tokens=4, output_tokens=5,
        output=SegmentRef("d" * 62 + node_id, 5),
    )  # fmt: skip
    return call_result(outcome, call_pb2.SegmentBody(text=text.encode()))


def chat_of(*texts: str, **options: Any) -> Chat:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return parse_chat(json.dumps({"messages": messages, "hexagent": options}).encode(), MODELS)


def remember(outputs: Outputs, result: CallResult, parents: tuple[str, ...]) -> None:
    outputs.add(result, chat_of("x").said(result), parents)


def whole(result: CallResult) -> dict[str, Any]:
    return completion().whole(result, chat_of("x").said(result))


# -- prompts -----------------------------------------------------------------------------------------------------


def test_a_growing_conversation_shares_its_prefix() -> None:
    outputs = Outputs(10)
    first = node_of(chat_of("hello"), "c1", "w", outputs)
    remember(outputs, result_of("hi there", "c1"), first.parents)
    second = node_of(chat_of("hello", "hi there", "more"), "c2", "w", outputs)
    refs = second.spec.call.request.segments
    assert refs[0] == first.spec.call.request.segments[0]
    assert refs[1].ref == call_pb2.SegmentRef(digest="d" * 62 + "c1", tokens=5)
    assert refs[1].kind == enums_pb2.SEGMENT_KIND_OUTPUT
    assert refs[1].ref.digest not in second.bodies
    assert list(second.spec.after) == ["c1"]
    assert len(second.bodies) == 2


def test_only_the_calls_that_no_other_parent_stands_for_are_parents() -> None:
    outputs = Outputs(10)
    texts = ["q"]
    for i in range(5):
        node = node_of(chat_of(*texts), f"c{i}", "w", outputs)
        assert list(node.spec.after) == ([f"c{i - 1}"] if i else [])
        remember(outputs, result_of(f"answer {i}", f"c{i}"), node.parents)
        texts += [f"answer {i}", "next"]
    branch = node_of(chat_of("q", "answer 0", "other"), "b", "w", outputs)
    remember(outputs, result_of("branch", "b"), branch.parents)
    both = node_of(
        chat_of("q", "answer 1", "and", "branch", "merge"),
        "m",
        "w",
        outputs,
    )
    assert list(both.spec.after) == ["b", "c1"]


def test_outputs_of_an_earlier_workflow_are_reused_without_an_edge() -> None:
    outputs = Outputs(10)
    remember(outputs, result_of("hi", "c1", wf="before"), ())
    node = node_of(chat_of("hello", "hi", "more", after=["x"]), "c2", "now", outputs)
    assert node.spec.call.request.segments[1].kind == enums_pb2.SEGMENT_KIND_OUTPUT
    assert list(node.spec.after) == ["x"]


def test_other_text_and_forgotten_outputs_stand_for_themselves() -> None:
    outputs = Outputs(1)
    remember(outputs, result_of("one", "c1"), ())
    remember(outputs, result_of("two", "c2"), ("c1",))
    for text in ("one", "Two", "two "):
        node = node_of(chat_of("hello", text, "more"), "c3", "w", outputs)
        assert node.spec.call.request.segments[1].kind == enums_pb2.SEGMENT_KIND_TEXT
        assert list(node.spec.after) == []


def test_an_expired_output_stands_for_itself_and_is_still_a_parent() -> None:
    outputs = Outputs(10)
    remember(outputs, result_of("one", "c1"), ())
    chat = chat_of("hello", "one", "more")
    keys = [message.output_key for message in chat.messages]
    assert outputs.expire(keys)
    assert not outputs.expire(keys)
    node = node_of(chat, "c2", "w", outputs)
    assert node.spec.call.request.segments[1].kind == enums_pb2.SEGMENT_KIND_TEXT
    assert list(node.spec.after) == ["c1"]


# -- completions -------------------------------------------------------------------------------------------------


def events_of(data: bytes) -> list[Any]:
    lines = data.decode().split("\n\n")
    assert lines.pop() == ""
    return [line if line == "data: [DONE]" else json.loads(line.removeprefix("data: ")) for line in lines]


def completion(usage: bool = False) -> Completion:
    return Completion.new("c1", "w", "m", usage)


def test_a_whole_answer() -> None:
    answer = whole(result_of("hello", finish=FinishReason.LENGTH))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_a_whole_answer_that_asks_for_tools() -> None:
    choice = whole(result_of(TOOLS, finish=FinishReason.TOOL_CALLS))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "find", "arguments": '{"q": "kv"}'},
        {"name": "stop", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    # The same text from an engine that does not say so is text.
    assert whole(result_of(TOOLS))["choices"][0]["message"]["content"] == TOOLS


def test_chunks() -> None:
    parts = completion(usage=True)
    sent = events_of(parts.first() + parts.piece(Piece("", "grün\n")) + parts.last(result_of("x"), Whole("", "", ())))
    assert [chunk["choices"][0]["delta"] for chunk in sent[:3]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "grün\n"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in sent[:3]] == [None, None, "stop"]
    assert sent[0]["usage"] is None
    assert sent[3]["choices"] == []
    assert sent[3]["usage"]["total_tokens"] == 14
    assert sent[4] == "data: [DONE]"
    assert "usage" not in events_of(completion().first())[0]


def test_chunks_that_ask_for_tools() -> None:
    result = result_of(TOOLS, finish=FinishReason.TOOL_CALLS)
    sent = events_of(completion().last(result, chat_of("x").said(result)))
    deltas = [chunk["choices"][0]["delta"] for chunk in sent[:-1]]
    names = [delta["tool_calls"][0]["function"].get("name") for delta in deltas[:-1]]
    assert names == ["find", None, "stop", None]
    assert [delta["tool_calls"][0]["index"] for delta in deltas[:-1]] == [0, 0, 1, 1]
    assert deltas[1]["tool_calls"][0]["function"] == {"arguments": '{"q": "kv"}'}
    assert sent[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("pieces", "shown", "held"),
    [
        (["hel", "lo"], ["hel", "lo"], ""),
        ([" {", '"tool', "box"], ["", "", ' {"toolbox'], ""),
        (['{"tool_c', 'alls":', "[]}"], ["", "", ""], '{"tool_calls":[]}'),
        (["<tool", "_call>", "x"], ["", "", ""], "<tool_call>x"),
        (["{"], [""], "{"),
    ],
)
def test_what_may_ask_for_tools_is_held_back(pieces: list[str], shown: list[str], held: str) -> None:
    reader = chat_of("x").reader()
    assert [reader.take(piece).content for piece in pieces] == shown
    assert reader.end(asked=False).content == held


def test_what_was_held_back_in_vain_is_shown_at_the_end() -> None:
    sent = events_of(completion().last(result_of("{"), Whole("", "{", ())))
    assert sent[0]["choices"][0]["delta"] == {"content": "{"}


def test_reasoning_is_told_apart_and_the_answer_behind_it_is_recognised() -> None:
    texts = {"m": TextSpec("m", tools="hermes", reasoning="think")}
    body = {"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function", "function": {"name": "f"}}]}
    chat = parse_chat(json.dumps(body).encode(), MODELS._replace(texts=texts))
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    result = result_of(f"<think>so</think>\n\nI look.\n{call}", finish=FinishReason.TOOL_CALLS)
    message = completion().whole(result, chat.said(result))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("so", "I look.")
    outputs = Outputs(10)
    outputs.add(result, chat.said(result), ())
    # What a client makes of a stream ends with the line end before the call.
    for content in ("I look.", "I look.\n"):
        asked = {"role": "assistant", "content": content, "tool_calls": message["tool_calls"]}
        again = [{"role": "user", "content": "q"}, asked]
        node = node_of(parse_chat(json.dumps({"messages": again}).encode(), MODELS), "c2", "w", outputs)
        assert node.spec.call.request.segments[1].kind == enums_pb2.SEGMENT_KIND_OUTPUT


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("nodes[0].call.request.sampling.max_tokens", "max_tokens"),
        ("nodes[0].call.request.tools[1].name", "tools[1].name"),
        ("nodes[3].call.prompt_tokens", "messages"),
        ("nodes[0].call.request.segments[2].ref", "messages[2].ref"),
        ("nodes[0].after[1]", "hexagent.after[1]"),
        ("nodes[0].role", "hexagent.role"),
        ("nodes[0].call.request.engine_options", "hexagent.engine_options"),
        ("nodes[0].call.hints.min_precision", "hexagent.min_precision"),
        ("spec.slo_scale", "hexagent.slo_scale"),
        ("spec.tenant", "tenant"),
        ("messages[1].role", "messages[1].role"),
    ],
)
def test_fields_have_the_names_the_client_gave_them(field: str, shown: str) -> None:
    assert client_field(field) == shown


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (InvalidArgument("x", reason="BAD_FIELD", field="n"), 400, "bad_field", None),
        (InvalidArgument("x", reason="BODY_TOO_LARGE"), 413, "body_too_large", None),
        (NotFound("x", reason="UNKNOWN_MODEL"), 404, "model_not_found", None),
        (ResourceExhausted("x", reason="QUEUE_FULL", details={"retry_after_us": "9000000"}), 429, "queue_full", "3"),
        (ResourceExhausted("x", reason="QUEUE_FULL", details={"retry_after_us": "1"}), 429, "queue_full", "1"),
        (Unavailable("x", reason="BUS_UNAVAILABLE"), 503, "bus_unavailable", "2"),
        (HexagentError("x", reason="ENGINE_BROKE"), 500, "engine_broke", None),
    ],
)
def test_errors(error: HexagentError, status: int, code: str, retry_after: str | None) -> None:
    failure = Failures(time_scale=4.0, retry_after_s=2).of(error)
    assert (failure.status, failure.body["error"]["code"]) == (status, code)
    assert failure.headers.get("retry-after") == retry_after
    assert failure.body["error"]["param"] == (error.field or None)
