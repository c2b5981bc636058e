"""What the tracker lets others see of ends: spans and measurements, made behind the events and never in their way."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from hexagent.core.tracing import TraceContext, context_from, is_sampled, span_id_of, trace_id_of
from hexagent.core.workflow.description import horizon_of
from hexagent.core.workflow.events import CallFinished, ToolFinished, WorkflowEvent, WorkflowFinished
from hexagent.core.workflow.graph import Node, WorkflowGraph
from hexagent.runtime.spans import Span, SpanSink
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.metrics import WorkflowMetrics
from hexagent_services.dag_tracker.spans import SpanMaker, WorkflowTrace

log = logging.getLogger(__name__)

PERIOD_S: Final = 0.2  # wall time between two looks at what has ended
BATCH: Final = 4  # ends that are seen, in up to 2 ms, before other work gets its turn
CLOSE_S: Final = 2.0  # of wall time for what is still queued at the end


class Ended(NamedTuple):
    """A node that ended, or with `node` None its workflow."""

    trace: WorkflowTrace | None
    graph: WorkflowGraph
    node: Node | None


class Observer:
    """`note` only queues; `run` measures it and makes its spans. Beyond `queue_max` ends are dropped."""

    def __init__(
        self,
        stack: str,
        maker: SpanMaker,
        estimates: Estimates,
        sinks: Sequence[SpanSink],
        *,
        metrics: WorkflowMetrics | None = None,
        sample_ratio: float = 1.0,
        queue_max: int = 20_000,
    ) -> None:
        self.dropped = 0
        self._stack = stack
        self._maker = maker
        self._estimates = estimates
        self._sinks = tuple(sinks)
        self._metrics = metrics
        self._sample_ratio = sample_ratio
        self._queue_max = queue_max
        self._queue: deque[Ended] = deque()

    def trace_of(self, workflow_id: str, carrier: Mapping[str, str]) -> WorkflowTrace | None:
        """The trace of a workflow that starts, under its client's span if `carrier` has one.

        The same for the same workflow at every start of the tracker. None where nobody would record it.
        """
        client = context_from(carrier)
        span_id = span_id_of(workflow_id)
        if client is not None:
            return WorkflowTrace(client._replace(span_id=span_id), client.span_id)
        if not self._sinks:
            return None
        # Stacks may run workflows of one name, and be traced by one receiver.
        trace_id = trace_id_of(self._stack, workflow_id)
        return WorkflowTrace(TraceContext(trace_id, span_id, is_sampled(trace_id, self._sample_ratio)), 0)

    def note(self, event: WorkflowEvent, graph: WorkflowGraph, trace: WorkflowTrace | None) -> None:
        """Take in an event that `graph` has applied."""
        traced = bool(self._sinks) and trace is not None and trace.root.sampled
        if not traced and self._metrics is None:
            return
        node: Node | None = None
        match event:
            case CallFinished(outcome=outcome):
                node = graph.node(outcome.call.node_id)
                if node.outcome is not outcome:
                    return
            case ToolFinished(node=tool):
                node = graph.node(tool.node_id)
            case WorkflowFinished():
                pass
            case _:
                return
        if len(self._queue) >= self._queue_max:
            if self.dropped == 0:
                log.warning("spans are dropped: %d ends wait to be made into some", len(self._queue))
            self.dropped += 1
            return
        self._queue.append(Ended(trace if traced else None, graph, node))

    async def run(self, live: Callable[[], int]) -> None:
        """Work off what ends, until cancelled; `live` counts the workflows that have not ended."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self._work_off()
                if self._metrics is not None:
                    self._metrics.state(live(), self.dropped)
            except Exception:  # whatever it is, workflows go on
                log.exception("what ended is not seen")

    async def close(self) -> None:
        """Work off the rest and let every sink deliver."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._work_off()
        except TimeoutError:
            log.warning("%d ends are left without spans", len(self._queue))
        for sink in self._sinks:
            await asyncio.to_thread(sink.close)

    async def _work_off(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            spans = [span for ended in batch for span in self._seen(ended)]
            for sink in self._sinks:
                sink.put(spans)
            await asyncio.sleep(0)

    def _seen(self, ended: Ended) -> list[Span]:
        """Measure it and give its spans. A fault here costs those, not the tracker."""
        try:
            return self._node(ended, ended.node) if ended.node is not None else self._workflow(ended)
        except Exception:
            log.exception("not everything about %s is seen", ended.graph.workflow_id)
            return []

    def _node(self, ended: Ended, node: Node) -> list[Span]:
        if self._metrics is not None:
            self._metrics.node_ended(ended.graph, node)
        return self._maker.of_node(ended.trace, ended.graph, node) if ended.trace is not None else []

    def _workflow(self, ended: Ended) -> list[Span]:
        graph = ended.graph
        horizon_us = horizon_of(graph, self._estimates.solo(graph)).total_us()
        if self._metrics is not None:
            self._metrics.workflow_ended(graph, horizon_us)
        return [self._maker.of_workflow(ended.trace, graph, horizon_us)] if ended.trace is not None else []
