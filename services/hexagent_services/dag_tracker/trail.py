"""Where each workflow stands in its stream: sequences given out, and which event last changed each node."""

from collections import deque

from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowEvent,
    WorkflowFinished,
)
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.model import NodeStatus
from hexagent_services.dag_tracker.spans import WorkflowTrace


class Trail:
    """One workflow's place; sequences count its events from 1."""

    __slots__ = ("changed", "ended", "sequence", "stored_at", "trace", "trace_context", "workflow_id")

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.sequence = 0  # of its last event
        self.stored_at = 0  # sequence in the whole stream of its last stored event
        self.changed: list[int] = []  # by node index: the event that last changed what a watcher sees of the node
        self.ended = 0  # the event that ended the workflow, 0 = none
        self.trace: WorkflowTrace | None = None  # where its spans belong, None = it is not traced
        self.trace_context: dict[str, str] = {}  # of its next event: first the client's, then the workflow's own

    def note(self, event: WorkflowEvent, graph: WorkflowGraph | None) -> list[int]:
        """Count the event, which `graph` has applied; gives the nodes it changed, in reveal order."""
        self.sequence += 1
        if graph is None:
            return []
        touched = _touched(event, graph)
        if len(self.changed) < len(graph.nodes):
            self.changed.extend([self.sequence] * (len(graph.nodes) - len(self.changed)))
        for index in touched:
            self.changed[index] = self.sequence
        if isinstance(event, WorkflowFinished):
            self.ended = self.sequence
        return touched


class Trails:
    """The trails of all remembered workflows; finished ones are forgotten in the tracker's own order."""

    def __init__(self, finished_max: int) -> None:
        self._finished_max = finished_max
        self._trails: dict[str, Trail] = {}
        self._finished: deque[str] = deque()

    def find(self, workflow_id: str) -> Trail | None:
        """The trail, None for a workflow without events or forgotten."""
        return self._trails.get(workflow_id)

    def note(self, event: WorkflowEvent, graph: WorkflowGraph | None) -> tuple[Trail, list[int]]:
        """Count an event that was applied; gives its workflow's trail and the nodes it changed.

        `graph` is None where the tracker has forgotten the workflow already: a command that ends more workflows
        than are remembered has events of them all.
        """
        workflow_id = event.workflow_id
        trail = self._trails.get(workflow_id)
        if trail is None:
            trail = self._trails[workflow_id] = Trail(workflow_id)
        touched = trail.note(event, graph)
        if isinstance(event, WorkflowFinished):
            self._finished.append(workflow_id)
            if len(self._finished) > self._finished_max:
                del self._trails[self._finished.popleft()]
        return trail, touched


def _touched(event: WorkflowEvent, graph: WorkflowGraph) -> list[int]:
    """Indices of the nodes whose status the event may have changed; one too many only repeats a status."""
    match event:
        case NodesRevealed(nodes=nodes):
            return sorted(graph.node(spec.node_id).index for spec in nodes)
        case ToolStarted(node=node):
            return [graph.node(node.node_id).index]
        case CallFinished(outcome=outcome):
            closed = graph.node(outcome.call.node_id)
        case ToolFinished(node=node):
            closed = graph.node(node.node_id)
        case _:
            return []
    touched = [closed.index]
    for index in closed.children:
        child = graph.nodes[index]
        if child.status is not NodeStatus.BLOCKED and child.ready_us == event.at_us:
            touched.append(index)
    return touched
