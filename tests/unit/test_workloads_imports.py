"""Traces of others: Mooncake, agentic Mooncake and OpenTelemetry spans as workloads, and what is said of bad ones."""

import json
import pathlib
from typing import Any

import pytest

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.sim.workloads.model import WorkItem, Workload
from hexagent.sim.workloads.trace import TraceOptions, read_trace

Record = dict[str, Any]


def read(folder: pathlib.Path, *lines: Record | str, options: TraceOptions = TraceOptions()) -> Workload:
    path = folder / "small.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_trace(path, options)


def shape(items: tuple[WorkItem, ...]) -> list[tuple[tuple[int, ...], int, int]]:
    return [(item.deps, item.prompt_tokens, item.output_tokens) for item in items]


# --- Mooncake -------------------------------------------------------------------------------------------------
def request(at_ms: float | str | None, prompt: int, blocks: list[Any], **more: Any) -> Record:
    timed = {} if at_ms is None else {"timestamp": at_ms}
    return {**timed, "input_length": prompt, "output_length": 50, "hash_ids": blocks, **more}


def test_mooncake_requests_are_chained_by_shared_blocks(tmp_path: pathlib.Path) -> None:
    workload = read(
        tmp_path,
        request(1_000, 1_100, [7, 8, 9]),
        request(3_500, 700, [7, 20]),  # shares a block, and is a chain of its own
        request(9_000, 1_700, [7, 8, 30, 31]),
        request(20_000, 1_800, [7, 8, 30, 40]),
    )
    chain, other = workload.workflows
    assert (chain.arrival_us, other.arrival_us) == (0, 2_500_000)
    assert shape(chain.items) == [((), 1_100, 50), ((0,), 1_700, 50), ((1,), 1_800, 50)]
    assert [item.gap_us for item in chain.items] == [0, 8_000_000, 11_000_000]
    assert chain.conversation
    assert not other.conversation
    first, second, third = (item.segments for item in chain.items)
    assert [segment.tokens for segment in first] == [512, 512, 76]
    assert first[:2] == second[:2] == third[:2]
    assert second[2] == third[2]
    assert second[3] != third[3]
    assert other.items[0].segments[0] == first[0]


def test_mooncake_sessions_follow_their_lines(tmp_path: pathlib.Path) -> None:
    workload = read(
        tmp_path,
        request(0, 600, [1, 2], session_id="a/1"),
        request(10, 600, [1, 3], session_id="b"),
        request(None, 1_200, [1, 2, 4], session_id="a/1", delay=250),
        {"created_time": 90, "input_tokens": 1_100, "output_tokens": 9, "hash_ids": [1, 3, 5], "session_id": "b"},
    )
    a, b = workload.workflows
    assert (a.workflow_id, b.workflow_id) == ("a-1", "b")
    assert [(item.tool_us, item.gap_us) for item in a.items] == [(0, 0), (250_000, 0)]
    assert [(item.tool_us, item.gap_us) for item in b.items] == [(0, 0), (0, 80_000)]
    assert (a.conversation, b.conversation) == (False, True)


def test_the_block_size_is_what_the_lengths_allow(tmp_path: pathlib.Path) -> None:
    items = read(tmp_path, request(0, 100, [1, 2]), request(0, 64, [1])).workflows[0].items
    assert [segment.tokens for segment in items[0].segments] == [64, 36]
    whole_only = read(tmp_path, request(0, 1_100, [1, 2])).workflows[0].items
    assert [segment.tokens for segment in whole_only[0].segments] == [512, 512, 76]


# --- agentic Mooncake -----------------------------------------------------------------------------------------
def agentic(key: str, wait_for: Any, **more: Any) -> Record:
    row = {"request_id": key, "session_id": "s", "input_length": 900, "output_length": 40, "hash_ids": [1, 2]}
    return {**row, "wait_for": wait_for, **more}


def test_agentic_rows_wait_for_the_requests_they_name(tmp_path: pathlib.Path) -> None:
    workload = read(
        tmp_path,
        agentic("root", [], timestamp=5_000, branches=["left", "right"]),
        agentic("left", ["root"], session_id="s/left", prefix_reset=True, delay=10),
        agentic("right", ["root"], session_id="s/right", delay=5, tool_wait_ms=100, tool_events=[{"tool_class": "x"}]),
        agentic("join", ["right", "left"], tool_wait_ms=7),
        agentic("late", [], timestamp=6_500),
        agentic("alone", [], session_id="t", timestamp=5_001),
    )
    whole, alone = workload.workflows
    assert [item.deps for item in whole.items] == [(), (0,), (0,), (1, 2), ()]
    assert [item.tool_us for item in whole.items] == [0, 10_000, 105_000, 7_000, 1_500_000]
    assert (whole.workflow_id, whole.conversation) == ("s", False)
    assert (alone.workflow_id, alone.arrival_us) == ("t", 1_000)


# --- OpenTelemetry --------------------------------------------------------------------------------------------
def otlp_span(span: str, parent: str, start_ms: int, end_ms: int, **attributes: Any) -> Record:
    values = [
        {"key": key.replace("__", "."), "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}}
        for key, v in attributes.items()
    ]
    times = {"startTimeUnixNano": str(10**15 + start_ms * 10**6), "endTimeUnixNano": str(10**15 + end_ms * 10**6)}
    return {"traceId": "t1", "spanId": span, "parentSpanId": parent, "name": span, **times, "attributes": values}


def chat(span: str, parent: str, start_ms: int, end_ms: int, prompt: int = 300, **attributes: Any) -> Record:
    usage = {"gen_ai__usage__input_tokens": prompt, "gen_ai__usage__output_tokens": 20}
    return otlp_span(span, parent, start_ms, end_ms, gen_ai__operation__name="chat", **usage, **attributes)


def tool(span: str, parent: str, start_ms: int, end_ms: int) -> Record:
    return otlp_span(span, parent, start_ms, end_ms, gen_ai__operation__name="execute_tool")


def exported(*spans: Any) -> Record:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}]}]}


def test_nesting_and_time_say_what_spans_waited_for(tmp_path: pathlib.Path) -> None:
    """Two agents side by side, each a chain; the planner before them, a summary after both."""
    agent = {"gen_ai__operation__name": "invoke_agent"}
    workload = read(
        tmp_path,
        {"resourceMetrics": []},
        exported(
            chat("l2", "left", 400, 500, 400, gen_ai__usage__cache_read__input_tokens=310),
            chat("plan", "root", 0, 100),
            otlp_span("left", "root", 110, 500, gen_ai__agent__name="Left one", **agent),
            chat("l1", "left", 110, 200),
            tool("look", "left", 200, 390),
            otlp_span("http", "l1", 120, 190),
        ),
        exported(
            otlp_span("right", "root", 110, 420, **agent),
            chat("r1", "right", 120, 220),
            chat("r2", "right", 230, 420),
            otlp_span("root", "gone", 0, 700, **agent),
            chat("sum", "root", 520, 700),
            otlp_span("failed", "root", 510, 515, gen_ai__operation__name="chat", error__type="timeout"),
        ),
        options=TraceOptions(format="otel"),
    )
    (workflow,) = workload.workflows
    plan, left_1, right_1, right_2, left_2, summary = range(6)
    assert [item.deps for item in workflow.items] == [(), (plan,), (plan,), (right_1,), (left_1,), (right_2, left_2)]
    assert [item.tool_us // 1_000 for item in workflow.items] == [0, 10, 20, 10, 200, 20]
    assert [item.role for item in workflow.items] == ["chat", "Left-one", "chat", "chat", "Left-one", "chat"]
    assert workflow.items[left_2].segments[0] == workflow.items[left_1].segments[0]
    assert sum(segment.tokens for segment in workflow.items[left_2].segments[:1]) == 300
    assert (workflow.workflow_id, summary) == ("t1", 5)


def test_a_conversation_goes_over_several_traces(tmp_path: pathlib.Path) -> None:
    first, second = (chat(s, "", at, at + 90, gen_ai__conversation__id="talk") for s, at in (("a", 0), ("b", 500)))
    workload = read(tmp_path, exported(first, {**second, "traceId": "t2"}), exported({**first, "traceId": "t3"}))
    assert [(w.workflow_id, len(w.items)) for w in workload.workflows] == [("talk", 3)]


# --- what is wrong --------------------------------------------------------------------------------------------
OTEL = "resourceSpans[0].scopeSpans[0].spans[0]."


def flat_span(**changes: Any) -> Record:
    span: Record = {"trace_id": "t", "span_id": "s", "parent_span_id": "", "start_unix_ns": 5, "end_unix_ns": 9}
    usage = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2}
    named = {"gen_ai.operation.name": "chat", "hexagent.node": "c0"}
    return {**span, "attributes": {**usage, **named}, **changes}


@pytest.mark.parametrize(
    ("lines", "line", "field"),
    [
        (["{"], 1, "line"),
        (["[]"], 1, "line"),
        ([{"some": "thing"}], 1, "line"),
        ([request(0, 600, [1, 2]), "{"], 2, "line"),
        ([request(0, -5, [1])], 1, "input_length"),
        ([request(0, 600, [1, 2]), request(0, 600, [1, 2], output_length=0)], 2, "output_length"),
        ([{"timestamp": 0, "input_length": 5, "hash_ids": []}], 1, "output_length"),
        ([request(0, 600, ["a", 2])], 1, "hash_ids"),
        ([request(0, 600, [-1, 2])], 1, "hash_ids"),
        ([{**request(0, 600, []), "hash_ids": 7}], 1, "hash_ids"),
        ([request(0, 600, [1, 2]), request(0, 600, [1, 2, 3, 4, 5])], 2, "hash_ids"),
        ([request("soon", 600, [1, 2])], 1, "timestamp"),
        ([request(10**400, 600, [1, 2])], 1, "timestamp"),
        ([request(1, 600, [1, 2]), '{"timestamp": 1e999, "input_length": 1, "output_length": 1}'], 2, "timestamp"),
        ([request(0, 600, [1, 2], delay=-1)], 1, "delay"),
        ([request(0, 600, [1, 2], session_id=3)], 1, "session_id"),
        ([request(9, 600, [1, 2], session_id="a"), request(8, 600, [1, 2], session_id="a")], 2, "timestamp"),
        ([agentic("a", []), agentic("b", ["c"])], 2, "wait_for"),
        ([agentic("a", []), agentic("a", [])], 2, "id"),
        ([agentic("a", ["b"]), agentic("b", ["c"]), agentic("c", ["b"])], 2, "wait_for"),
        ([agentic("a", []), agentic("b", ["a", "a"])], 2, "wait_for"),
        ([agentic("a", []), agentic("b", "a")], 2, "wait_for"),
        ([agentic("a", [], timestamp=1), agentic("b", [])], 1, "timestamp"),
        ([agentic("", [])], 1, "request_id"),
        ([agentic("a", [], tool_wait_ms="x")], 1, "tool_wait_ms"),
        ([exported(chat("a", "", 0, 9, -3))], 1, OTEL + "gen_ai.usage.input_tokens"),
        ([exported(otlp_span("a", "", 0, 9, gen_ai__operation__name="chat"))], 1, OTEL + "gen_ai.usage.input_tokens"),
        ([exported(chat("a", "", 9, 0))], 1, OTEL + "endTimeUnixNano"),
        ([exported({**chat("a", "", 0, 9), "startTimeUnixNano": "x"})], 1, OTEL + "startTimeUnixNano"),
        ([exported({**chat("a", "", 0, 9), "spanId": ""})], 1, OTEL + "spanId"),
        ([exported(3)], 1, OTEL[:-1]),
        ([{"resourceSpans": 3}], 1, "resourceSpans"),
        ([exported(chat("a", "b", 0, 9), chat("b", "a", 0, 9))], 1, OTEL + "parent"),
        ([exported(chat(f"s{n}", f"s{n - 1}", n, 9_999)) for n in range(2_000)], 201, OTEL + "parent"),
        ([flat_span(attributes={"hexagent.completion_s": 1e308})], 1, "hexagent.completion_s"),
        ([flat_span(attributes={"hexagent.completion_s": -1})], 1, "hexagent.completion_s"),
        ([exported(chat("a", "", 0, 9)), exported(chat("a", "", 0, 9))], 2, OTEL + "span_id"),
        ([flat_span(), flat_span(span_id="r", links=["gone"])], 2, "links"),
        ([flat_span(links=["r"]), flat_span(span_id="r", links=["s"])], 2, "links"),
        ([flat_span(attributes=[])], 1, "attributes"),
        ([flat_span(), {"other": 1}], 2, "line"),
        ([flat_span(attributes={})], 0, "line"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path: pathlib.Path, lines: list[Record | str], line: int, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, *lines)
    error = caught.value
    assert error.reason == "BAD_TRACE"
    assert error.details == {"file": "small.jsonl", "line": str(line), "field": field}
    assert error.message.startswith(f"small.jsonl:{line}: {field}: ")


def test_a_format_is_taken_at_its_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound, match="recorded, agentic, mooncake, otel"):
        read(tmp_path, request(0, 600, [1, 2]), options=TraceOptions(format="csv"))
    with pytest.raises(InvalidArgument, match="request_id: is missing"):
        read(tmp_path, request(0, 600, [1, 2]), options=TraceOptions(format="agentic"))
