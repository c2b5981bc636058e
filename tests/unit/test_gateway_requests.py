"""What a chat request says: its body, its messages, its headers."""

import json
from typing import Any

import pytest

from hexagent.api.common.v1 import call_pb2
from hexagent.client import ToolCall
from hexagent.core.errors import HexagentError, InvalidArgument, NotFound
from hexagent.core.instance.spec import TextSpec
from hexagent_services.gateway.chat import Chat, Models, parse_chat
from hexagent_services.gateway.identity import SessionName, caller_of, tier_priority, workflow_id_of
from hexagent_services.gateway.messages import assistant_text, output_key, parse_messages
from hexagent_services.gateway.prompts import Outputs, node_of

MODELS = Models(("small", "large"), "", 100, adapters={"large:sql": ("large", "sql")})
HELLO = [{"role": "user", "content": "hello"}]


def parsed(**fields: Any) -> Chat:
    return parse_chat(json.dumps({"model": "small", "messages": HELLO, **fields}).encode(), MODELS)


def tool(name: str = "find") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}, "strict": True}}


# -- body --------------------------------------------------------------------------------------------------------


def test_sampling_reaches_the_call() -> None:
    chat = parsed(
        temperature=0, top_p=0.5, stop="end", seed=-1, presence_penalty=1, frequency_penalty=-1.5,
        logit_bias={"7": -100}, max_tokens=9, max_completion_tokens=7, top_k=3,
    )  # fmt: skip
    sampling = chat.request.sampling
    assert (sampling.temperature, sampling.top_p, list(sampling.stop)) == (0, 0.5, ["end"])
    assert sampling.HasField("temperature")
    assert (sampling.seed, sampling.max_tokens, sampling.top_k) == (2**64 - 1, 7, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1.5)
    assert dict(sampling.logit_bias) == {7: -100}
    assert not parsed().request.sampling.HasField("temperature")
    assert parsed().request.sampling.max_tokens == 100


def test_an_adapter_is_named_with_its_model() -> None:
    chat = parsed(model="large:sql", hexagent={"min_precision": "bf16"})
    assert (chat.request.model, chat.request.lora, chat.model) == ("large", "sql", "large:sql")
    assert node_of(chat, "c", "w", Outputs(1)).spec.call.hints.min_precision == "bf16"
    assert (parsed().request.lora, parsed().model) == ("", "small")


def test_tools_and_formats_reach_the_call() -> None:
    named = parsed(
        tools=[tool()],
        tool_choice={"type": "function", "function": {"name": "find"}},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    ).request
    assert (named.tools[0].name, named.tools[0].strict) == ("find", True)
    assert (named.tool_choice.mode, named.tool_choice.name) == (call_pb2.ToolChoice.MODE_NAMED, "find")
    assert named.response_format.kind == call_pb2.ResponseFormat.KIND_JSON_SCHEMA
    assert parsed(tools=[tool()], tool_choice="required").request.tool_choice.mode == call_pb2.ToolChoice.MODE_REQUIRED


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": "auto"}, "tools[0].function.strict")],
)
def test_models_with_a_directory_refuse_what_forces_tools(fields: dict[str, Any], field: str) -> None:
    models = MODELS._replace(texts={"small": TextSpec("small", directory="/models/small")})
    body = {"model": "small", "messages": HELLO, "tools": [tool()], **fields}
    with pytest.raises(InvalidArgument) as caught:
        parse_chat(json.dumps(body).encode(), models)
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED_FIELD", field)


def test_extension_and_ignored_fields() -> None:
    chat = parsed(
        user="u", metadata={"a": "b"}, nvext={"x": 1}, logprobs=False, n=1, temperature=None,
        chat_template_kwargs={"enable_thinking": False},
        hexagent={"role": "plan", "after": ["a"], "engine_options": {"emulated.text": "x"}, "slo_scale": 3},
    )  # fmt: skip
    assert (chat.options.role, chat.options.after, chat.options.slo_scale) == ("plan", ["a"], 3)
    assert dict(chat.request.engine_options) == {"emulated.text": "x"}
    assert chat.request.template_options == '{"enable_thinking": false}'


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": []}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
        ({"temprature": 1}, "temprature"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": 1}}]}, "tools[0].function.name"),
        ({"tool_choice": "find"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"hexagent": {"rle": "x"}}, "hexagent.rle"),
        ({"hexagent": {"engine_options": {"a": 1}}}, "hexagent.engine_options.a"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [*HELLO, {"role": "robot"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
        ({"messages": [{"role": "user", "content": "x", "name": "a\nb"}]}, "messages[0].name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsed(**fields)
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"messages":[{"role":"user","content":"\xff"}]}'])
def test_bodies_that_are_no_request(body: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_chat(body, MODELS)
    assert caught.value.reason == "BAD_JSON"


def test_halves_of_characters_are_refused() -> None:
    body = rb'{"model":"small","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"\ud800"}]}'
    with pytest.raises(InvalidArgument) as caught:
        parse_chat(body, MODELS)
    assert caught.value.reason == "BAD_UTF8"


def test_models() -> None:
    with pytest.raises(NotFound) as unknown:
        parsed(model="gpt-17")
    assert unknown.value.reason == "UNKNOWN_MODEL"
    assert unknown.value.message.endswith("known: small, large, large:sql")
    with pytest.raises(InvalidArgument) as missing:
        parsed(model=None)
    assert missing.value.field == "model"
    body = json.dumps({"messages": HELLO}).encode()
    assert parse_chat(body, MODELS._replace(default="large")).request.model == "large"


# -- messages ----------------------------------------------------------------------------------------------------


def test_one_text_a_message() -> None:
    messages = parse_messages(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
            {"role": "assistant", "content": None},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ]
    )
    assert [(message.role, message.text) for message in messages] == [
        ("system", "be brief"),
        ("user", '{"content":"ab","name":"ann"}'),
        ("assistant", ""),
        ("tool", '{"content":"42","tool_call_id":"c1"}'),
    ]
    assert [message.structured for message in messages] == [False, True, False, True]
    assert [bool(message.output_key) for message in messages] == [False, False, True, False]


def test_a_repeated_tool_call_has_the_key_of_the_output_behind_it() -> None:
    def repeated(arguments: str) -> str:
        call = {"id": "x", "type": "function", "function": {"name": "find", "arguments": arguments}}
        return parse_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])[0].output_key

    generated = output_key(assistant_text("", [ToolCall("find", {"a": 1, "b": 2})]))
    assert repeated('{"b": 2, "a": 1}') == generated
    assert repeated('{"b": 3, "a": 1}') != generated
    assert repeated("no json") != generated


# -- headers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "session"),
    [
        ({}, None),
        ({"x-session-id": "a", "x-dynamo-session-id": "b"}, SessionName("dynamo", "b")),
        ({"x-dynamo-trajectory-id": "t", "x-parent-session-id": "p"}, SessionName("dynamo", "t")),
        ({"x-session-id": "a", "x-parent-session-id": "p"}, SessionName("session", "a", "p")),
        ({"x-session-id": "", "x-workflow-id": "w", "x-dynamo-session-final": "true"},
         SessionName("hexagent", "w", "", True)),
        ({"x-claude-code-session-id": "c", "session-id": "d"}, SessionName("claude-code", "c")),
        ({"session_id": "d", "x-session-affinity": "e"}, SessionName("codex", "d")),
    ],
)  # fmt: skip
def test_the_first_schema_that_names_a_session_wins(headers: dict[str, str], session: SessionName | None) -> None:
    assert caller_of(headers).session == session


def test_workflow_ids_follow_from_tenant_and_session() -> None:
    ids = {
        workflow_id_of(tenant, SessionName(schema, name))
        for tenant, schema, name in [("a", "session", "x"), ("b", "session", "x"), ("a", "dynamo", "x")]
    }
    assert len(ids) == 3
    assert workflow_id_of("a", SessionName("session", "x", "parent", True)) in ids


@pytest.mark.parametrize(
    ("tier", "header", "priority"),
    [
        (None, None, None), ("auto", None, None), ("default", None, 0), ("flex", None, -50), ("priority", None, 50),
        ("flex", "7", 7), (None, "-3", -3), (None, "99999999999999999999", 100), (None, "-101", -100),
    ],
)  # fmt: skip
def test_one_scale_of_priority(tier: str | None, header: str | None, priority: int | None) -> None:
    headers = {} if header is None else {"x-dynamo-request-priority": header}
    assert tier_priority(tier, caller_of(headers).priority) == priority


def test_tenants() -> None:
    assert caller_of({}).tenant == "default"
    assert caller_of({"x-smg-tenant-id": "b", "x-tenant-id": "a"}).tenant == "a"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-dynamo-request-priority", "high"),
        ("x-dynamo-session-final", "maybe"),
        ("x-session-id", "a" * 257),
    ],
)
def test_headers_that_are_wrong_are_named(header: str, value: str) -> None:
    with pytest.raises(HexagentError) as caught:
        caller_of({"x-workflow-id": "w", header: value})
    assert caught.value.field == header
