"""Instruments: one recording for OpenTelemetry and Prometheus, labels that cannot grow without bound."""

from collections.abc import Iterator

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest

from hexagent.core.errors import Unavailable
from hexagent.core.ids import CallId
from hexagent.core.workflow.events import CallFinished, NodesRevealed, WorkflowFinished, WorkflowStarted
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    CallTimes,
    NodeKind,
    NodeSpec,
    NodeStatus,
    WorkflowSpec,
    WorkflowStatus,
)
from hexagent.runtime.metrics import OTHER, LabelBounds, Labels, Metrics, MetricsServer, prometheus_name
from hexagent_services.dag_tracker.metrics import WorkflowMetrics

Point = HistogramDataPoint | NumberDataPoint


def points(reader: InMemoryMetricReader) -> Iterator[tuple[str, Point]]:
    data = reader.get_metrics_data()
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    assert isinstance(point, HistogramDataPoint | NumberDataPoint)
                    yield metric.name, point


def test_a_label_has_at_most_so_many_values() -> None:
    bounds = LabelBounds(values_max=1_000)
    assert [bounds.value("class", f"c{i}") for i in range(1_000)] == [f"c{i}" for i in range(1_000)]
    assert {bounds.value("class", f"c{i}") for i in range(1_000, 3_000)} == {OTHER}
    assert bounds.value("class", "c7") == "c7"
    assert bounds.value("tenant", "c2000") == "c2000"


def test_an_instrument_has_at_most_so_many_series() -> None:
    labels = Labels(("class", "tenant"), LabelBounds(values_max=10), series_max=5)
    series = {labels.bounded((f"c{i}", f"t{j}")) for i in range(20) for j in range(20)}
    assert len(series) == 6
    assert (OTHER, OTHER) in series
    assert labels.bounded(("c0", "t0")) == ("c0", "t0")


def test_one_recording_reaches_both() -> None:
    reader, registry = InMemoryMetricReader(), CollectorRegistry()
    metrics = Metrics(MeterProvider([reader], shutdown_on_exit=False).get_meter("test"), registry)
    metrics.counter("hexagent.kv_transfer.size", "Moved.", ("gen_ai.request.model",), "By").add(5, "m")
    metrics.gauge("hexagent.live", "Live.", ()).set(4)
    metrics.gauge("hexagent.queue.size", "Waiting.", ("a", "b")).set(3, "x", "")
    metrics.histogram("gen_ai.workflow.duration", "Took.", ("error.type",), (1, 2)).observe(1.5, "")
    text = generate_latest(registry).decode()
    assert 'hexagent_kv_transfer_size_bytes_total{gen_ai_request_model="m"} 5.0' in text
    assert "hexagent_live 4.0" in text
    assert 'hexagent_queue_size{a="x",b=""} 3.0' in text
    assert 'gen_ai_workflow_duration_seconds_bucket{error_type="",le="2.0"} 1.0' in text
    found = dict(points(reader))
    assert dict(found["hexagent.queue.size"].attributes or {}) == {"a": "x"}
    histogram = found["gen_ai.workflow.duration"]
    assert isinstance(histogram, HistogramDataPoint)
    assert (list(histogram.explicit_bounds), histogram.sum) == ([1.0, 2.0], 1.5)


def test_names_for_prometheus_end_with_their_unit() -> None:
    assert prometheus_name("gen_ai.server.request.duration", "s") == "gen_ai_server_request_duration_seconds"
    assert prometheus_name("a.bytes", "By") == "a_bytes"
    assert prometheus_name("hexagent.instance.up", "1") == "hexagent_instance_up"


async def test_a_taken_port_is_said() -> None:
    server = MetricsServer("127.0.0.1", 0)
    with pytest.raises(Unavailable) as taken:
        MetricsServer("127.0.0.1", server.port)
    assert (taken.value.reason, taken.value.field) == ("PORT_TAKEN", "metrics_port")
    await server.close()


def ended_workflow(status: NodeStatus) -> WorkflowGraph:
    """One call, ready at 100 ms, first token at 600 ms, 11 tokens at 1.6 s; timely within 1.2 x its horizon of 1 s."""
    graph = WorkflowGraph(WorkflowStarted(WorkflowSpec("w", "t", "research", slo_scale_milli=1_200), 0))
    node = NodeSpec("c", NodeKind.CALL, "plan", (), call=CallSpec("m", (), 10, 20))
    graph.apply(NodesRevealed("w", (node,), 100_000))
    times = CallTimes(150_000, 200_000, 600_000, 610_000, 660_000, 670_000, 600_000, 1_600_000)
    outcome = CallOutcome(CallId("w", "c"), 1, status, reason="" if status is NodeStatus.SUCCEEDED else "BROKEN")
    outcome = outcome._replace(times=times, prompt_tokens=10, output_tokens=11, kv_bytes=7)
    graph.apply(CallFinished(outcome, 1_700_000))
    graph.apply(WorkflowFinished("w", WorkflowStatus.COMPLETED, 2_000_000))
    return graph


def test_what_the_tracker_measures() -> None:
    registry = CollectorRegistry()
    measured = WorkflowMetrics(Metrics(NoOpMeterProvider().get_meter("test"), registry))
    for status in (NodeStatus.SUCCEEDED, NodeStatus.FAILED):
        graph = ended_workflow(status)
        measured.node_ended(graph, graph.node("c"))
        measured.workflow_ended(graph, 1_000_000)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    call = {"gen_ai_request_model": "m", "gen_ai_workflow_name": "research", "hexagent_role": "plan"}
    call["hexagent_tenant"] = "t"
    assert value("gen_ai_server_request_duration_seconds_sum", **call, error_type="") == pytest.approx(1.6)
    assert value("gen_ai_server_request_duration_seconds_count", **call, error_type="BROKEN") == 1
    assert value("gen_ai_server_time_to_first_token_seconds_sum", **call) == pytest.approx(1.0)
    assert value("gen_ai_server_time_per_output_token_seconds_sum", **call) == pytest.approx(0.2)
    transfer = {"gen_ai_request_model": "m", "hexagent_phase": "kv_transfer"}
    assert value("hexagent_call_phase_duration_seconds_sum", **transfer) == pytest.approx(0.1)
    workflow = {"gen_ai_workflow_name": "research", "hexagent_tenant": "t"}
    assert value("gen_ai_workflow_duration_seconds_sum", **workflow, error_type="") == pytest.approx(4.0)
    assert value("hexagent_workflow_stretch_sum", **workflow) == pytest.approx(4.0)
    assert value("hexagent_workflow_slo_violations_total", **workflow, hexagent_slo="scale") == 2
    assert value("hexagent_kv_transfer_size_bytes_total", gen_ai_request_model="m") == 14
