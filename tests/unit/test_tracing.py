"""Trace contexts, ids that follow from names, sampling, and the trace file."""

import json
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hexagent.client.tracing import trace_metadata
from hexagent.core.tracing import (
    STATE_CHARS_MAX,
    TRACEPARENT,
    TRACESTATE,
    TraceContext,
    carrier_of,
    context_from,
    is_sampled,
    span_id_of,
    trace_id_of,
)
from hexagent.runtime.spans import Span, SpanFile

CONTEXT = TraceContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, "vendor=1")
SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_context_travels_as_others_write_it() -> None:
    assert carrier_of(CONTEXT) == {TRACEPARENT: SENT, TRACESTATE: "vendor=1"}
    assert context_from(carrier_of(CONTEXT)) == CONTEXT
    unsampled = CONTEXT._replace(sampled=False, state="")
    assert context_from(carrier_of(unsampled)) == unsampled
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier_of(CONTEXT))).get_span_context()
    assert (theirs.trace_id, theirs.span_id, theirs.trace_flags.sampled) == CONTEXT[:3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        SENT + "-more",
        "ff" + SENT[2:],
        SENT.upper(),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        SENT + "\n",
    ],
)
def test_a_malformed_context_counts_as_none(text: str) -> None:
    assert context_from({TRACEPARENT: text}) is None


@pytest.mark.parametrize("state", ["x" * (STATE_CHARS_MAX + 1), "vendor=é", "vendor=1\nmore"])
def test_a_state_that_cannot_be_sent_on_is_dropped(state: str) -> None:
    assert context_from({TRACEPARENT: SENT, TRACESTATE: state}) == CONTEXT._replace(state="")


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    context = context_from({TRACEPARENT: "01" + SENT[2:] + "-more"})
    assert context == CONTEXT._replace(state="")


def test_ids_follow_from_names() -> None:
    assert span_id_of("w", "plan") == 3154121024357015234
    assert trace_id_of("1", "w") >> 64 == span_id_of("1", "w")
    ids = {span_id_of("w"), span_id_of("w", "plan"), span_id_of("w", "plan", "queue"), span_id_of("x", "plan")}
    assert len(ids) == 4
    assert all(0 < span_id < 2**64 for span_id in ids)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_sampling_is_that_of_opentelemetry(ratio: float) -> None:
    sampler = TraceIdRatioBased(ratio)
    for name in range(200):
        trace_id = trace_id_of("stack", str(name))
        theirs = sampler.should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE
        assert is_sampled(trace_id, ratio) == theirs


def test_the_client_sends_the_current_span() -> None:
    assert trace_metadata() == ()
    span = trace.SpanContext(CONTEXT.trace_id, CONTEXT.span_id, False, trace.TraceFlags(trace.TraceFlags.SAMPLED))
    with trace.use_span(trace.NonRecordingSpan(span)):
        assert dict(trace_metadata())[TRACEPARENT] == SENT
    assert trace_metadata() == ()


def span(name: str) -> Span:
    return Span(CONTEXT, 7, False, name, "internal", 10, 20, {"a": 1, "b": ("x",)}, (9,), "WHY")


def test_the_trace_file_is_json_lines_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "spans.jsonl"
    for name in ("queue", "decode"):
        file = SpanFile(path, 100_000, "dag-tracker")
        file.put([span(name)])
        assert path.read_text().endswith("\n")  # before it is closed
        file.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["name"], second["name"]) == ("queue", "decode")
    assert first == {
        "trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331",
        "parent_span_id": "0000000000000007", "name": "queue", "kind": "internal", "service": "dag-tracker",
        "start_unix_ns": 10, "end_unix_ns": 20, "attributes": {"a": 1, "b": ["x"]}, "links": ["0000000000000009"],
        "error": "WHY",
    }  # fmt: skip


def test_the_trace_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    file = SpanFile(path, 1_000, "dag-tracker")
    for _ in range(10):
        file.put([span("decode"), span("queue")])
    assert 500 < path.stat().st_size <= 1_000
    assert all(json.loads(line) for line in path.read_text().splitlines())
    file.close()
