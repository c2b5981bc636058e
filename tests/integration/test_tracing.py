"""Workflows traced on a real stack: by OTLP to a receiver in this process, and to a file."""

import asyncio
import json
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import hexagent.client
from hexagent.cli.children import wait_healthy
from hexagent.cli.stack import NATS, TRACKER, LocalStack, StackOptions
from hexagent.core.tracing import (
    TRACEPARENT,
    TRACESTATE,
    TraceContext,
    carrier_of,
    context_from,
    span_id_of,
    trace_id_of,
)
from hexagent.core.workflow.events import WorkflowStarted
from hexagent.runtime import subjects
from hexagent.runtime.bus import Message
from hexagent.wire.workflow import event_from_bytes, outcome_from_bytes
from tests.integration.conftest import connect

pytestmark = pytest.mark.integration

PHASES = {"queue", "prefill", "wait", "kv_transfer", "decode"}
CLIENT = TraceContext(0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7, True, "vendor=1")


class Receiver(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps every span and the names of all metrics."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: set[str] = set()

    async def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for resource in request.resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        for resource in request.resource_metrics:
            self.metrics |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def of_trace(self, trace_id: int) -> dict[int, Any]:
        spans = [span for span in self.spans if int.from_bytes(span.trace_id, "big") == trace_id]
        by_id = {number(span.span_id): span for span in spans}
        assert len(by_id) == len(spans), "a span came twice"
        return by_id


def two_free_ports() -> int:
    """The first of two neighbours."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text: str = response.read().decode()
        return text


def values(text: str, name: str, label: str = "") -> list[float]:
    """Of the series of one metric that have a label."""
    lines = [line for line in text.splitlines() if re.match(name + "[ {]", line) and label in line]
    return [float(line.rpartition(" ")[2]) for line in lines]


def number(span_id: bytes) -> int:
    return int.from_bytes(span_id, "big")


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def traced_workflow(client: hexagent.client.Client) -> None:
    """plan, a tool, two workers, all under a span of the caller's."""
    sampled, state = trace.TraceFlags(trace.TraceFlags.SAMPLED), trace.TraceState.from_header([CLIENT.state])
    span = trace.SpanContext(CLIENT.trace_id, CLIENT.span_id, True, sampled, state)
    with trace.use_span(trace.NonRecordingSpan(span)):
        async with client.workflow("research", workflow_id="traced", slo_scale=5) as wf:
            plan = await wf.call("Plan the work.", role="plan", max_tokens=8)
            async with wf.tool("search", after=[plan], node_id="search") as tool:
                pass
            await asyncio.gather(
                *(wf.call([plan, f"Part {i}."], role="worker", after=[tool], max_tokens=8) for i in (1, 2))
            )


async def interrupted_workflow(client: hexagent.client.Client, stack: LocalStack, receiver: Receiver) -> None:
    """Two calls, between which the tracker is killed, the spans of the first having arrived."""
    async with client.workflow("research", workflow_id="interrupted") as wf:
        first = await wf.call("One.", node_id="one", max_tokens=4)
        call = span_id_of("interrupted", "one")
        async with asyncio.timeout(20):
            while not any(number(span.span_id) == call for span in receiver.spans):  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.05)
        os.kill(stack.pids[TRACKER], signal.SIGKILL)
        await asyncio.sleep(0.2)
        await wait_healthy(stack.address)
        await wf.call([first, "Two."], node_id="two", max_tokens=4)


def context_in(message: Message) -> dict[str, str]:
    headers = message.headers or {}
    return {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}


async def contexts(nats_url: str) -> tuple[dict[str, list[dict[str, str]]], dict[str, dict[str, str]]]:
    """Trace contexts in the streams: of the events by workflow, of the outcomes by call."""
    events: dict[str, list[dict[str, str]]] = {}
    outcomes: dict[str, dict[str, str]] = {}
    async with await connect(nats_url) as bus:
        async with await bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS) as feed:
            async for batch in feed.backlog():
                for message in batch:
                    envelope = event_from_bytes(message.data)
                    context = context_in(message)
                    first = isinstance(envelope.event, WorkflowStarted)
                    workflow = events.setdefault(subjects.workflow_of(message.subject), [])
                    assert first == (not workflow)
                    workflow.append(context)
        async with await bus.follow(subjects.OUTCOMES, subjects.ALL_OUTCOMES) as feed:
            async for batch in feed.backlog():
                for message in batch:
                    outcome = outcome_from_bytes(message.data)
                    outcomes[str(outcome.outcome.call)] = context_in(message)
    return events, outcomes


async def test_a_whole_trace_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("HEXAGENT_OTLP_ENDPOINT", f"127.0.0.1:{port}")
    metrics_port = two_free_ports()
    monkeypatch.setenv("HEXAGENT_METRICS_PORT", str(metrics_port))
    file = tmp_path / "spans.jsonl"
    async with LocalStack(StackOptions("demo", time_scale=5, trace_file=file), print) as stack:
        async with hexagent.client.connect(stack.address) as client:
            await traced_workflow(client)
            await interrupted_workflow(client, stack, receiver)
        events, outcomes = await contexts(stack.addresses[NATS])
        await asyncio.sleep(1.5)  # the scheduler's gauges are set every second
        scraped = [await asyncio.to_thread(scrape, metrics_port + i) for i in range(2)]
        origin = str(stack.record.origin_wall_ns)
    await server.stop(0)

    check_traced(receiver.of_trace(CLIENT.trace_id))
    own_id = trace_id_of(origin, "interrupted")
    check_interrupted(receiver.of_trace(own_id))
    check_contexts(events, outcomes, own_id)
    check_file(file, receiver.spans)
    check_metrics(scraped, receiver.metrics)


def check_traced(spans: dict[int, Any]) -> None:
    root = spans[span_id_of("traced")]
    assert number(root.parent_span_id) == CLIENT.span_id
    assert root.name == "invoke_workflow research"
    told = attributes(root)
    assert told["gen_ai.operation.name"] == "invoke_workflow"
    assert told["gen_ai.workflow.name"] == "research"
    assert (told["hexagent.tenant"], told["hexagent.status"]) == ("default", "completed")
    assert told["hexagent.horizon_s"] > 0
    for node_id in ("plan-1", "worker-1", "worker-2"):
        check_call(spans, "traced", node_id)
    tool = spans[span_id_of("traced", "search")]
    assert tool.name == "execute_tool search"
    assert number(tool.parent_span_id) == span_id_of("traced")
    assert [number(link.span_id) for link in tool.links] == [span_id_of("traced", "plan-1")]
    others = {span_id_of("traced", node_id) for node_id in ("plan-1", "worker-1", "worker-2", "search")}
    rest = [span for span_id, span in spans.items() if span_id not in others and span is not root]
    assert {number(span.parent_span_id) for span in rest} <= others
    assert {span.name for span in rest} == PHASES
    assert all(root.start_time_unix_nano <= span.start_time_unix_nano for span in spans.values())
    assert all(span.end_time_unix_nano <= root.end_time_unix_nano for span in spans.values())


def check_call(spans: dict[int, Any], workflow_id: str, node_id: str) -> None:
    call = spans[span_id_of(workflow_id, node_id)]
    told = attributes(call)
    assert call.name == f"chat {told['gen_ai.request.model']}"
    assert number(call.parent_span_id) == span_id_of(workflow_id)
    assert told["gen_ai.conversation.id"] == workflow_id
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.usage.output_tokens"] > 0
    phases = [span for span in spans.values() if number(span.parent_span_id) == span_id_of(workflow_id, node_id)]
    phases.sort(key=lambda span: span.start_time_unix_nano)
    assert PHASES >= {span.name for span in phases} >= {"queue", "prefill", "decode"}
    for span in phases:
        assert number(span.span_id) == span_id_of(workflow_id, node_id, span.name)
        assert call.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano
        assert span.end_time_unix_nano <= call.end_time_unix_nano
    ends = [span.end_time_unix_nano for span in phases]
    assert [span.start_time_unix_nano for span in phases][1:] == ends[:-1]
    decode = next(span for span in phases if span.name == "decode")
    assert {"hexagent.instance", "hexagent.gpu"} <= attributes(decode).keys()
    moved = [attributes(span)["hexagent.kv_bytes"] for span in phases if span.name == "kv_transfer"]
    assert all(moved)


def check_interrupted(spans: dict[int, Any]) -> None:
    """The call before the tracker's death, the one after it and the root are one trace."""
    root = spans[span_id_of("interrupted")]
    assert root.parent_span_id == b""
    for node_id in ("one", "two"):
        check_call(spans, "interrupted", node_id)


def check_contexts(events: dict[str, list[dict[str, str]]], outcomes: dict[str, dict[str, str]], own_id: int) -> None:
    assert events["traced"][0] == carrier_of(CLIENT)
    assert events["interrupted"][0] == {}
    traces = {"traced": CLIENT, "interrupted": TraceContext(own_id, 0, True)}
    for workflow_id, own in traces.items():
        root = own._replace(span_id=span_id_of(workflow_id))
        assert all(context_from(context) == root for context in events[workflow_id][1:])
    assert len(outcomes) == 5
    for call, context in outcomes.items():
        workflow_id, node_id = call.split("/")
        assert context_from(context) == traces[workflow_id]._replace(span_id=span_id_of(workflow_id, node_id))


def check_file(path: Path, exported: Iterable[Any]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    in_file = {(line["trace_id"], line["span_id"], line["parent_span_id"], line["name"]) for line in lines}
    assert len(in_file) == len(lines)
    assert in_file == {
        (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name) for span in exported
    }
    assert all(line["end_unix_ns"] >= line["start_unix_ns"] > 0 for line in lines)


def check_metrics(scraped: list[str], exported: set[str]) -> None:
    tracker, scheduler = scraped
    assert not re.search("traced|interrupted", tracker + scheduler), "a workflow's id is a label"
    # The tracker was killed once, and its counts began anew.
    assert sum(values(tracker, "gen_ai_server_request_duration_seconds_count", 'error_type=""')) == 1
    assert values(tracker, "gen_ai_workflow_duration_seconds_count", 'gen_ai_workflow_name="research"') == [1]
    assert values(tracker, "hexagent_workflows_live") == [0]
    assert values(scheduler, "hexagent_scheduler_queue_size") == [0]
    assert set(values(scheduler, "hexagent_instance_up", 'hexagent_role="prefill"')) == {1}
    assert {
        "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage", "gen_ai.workflow.duration",
        "hexagent.call.phase.duration", "hexagent.instance.kv.usage", "hexagent.instance.calls",
        "hexagent.scheduler.queue.size", "hexagent.instance.tokens", "hexagent.instance.telemetry.age",
    } <= exported  # fmt: skip
