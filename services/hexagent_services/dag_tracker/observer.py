"""What the tracker lets others see of ends: spans and measurements, made behind the events and never in their way."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from hexagent.core.tracing import TraceContext, context_from, is_sampled, span_id_of, trace_id_of
from hexagent.core.workflow.description import horizon_of
from hexagent.core.workflow.events import CallFinished, ToolFinished, WorkflowEvent, WorkflowFinished
from hexagent.core.workflow.graph import Node, WorkflowGraph
from hexagent.runtime.spans import Span, SpanSink
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.spans import SpanMaker, WorkflowTrace

log = logging.getLogger(__name__)

PERIOD_S: Final = 0.2  # wall time between two looks at what has ended
BATCH: Final = 16  # nodes whose spans are made before other work gets its turn
CLOSE_S: Final = 2.0  # of wall time for what is still queued at the end


class Ended(NamedTuple):
    """A node that ended, or with `node` None its workflow."""

    trace: WorkflowTrace | None
    graph: WorkflowGraph
    node: Node | None


class Observer:
    """`note` only queues; `run` makes spans of what is queued. Beyond `queue_max` ends are counted and dropped."""

    def __init__(
        self,
        stack: str,
        maker: SpanMaker,
        estimates: Estimates,
        sinks: Sequence[SpanSink],
        *,
        sample_ratio: float,
        queue_max: int,
    ) -> None:
        self.dropped = 0
        self._stack = stack
        self._maker = maker
        self._estimates = estimates
        self._sinks = tuple(sinks)
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
        if not self._sinks or trace is None or not trace.root.sampled:
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
        self._queue.append(Ended(trace, graph, node))

    async def run(self) -> None:
        """Work off what ends, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self._work_off()

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
            spans = [span for ended in batch for span in self._spans(ended)]
            for sink in self._sinks:
                sink.put(spans)
            await asyncio.sleep(0)

    def _spans(self, ended: Ended) -> list[Span]:
        """A fault here costs spans, not the tracker."""
        if ended.trace is None:
            return []
        try:
            if ended.node is not None:
                return self._maker.of_node(ended.trace, ended.graph, ended.node)
            horizon_us = horizon_of(ended.graph, self._estimates.solo(ended.graph)).total_us()
            return [self._maker.of_workflow(ended.trace, ended.graph, horizon_us)]
        except Exception:
            log.exception("no spans of %s", ended.graph.workflow_id)
            return []
