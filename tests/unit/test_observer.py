"""What is seen of ends: only where somebody looks, and never more than a bound."""

import asyncio
from collections.abc import Sequence

import pytest

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.tracing import TraceContext, carrier_of, span_id_of, trace_id_of
from hexagent.core.workflow.events import CallFinished, WorkflowFinished
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.model import CallOutcome, NodeStatus, WorkflowStatus
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.spans import Span
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.observer import Observer
from hexagent_services.dag_tracker.spans import SpanMaker
from tests.unit.test_runtime_metrics import ended_workflow

CLUSTER = load_cluster("demo").spec
CLIENT = TraceContext(0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7, True, "vendor=1")
END = WorkflowFinished("w", WorkflowStatus.COMPLETED, 2_000_000)


class Sink:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.closed = False

    def put(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def close(self) -> None:
        self.closed = True


class NoEstimates(Estimates):
    """Without a bus, the tables as they are."""

    def __init__(self) -> None:
        self._estimator = Estimator(CLUSTER)


def observer(*sinks: Sink, sample_ratio: float = 1.0, queue_max: int = 100) -> Observer:
    maker = SpanMaker(ModelClock(1_000_000_000, 2.0), CLUSTER)
    return Observer("stack", maker, NoEstimates(), sinks, sample_ratio=sample_ratio, queue_max=queue_max)


def graph(status: NodeStatus = NodeStatus.SUCCEEDED) -> WorkflowGraph:
    made = ended_workflow(status)
    for node in made.nodes:
        assert node.spec.call is not None
        node.spec = node.spec._replace(call=node.spec.call._replace(model=CLUSTER.models[0]))
    return made


def call_end(of: WorkflowGraph) -> CallFinished:
    outcome = of.node("c").outcome
    assert outcome is not None
    return CallFinished(outcome, 1_700_000)


def test_the_clients_trace_comes_before_one_of_its_own() -> None:
    under = observer(Sink()).trace_of("w", carrier_of(CLIENT))
    assert under is not None
    assert (under.root, under.parent_id) == (CLIENT._replace(span_id=span_id_of("w")), CLIENT.span_id)
    own = observer(Sink()).trace_of("w", {})
    assert own is not None
    assert own.root == TraceContext(trace_id_of("stack", "w"), span_id_of("w"), True)
    assert own.parent_id == 0
    # Nobody records it here, and what its client records stays one trace.
    assert observer().trace_of("w", {}) is None
    assert observer().trace_of("w", carrier_of(CLIENT)) == under
    unsampled = observer(Sink(), sample_ratio=0.0).trace_of("w", {})
    assert unsampled is not None
    assert not unsampled.root.sampled


async def test_spans_are_in_wall_time() -> None:
    sink = Sink()
    seen, ended = observer(sink), graph()
    trace = seen.trace_of("w", {})
    seen.note(call_end(ended), ended, trace)
    seen.note(END, ended, trace)
    assert sink.spans == []  # not in the way of the event
    await seen.close()
    assert sink.closed
    by_name = {span.name.split(" ")[0]: span for span in sink.spans}
    assert list(by_name) == ["chat", "queue", "prefill", "wait", "kv_transfer", "decode", "invoke_workflow"]
    root = by_name["invoke_workflow"]
    assert (root.start_ns, root.end_ns) == (1_000_000_000, 2_000_000_000)  # 2 s of model time at twice the speed
    assert (by_name["prefill"].end_ns - by_name["prefill"].start_ns) == 200_000_000
    assert root.attributes["hexagent.completion_s"] == 2.0


@pytest.mark.parametrize("status", [NodeStatus.FAILED, NodeStatus.CANCELLED])
async def test_what_failed_says_why(status: NodeStatus) -> None:
    sink = Sink()
    seen, ended = observer(sink), graph(status)
    seen.note(call_end(ended), ended, seen.trace_of("w", {}))
    await seen.close()
    assert (sink.spans[0].error, sink.spans[0].attributes["error.type"]) == ("BROKEN", "BROKEN")


async def test_ends_beyond_the_bound_and_of_unsampled_traces_are_left_out() -> None:
    sink = Sink()
    seen, ended = observer(sink, queue_max=2), graph()
    for _ in range(5):
        seen.note(END, ended, seen.trace_of("w", {}))
    seen.note(END, ended, seen.trace_of("w", carrier_of(CLIENT._replace(sampled=False))))
    other = CallFinished(CallOutcome(CallId("w", "c"), 2, NodeStatus.SUCCEEDED), 1_800_000)
    seen.note(other, ended, seen.trace_of("w", {}))  # not the outcome the call ended with
    assert seen.dropped == 3
    await seen.close()
    assert len(sink.spans) == 2


async def test_a_fault_costs_spans_only(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    seen, ended = observer(sink), graph()
    broken = graph()
    broken.started = broken.started._replace(at_us=None)  # type: ignore[arg-type]
    for of in (broken, ended):
        seen.note(END, of, seen.trace_of("w", {}))
    running = asyncio.create_task(seen.run(lambda: 0))
    async with asyncio.timeout(5):
        while not sink.spans:  # noqa: ASYNC110 - the observer looks by itself
            await asyncio.sleep(0.01)
    running.cancel()
    assert [span.name for span in sink.spans] == ["invoke_workflow research"]
    assert "not everything about w is seen" in caplog.text
