"""All workflows the tracker remembers, as the stored events make them."""

from collections import Counter
from hashlib import sha256
from heapq import heappop, heappush
from typing import NamedTuple

from hexagent.core.errors import FailedPrecondition, NotFound
from hexagent.core.ids import CallId
from hexagent.core.workflow.events import (
    ToolStarted,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.graph import NOTHING, GraphDelta, Node, WorkflowGraph, is_call
from hexagent.core.workflow.limits import Limits
from hexagent.core.workflow.model import NodeStatus, WorkflowStatus


class WorkflowRecord:
    """One workflow: its graph, the requests it has answered, and when it last moved."""

    __slots__ = ("graph", "moved_us", "requests")

    def __init__(self, started: WorkflowStarted) -> None:
        self.graph = WorkflowGraph(started)
        self.requests: dict[str, WorkflowEvent] = {}  # by request id, oldest first: the event that answered it
        self.moved_us = started.at_us

    @property
    def waits_for_client(self) -> bool:
        """Nothing will happen unless the client does something."""
        paused = self.graph.status is WorkflowStatus.PAUSED
        for node in self.graph.nodes:
            if node.status is NodeStatus.RUNNING or (node.status is NodeStatus.READY and is_call(node) and not paused):
                return False
        return True


class Due(NamedTuple):
    """A moment to look at a workflow, or at a tool of it."""

    at_us: int
    workflow_id: str
    node_id: str = ""  # a started tool; "" = idle expiry


class History:
    """State by replay: `apply` in stream order, the same events give the same `digest`."""

    def __init__(self, limits: Limits) -> None:
        self.latest_us = 0  # time of the latest event
        self._limits = limits
        self._records: dict[str, WorkflowRecord] = {}
        self._finished: dict[str, None] = {}  # ids, the first to finish first
        self._due: list[Due] = []  # heap
        self._live: Counter[str] = Counter()  # live workflows by tenant

    def __contains__(self, workflow_id: str) -> bool:
        return workflow_id in self._records

    @property
    def live_count(self) -> int:
        """Workflows that take commands."""
        return len(self._records) - len(self._finished)

    def live_of(self, tenant: str) -> int:
        """Those of one tenant."""
        return self._live[tenant]

    def workflow_ids(self) -> tuple[str, ...]:
        """All remembered workflows, oldest start first."""
        return tuple(self._records)

    def record(self, workflow_id: str) -> WorkflowRecord:
        """The workflow, live or finished, else `NotFound` UNKNOWN_WORKFLOW."""
        record = self._records.get(workflow_id)
        if record is None:
            raise NotFound(
                f"there is no workflow {workflow_id[:140]!r}", reason="UNKNOWN_WORKFLOW", field="workflow_id"
            )
        return record

    def live(self, workflow_id: str) -> WorkflowRecord:
        """The workflow if it takes commands, else also `FailedPrecondition` WORKFLOW_FINISHED."""
        record = self.record(workflow_id)
        graph = record.graph
        if not graph.live:
            raise FailedPrecondition(
                f"workflow {workflow_id} is {graph.status.name.lower()}",
                reason="WORKFLOW_FINISHED",
                field="workflow_id",
                details={"status": graph.status.name, "reason": graph.reason},
            )
        return record

    def apply(self, event: WorkflowEvent) -> GraphDelta:
        """Take in the next event of the stream; events of workflows not remembered are passed over."""
        workflow_id = event.workflow_id
        self.latest_us = max(self.latest_us, event.at_us)
        record = self._records.get(workflow_id)
        if record is None:
            if not isinstance(event, WorkflowStarted):
                return NOTHING
            record = self._records[workflow_id] = WorkflowRecord(event)
            self._live[event.spec.tenant] += 1
            heappush(self._due, Due(event.at_us + self._limits.idle_expiry_us, workflow_id))
        elif not record.graph.live:
            return NOTHING
        delta = record.graph.apply(event)
        record.moved_us = max(record.moved_us, event.at_us)
        request_id = event.request_id
        # A start is remembered with its graph; under its id stands the reveal of its first nodes.
        if request_id and not isinstance(event, WorkflowStarted) and request_id not in record.requests:
            record.requests[request_id] = event
            if len(record.requests) > self._limits.requests_per_workflow:
                del record.requests[next(iter(record.requests))]
        if isinstance(event, ToolStarted):
            heappush(self._due, self._tool_due(record.graph.node(event.node.node_id), workflow_id))
        elif isinstance(event, WorkflowFinished):
            self._finish(workflow_id)
        return delta

    def due(self, now_us: int) -> tuple[tuple[CallId, ...], tuple[str, ...]]:
        """Tools over their timeout and workflows over their idle time at `now_us`, in order of due time and id.

        What stays as it is, is named again by the next call with a later `now_us`.
        """
        tools: list[tuple[Due, CallId]] = []
        idle: list[Due] = []
        while self._due and self._due[0].at_us <= now_us:
            entry = heappop(self._due)
            record = self._records.get(entry.workflow_id)
            if record is None or not record.graph.live:
                continue
            if entry.node_id:
                node = record.graph.node(entry.node_id)
                if node.status is NodeStatus.RUNNING:
                    tools.append((entry, CallId(entry.workflow_id, entry.node_id)))
                    heappush(self._due, entry._replace(at_us=now_us + 1))
                continue
            expires_us = record.moved_us + self._limits.idle_expiry_us
            if expires_us > now_us:
                heappush(self._due, entry._replace(at_us=expires_us))
                continue
            if record.waits_for_client:
                idle.append(entry._replace(at_us=expires_us))
                heappush(self._due, entry._replace(at_us=now_us + 1))
            else:
                # The end of what it waits for will be a move, so it cannot expire sooner than this.
                heappush(self._due, entry._replace(at_us=now_us + self._limits.idle_expiry_us))
        return tuple(call for _, call in sorted(tools)), tuple(entry.workflow_id for entry in sorted(idle))

    def digest(self) -> str:
        """SHA-256 hex over all state that the events make; what only lives in memory stays out."""
        digest = sha256()
        for workflow_id in sorted(self._records):
            record = self._records[workflow_id]
            graph = record.graph
            head = (graph.spec, graph.status, graph.reason, graph.changed_us, graph.finished_us, record.moved_us)
            digest.update(repr((head, graph.started, graph.rounds, record.requests)).encode())
            for node in graph.nodes:
                digest.update(repr(_stored(node)).encode())
        digest.update(repr((list(self._finished), self.latest_us)).encode())
        return digest.hexdigest()

    def _tool_due(self, node: Node, workflow_id: str) -> Due:
        tool = node.spec.tool
        timeout_us = (tool.timeout_us if tool is not None else 0) or self._limits.tool_timeout_us
        return Due(node.started_us + timeout_us, workflow_id, node.node_id)

    def _finish(self, workflow_id: str) -> None:
        self._finished[workflow_id] = None
        self._live[self._records[workflow_id].graph.spec.tenant] -= 1
        if len(self._finished) > self._limits.finished_workflows:
            oldest = next(iter(self._finished))
            del self._finished[oldest]
            del self._records[oldest]


def _stored(node: Node) -> tuple[object, ...]:
    """What events say about a node; a dispatch is no event until the call has ended."""
    dispatched = is_call(node) and node.open
    status = NodeStatus.READY if dispatched and node.status is NodeStatus.RUNNING else node.status
    return (
        node.index,
        node.spec,
        node.children,
        node.succeeded,
        node.lost,
        node.met,
        int(status),
        node.revealed_us,
        node.ready_us,
        () if dispatched else (node.started_us, node.attempt, node.prefill_instance, node.decode_instance),
        node.finished_us,
        node.reason,
        node.message,
        node.outcome,
    )
