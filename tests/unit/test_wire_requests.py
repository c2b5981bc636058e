"""Sampling, tools and formats of a call, refused by the path of the field."""

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import InvalidArgument
from hexagent.wire.requests import check_request

Request = call_pb2.CallRequest
Format = call_pb2.ResponseFormat
Choice = call_pb2.ToolChoice


def request() -> Request:
    """Everything set, and everything right."""
    return Request(
        model="m",
        lora="l",
        sampling=call_pb2.SamplingParams(
            max_tokens=1,
            temperature=0.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            seed=0,
            stop=["\n"],
            presence_penalty=-2,
            frequency_penalty=2,
            repetition_penalty=1.1,
            logit_bias={5: -100.0},
            n=1,
            logprobs=True,
            top_logprobs=20,
        ),
        tools=[call_pb2.Tool(name="search", json_schema='{"type": "object"}'), call_pb2.Tool(name="read")],
        tool_choice=Choice(mode=Choice.MODE_NAMED, name="read"),
        response_format=Format(kind=Format.KIND_JSON_SCHEMA, definition="{}"),
        kv_retention=call_pb2.KvRetention(priority=100, ttl=Duration(seconds=300)),
        engine_options={"emulated.text": "hello"},
    )


def test_everything_right() -> None:
    check_request(request(), "request")
    check_request(Request(model="m", sampling=call_pb2.SamplingParams(max_tokens=1)), "request")


CASES: list[tuple[str, str, Callable[[Request], object]]] = [
    ("BAD_NAME", "model", lambda r: r.ClearField("model")),
    ("BAD_NAME", "model", lambda r: setattr(r, "model", "a\nb")),
    ("BAD_NAME", "lora", lambda r: setattr(r, "lora", "x" * 257)),
    ("NO_SAMPLING", "sampling", lambda r: r.ClearField("sampling")),
    ("BAD_MAX_TOKENS", "sampling.max_tokens", lambda r: setattr(r.sampling, "max_tokens", -5)),
    ("BAD_SAMPLING", "sampling.temperature", lambda r: setattr(r.sampling, "temperature", -0.1)),
    ("BAD_SAMPLING", "sampling.temperature", lambda r: setattr(r.sampling, "temperature", float("inf"))),
    ("BAD_SAMPLING", "sampling.top_p", lambda r: setattr(r.sampling, "top_p", 0.0)),
    ("BAD_SAMPLING", "sampling.top_p", lambda r: setattr(r.sampling, "top_p", float("nan"))),
    ("BAD_SAMPLING", "sampling.top_k", lambda r: setattr(r.sampling, "top_k", -1)),
    ("BAD_SAMPLING", "sampling.min_p", lambda r: setattr(r.sampling, "min_p", 1.5)),
    ("BAD_SAMPLING", "sampling.presence_penalty", lambda r: setattr(r.sampling, "presence_penalty", 3)),
    ("BAD_SAMPLING", "sampling.frequency_penalty", lambda r: setattr(r.sampling, "frequency_penalty", -3)),
    ("BAD_SAMPLING", "sampling.repetition_penalty", lambda r: setattr(r.sampling, "repetition_penalty", 0)),
    ("BAD_SAMPLING", "sampling.n", lambda r: setattr(r.sampling, "n", 0)),
    ("BAD_SAMPLING", "sampling.logit_bias[7]", lambda r: r.sampling.logit_bias.update({7: 101.0})),
    ("BAD_SAMPLING", "sampling.top_logprobs", lambda r: setattr(r.sampling, "top_logprobs", 21)),
    ("BAD_SAMPLING", "sampling.top_logprobs", lambda r: setattr(r.sampling, "logprobs", False)),
    ("BAD_STOP", "sampling.stop", lambda r: r.sampling.stop.append("")),
    ("BAD_STOP", "sampling.stop", lambda r: r.sampling.stop.extend("abcdefghijklmnopq")),
    ("BAD_NAME", "tools[2].name", lambda r: r.tools.add()),
    ("DUPLICATE_TOOL", "tools[2].name", lambda r: r.tools.add(name="read")),
    ("BAD_JSON", "tools[2].json_schema", lambda r: r.tools.add(name="x", json_schema="{")),
    ("BAD_JSON", "tools[2].json_schema", lambda r: r.tools.add(name="x", json_schema="[1]")),
    ("TOO_MANY_TOOLS", "tools", lambda r: r.tools.extend(call_pb2.Tool(name=f"t{i}") for i in range(127))),
    ("BAD_ENUM", "tool_choice.mode", lambda r: r.tool_choice.Clear()),
    ("BAD_TOOL_CHOICE", "tool_choice.name", lambda r: setattr(r.tool_choice, "name", "write")),
    ("BAD_TOOL_CHOICE", "tool_choice.name", lambda r: setattr(r.tool_choice, "mode", Choice.MODE_AUTO)),
    ("BAD_ENUM", "response_format.kind", lambda r: r.response_format.Clear()),
    ("BAD_FORMAT", "response_format.definition", lambda r: r.response_format.ClearField("definition")),
    ("BAD_FORMAT", "response_format.definition", lambda r: setattr(r.response_format, "kind", Format.KIND_TEXT)),
    ("BAD_JSON", "response_format.definition", lambda r: setattr(r.response_format, "definition", "no")),
    ("BAD_RETENTION", "kv_retention.priority", lambda r: setattr(r.kv_retention, "priority", 101)),
    ("BAD_DURATION", "kv_retention.ttl", lambda r: r.kv_retention.ttl.FromSeconds(-1)),
    ("BAD_OPTION", "engine_options", lambda r: r.engine_options.update({"text": "x"})),
]


@pytest.mark.parametrize(("reason", "field", "change"), CASES)
def test_refusals(reason: str, field: str, change: Callable[[Request], object]) -> None:
    spoilt = request()
    change(spoilt)
    with pytest.raises(InvalidArgument) as caught:
        check_request(spoilt, "request")
    assert (caught.value.reason, caught.value.field) == (reason, f"request.{field}")


def test_required_tools_need_tools() -> None:
    spoilt = Request(
        model="m", sampling=call_pb2.SamplingParams(max_tokens=1), tool_choice=Choice(mode=Choice.MODE_REQUIRED)
    )
    with pytest.raises(InvalidArgument) as caught:
        check_request(spoilt, "request")
    assert caught.value.field == "request.tool_choice.mode"
