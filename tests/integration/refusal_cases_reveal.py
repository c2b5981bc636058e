"""What RevealNodes refuses about nodes, as data: one row a refusal."""

from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from tests.integration.refusal_cases import (
    BLOCKED_CALL,
    ENDED_CALL,
    EXHAUSTED,
    EXISTS,
    INVALID,
    LIMITS,
    LOOP,
    NOT_FOUND,
    READY_TOOL,
    SERVICE,
    STATE,
    TEXT,
    USED,
    Case,
    call,
    oversize_inline,
    reference,
    reveal,
    sampling,
    text,
    tool,
)

K_OF_N = enums_pb2.JOIN_KIND_K_OF_N
NODE = "nodes[0]"
REQUEST = f"{NODE}.call.request"


def node(cause: str, spec: workflow_pb2.NodeSpec, code: grpc.StatusCode, reason: str, field: str) -> Case:
    """The refusal of a reveal of one node."""
    return Case(f"{SERVICE}.RevealNodes", cause, reveal(spec), code, reason, field)


def nodes(cause: str, specs: list[workflow_pb2.NodeSpec], code: grpc.StatusCode, reason: str, field: str) -> Case:
    return Case(f"{SERVICE}.RevealNodes", cause, reveal(*specs), code, reason, field)


def request(cause: str, reason: str, field: str, **changes: Any) -> Case:
    """The refusal of a call for one field of its request."""
    return node(cause, call(**changes), INVALID, reason, f"{REQUEST}.{field}")


def join(kind: enums_pb2.JoinKind.ValueType, k: int = 0) -> call_pb2.Join:
    return call_pb2.Join(kind=kind, k=k)


def graph_cases() -> list[Case]:
    chain = [tool(f"n{i}", after=[f"n{j}" for j in range(i)]) for i in range(500)]
    many = [tool(f"n{i}") for i in range(LIMITS.nodes_per_reveal + 1)]
    parents = [f"p{i}" for i in range(LIMITS.parents_per_node + 1)]
    after: dict[str, Any] = {"after": [ENDED_CALL, READY_TOOL]}
    any_of = {**after, "join": join(enums_pb2.JOIN_KIND_ANY)}
    two_of = {**after, "join": join(K_OF_N, 1)}
    other = reveal(tool("other"), request_id=USED)
    return [
        Case(f"{SERVICE}.RevealNodes", "equal request id, other nodes", other, EXISTS, "DUPLICATE_REQUEST",
             "request_id"),
        nodes("no nodes", [], INVALID, "NO_NODES", "nodes"),
        nodes("more nodes than a reveal may hold", many, INVALID, "TOO_MANY_NODES", "nodes"),
        nodes("more than one event may hold", chain, INVALID, "PAYLOAD_TOO_LARGE", "nodes"),
        nodes("unknown parent", [tool("a"), tool("b", after=["x"])], INVALID, "UNKNOWN_PARENT", "nodes[1].after[0]"),
        nodes("cycle", [tool("a", after=["b"]), tool("b", after=["a"])], INVALID, "CYCLE", "nodes[0].after[0]"),
        node("waits for itself", tool("a", after=["a"]), INVALID, "CYCLE", f"{NODE}.after"),
        node("known node, other content", tool(BLOCKED_CALL), EXISTS, "DUPLICATE_NODE", f"{NODE}.node_id"),
        nodes("twice with other content", [tool("a"), call("a")], EXISTS, "DUPLICATE_NODE", "nodes[1].node_id"),
        node("bad node id", tool("a b"), INVALID, "BAD_ID", f"{NODE}.node_id"),
        node("bad parent id", tool(after=["*"]), INVALID, "BAD_ID", f"{NODE}.after[0]"),
        node("bad role", tool(role="a b"), INVALID, "BAD_ID", f"{NODE}.role"),
        node("unspecified kind", tool(kind=0), INVALID, "BAD_ENUM", f"{NODE}.kind"),
        node("kind of a newer version", tool(kind=9), INVALID, "BAD_ENUM", f"{NODE}.kind"),
        node("kind against content", tool(kind="NODE_KIND_CALL"), INVALID, "BAD_NODE", f"{NODE}.call"),
        node("too many parents", tool(after=parents), INVALID, "TOO_MANY_PARENTS", f"{NODE}.after"),
        node("unspecified join", tool(join=call_pb2.Join()), INVALID, "BAD_ENUM", f"{NODE}.join.kind"),
        node("k of 0", tool(join=join(K_OF_N), **after), INVALID, "BAD_JOIN", f"{NODE}.join.k"),
        node("k above the parents", tool(join=join(K_OF_N, 3), **after), INVALID, "BAD_JOIN",
             f"{NODE}.join.k"),
        node("k with ALL", tool(join=join(enums_pb2.JOIN_KIND_ALL, 1), **after), INVALID, "BAD_JOIN", f"{NODE}.join.k"),
        node("negative round", tool(template=LOOP, round=-1), INVALID, "BAD_ROUND", f"{NODE}.round"),
        node("round without template", tool(round=1), INVALID, "BAD_ROUND", f"{NODE}.round"),
        node("round left out", tool(template=LOOP, round=5), STATE, "BAD_ROUND", f"{NODE}.round"),
        node("unnamed tool", tool(name=""), INVALID, "BAD_ID", f"{NODE}.tool.name"),
        node("negative timeout", tool(times={"timeout": Duration(seconds=-1)}), INVALID, "BAD_DURATION",
             f"{NODE}.tool.timeout"),
        node("timeout above the limit", tool(times={"timeout": Duration(seconds=86_400)}), INVALID, "BAD_TIMEOUT",
             f"{NODE}.tool.timeout_us"),
        node("negative run time", tool(times={"expected": Duration(nanos=-1)}), INVALID, "BAD_DURATION",
             f"{NODE}.tool.expected"),
        node("output that may not come, ANY", call(segments=[reference(output_of=ENDED_CALL)], node=any_of), INVALID,
             "OUTPUT_NOT_GUARANTEED", f"{NODE}.call.segments[0].output_of"),
        node("output that may not come, K_OF_N", call(segments=[reference(output_of=ENDED_CALL)], node=two_of), INVALID,
             "OUTPUT_NOT_GUARANTEED", f"{NODE}.call.segments[0].output_of"),
        node("output of a tool", call(segments=[reference(output_of=READY_TOOL)]), INVALID, "OUTPUT_OF_TOOL",
             f"{NODE}.call.segments[0].output_of"),
        node("output of an unknown node", call(segments=[reference(output_of="nobody")]), INVALID, "UNKNOWN_PARENT",
             f"{NODE}.after[0]"),
    ]  # fmt: skip


def prompt_cases() -> list[Case]:
    first = f"{REQUEST}.segments[0]"
    outputs = [reference(output_of=ENDED_CALL)] * (LIMITS.segments_per_prompt + 1)
    no_role = text()
    no_role.ClearField("role")
    other_role = text()
    other_role.role = enums_pb2.SEGMENT_ROLE_SYSTEM
    return [
        node("unknown segment", call(segments=[reference(TEXT, digest="0" * 64)]), STATE, "SEGMENTS_MISSING",
             "nodes"),
        node("inline body above 256 KiB", oversize_inline(), EXHAUSTED, "SEGMENT_TOO_LARGE", f"{first}.body"),
        node("bad digest", call(segments=[reference(TEXT, digest="XYZ")]), INVALID, "BAD_DIGEST",
             f"{first}.ref.digest"),
        node("digest of another body", call(segments=[text(digest="0" * 64)]), INVALID, "BAD_DIGEST",
             f"{first}.ref.digest"),
        node("neither body nor reference", call(segments=[reference(TEXT)]), INVALID, "BAD_SEGMENT",
             f"{first}.ref"),
        node("output that is TEXT", call(segments=[reference(TEXT, output_of=ENDED_CALL)]), INVALID, "BAD_SEGMENT",
             f"{first}.kind"),
        node("body of an output", call(segments=[text(output_of=ENDED_CALL)]), INVALID, "BAD_SEGMENT",
             f"{first}.ref.output_of"),
        node("negative tokens", call(segments=[text(tokens=-1)]), INVALID, "NEGATIVE_TOKENS", f"{first}.ref.tokens"),
        node("unspecified role", call(segments=[no_role]), INVALID, "BAD_ENUM", f"{first}.role"),
        node("role against the body's", call(segments=[other_role]), INVALID, "BAD_SEGMENT", f"{first}.body"),
        node("no prompt", call(segments=[]), INVALID, "NO_PROMPT", f"{REQUEST}.segments"),
        node("too many segments", call(segments=outputs), INVALID, "TOO_MANY_SEGMENTS", f"{NODE}.call.segments"),
        node("prompt larger than every instance", call(segments=[text(tokens=5_000_000)]), INVALID, "PROMPT_TOO_LARGE",
             f"{NODE}.call.prompt_tokens"),
        node("output larger than every instance", call(sampling=sampling(max_tokens=1_048_576),
             segments=[text(tokens=1_000_000)]), INVALID, "PROMPT_TOO_LARGE", f"{NODE}.call.prompt_tokens"),
        node("prompt beyond any", call(segments=[text(tokens=2**31 - 1)]), INVALID, "TOO_MANY_TOKENS",
             f"{NODE}.call.prompt_tokens"),
        node("precision that is none", call(hints=workflow_pb2.CallHints(min_precision="fp3")), INVALID,
             "UNKNOWN_PRECISION", f"{NODE}.call.hints.min_precision"),
        node("unknown model", call(model="gpt-17"), NOT_FOUND, "UNKNOWN_MODEL", f"{NODE}.call.model"),
        node("unknown adapter", call(lora="sql"), NOT_FOUND, "UNKNOWN_LORA", f"{NODE}.call.lora"),
    ]  # fmt: skip


def request_cases() -> list[Case]:
    format_ = call_pb2.ResponseFormat
    choice, function = call_pb2.ToolChoice, call_pb2.Tool(name="f")
    schema = call_pb2.Tool(name="g", json_schema="[1]")
    negative = workflow_pb2.CallHints(expected_output_tokens=-1)
    return [
        request("no sampling", "NO_SAMPLING", "sampling", sampling=None),
        request("negative max_tokens", "BAD_MAX_TOKENS", "sampling.max_tokens", sampling=sampling(max_tokens=-5)),
        request("max_tokens of 0", "BAD_MAX_TOKENS", "sampling.max_tokens", sampling=sampling(max_tokens=0)),
        node("max_tokens above the limit", call(sampling=sampling(max_tokens=2**31 - 1)), INVALID, "TOO_MANY_TOKENS",
             f"{NODE}.call.max_tokens"),
        request("negative temperature", "BAD_SAMPLING", "sampling.temperature", sampling=sampling(temperature=-0.1)),
        request("infinite temperature", "BAD_SAMPLING", "sampling.temperature", sampling=sampling(temperature=1e999)),
        request("top_p of 0", "BAD_SAMPLING", "sampling.top_p", sampling=sampling(top_p=0.0)),
        request("no outputs", "BAD_SAMPLING", "sampling.n", sampling=sampling(n=0)),
        request("bias out of range", "BAD_SAMPLING", "sampling.logit_bias[3]",
                sampling=sampling(logit_bias={3: 101.0})),
        request("empty stop", "BAD_STOP", "sampling.stop", sampling=sampling(stop=[""])),
        request("long model name", "BAD_NAME", "model", model="m" * 257),
        request("bad salt", "BAD_NAME", "cache_salt", cache_salt="\n"),
        request("the same tool twice", "DUPLICATE_TOOL", "tools[1].name", tools=[function, function]),
        request("schema that is no object", "BAD_JSON", "tools[0].json_schema", tools=[schema]),
        request("unspecified tool choice", "BAD_ENUM", "tool_choice.mode", tool_choice=choice()),
        request("choice of no tool", "BAD_TOOL_CHOICE", "tool_choice.name",
                tool_choice=choice(mode=choice.MODE_NAMED, name="h"), tools=[function]),
        request("unspecified format", "BAD_ENUM", "response_format.kind", response_format=format_()),
        request("schema that is no JSON", "BAD_JSON", "response_format.definition",
                response_format=format_(kind=format_.KIND_JSON_SCHEMA, definition="{")),
        request("negative time to keep", "BAD_DURATION", "kv_retention.ttl",
                kv_retention=call_pb2.KvRetention(ttl=Duration(seconds=-1))),
        request("option of no engine", "BAD_OPTION", "engine_options", engine_options={"speed": "1"}),
        node("negative hint", call(hints=negative), INVALID, "NEGATIVE_TOKENS",
             f"{NODE}.call.hints.expected_output_tokens"),
        node("bad precision", call(hints=workflow_pb2.CallHints(min_precision="b f")), INVALID, "BAD_ID",
             f"{NODE}.call.hints.min_precision"),
    ]  # fmt: skip
