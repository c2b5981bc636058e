"""The growing graph of one workflow: which nodes wait, which may run, which nobody needs any more.

The tracker, which owns the truth, and the scheduler, which projects it, run this same code over the same events.
"""

from typing import Final, NamedTuple

from hexagent.core.errors import NotFound
from hexagent.core.ids import CallId
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowChanged,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.model import LIVE, TERMINAL, CallOutcome, NodeKind, NodeSpec, NodeStatus, WorkflowStatus

NEVER: Final = -1  # of a time: it did not happen
STATUSES: Final = max(NodeStatus) + 1


class GraphDelta(NamedTuple):
    """What one event changed, as node ids.

    `doomed` and `losers` are only named: they end by events of their own, which the tracker writes.
    """

    ready: tuple[str, ...] = ()  # wait for nothing any more, in reveal order
    losers: tuple[str, ...] = ()  # open, but no join needs them any more; children before parents
    doomed: tuple[tuple[str, str], ...] = ()  # (blocked node whose join cannot be met, a parent that failed)
    closed: tuple[str, ...] = ()  # reached their end


NOTHING: Final = GraphDelta()


class Node:
    """A revealed node; only `WorkflowGraph` changes it. Times are model time, `NEVER` = did not happen."""

    __slots__ = (
        "attempt",
        "children",
        "decode_instance",
        "finished_us",
        "index",
        "lost",
        "message",
        "met",
        "needed",
        "node_id",
        "outcome",
        "parents",
        "prefill_instance",
        "ready_us",
        "reason",
        "revealed_us",
        "spec",
        "started_us",
        "status",
        "succeeded",
    )

    def __init__(self, index: int, spec: NodeSpec, parents: tuple[int, ...], revealed_us: int) -> None:
        self.index = index  # reveal order, which is a topological order
        self.node_id = spec.node_id
        self.spec = spec
        self.parents = parents
        self.children: list[int] = []  # ascending
        self.needed = spec.join.needed(len(parents))
        self.succeeded = 0  # parents
        self.lost = 0  # parents that ended without success
        self.met = False  # the join was met while the node waited for it
        self.status = NodeStatus.BLOCKED
        self.revealed_us = revealed_us
        self.ready_us = NEVER
        self.started_us = NEVER  # a call's last dispatch, a tool's start
        self.finished_us = NEVER
        self.attempt = 0  # of the last dispatch, 0 = none
        self.prefill_instance = ""
        self.decode_instance = ""
        self.reason = ""
        self.message = ""
        self.outcome: CallOutcome | None = None  # of a finished call

    @property
    def open(self) -> bool:
        """Not at its end yet."""
        return self.status not in TERMINAL

    @property
    def hopeless(self) -> bool:
        """Blocked with too few parents left that may still succeed."""
        return self.status is NodeStatus.BLOCKED and len(self.parents) - self.lost < self.needed


class WorkflowGraph:
    """Structure and state of one workflow, changed by its events alone (and by `dispatched`, which none records)."""

    __slots__ = (
        "_by_id",
        "changed_us",
        "counts",
        "finished_us",
        "nodes",
        "reason",
        "rounds",
        "spec",
        "started",
        "status",
    )

    def __init__(self, started: WorkflowStarted) -> None:
        self.started = started
        self.spec = started.spec  # with the terms valid now
        self.status = WorkflowStatus.RUNNING
        self.reason = ""
        self.changed_us = started.at_us  # when the terms last changed
        self.finished_us = NEVER
        self.nodes: list[Node] = []  # by index
        self.rounds: dict[str, int] = {}  # last revealed round of each template
        self.counts = [0] * STATUSES  # nodes by status
        self._by_id: dict[str, Node] = {}

    @property
    def workflow_id(self) -> str:
        return self.spec.workflow_id

    @property
    def live(self) -> bool:
        """Takes commands: running or paused."""
        return self.status in LIVE

    @property
    def open_count(self) -> int:
        """Nodes not at their end."""
        counts = self.counts
        return counts[NodeStatus.BLOCKED] + counts[NodeStatus.READY] + counts[NodeStatus.RUNNING]

    def find(self, node_id: str) -> Node | None:
        """The node, or None if it is not revealed."""
        return self._by_id.get(node_id)

    def node(self, node_id: str) -> Node:
        """The node, else `NotFound` UNKNOWN_NODE."""
        node = self._by_id.get(node_id)
        if node is None:
            raise NotFound(
                f"workflow {self.workflow_id} has no node {node_id!r}", reason="UNKNOWN_NODE", field="node_id"
            )
        return node

    def apply(self, event: WorkflowEvent) -> GraphDelta:
        """Take in the next event; one that was applied before, or that ends an ended node, changes nothing.

        A tool or call event of a node that was never revealed raises `NotFound` UNKNOWN_NODE.
        """
        match event:
            case CallFinished(outcome=outcome):
                node = self.node(outcome.call.node_id)
                if not node.open:
                    return NOTHING
                node.outcome = outcome
                node.message = outcome.message
                node.attempt = outcome.attempt
                node.started_us = outcome.times.dispatched_us or NEVER
                node.prefill_instance = outcome.prefill_instance
                node.decode_instance = outcome.decode_instance
                return self._close(node, outcome.status, outcome.reason, event.at_us)
            case NodesRevealed():
                return self._reveal(event)
            case ToolStarted():
                node = self.node(event.node.node_id)
                if node.status is NodeStatus.READY:
                    self._set_status(node, NodeStatus.RUNNING)
                    node.started_us = event.at_us
            case ToolFinished():
                node = self.node(event.node.node_id)
                if not node.open:
                    return NOTHING
                node.message = event.message
                return self._close(node, event.status, event.reason, event.at_us)
            case WorkflowChanged():
                self._change(event)
            case WorkflowFinished():
                if self.live:
                    self.status, self.reason, self.finished_us = event.status, event.reason, event.at_us
            case WorkflowStarted():
                pass  # built from it
        return NOTHING

    def dispatched(
        self, call: CallId, attempt: int, at_us: int, prefill_instance: str = "", decode_instance: str = ""
    ) -> None:
        """A call runs somewhere: informative, no event keeps it. Nothing for an older attempt or an ended node."""
        node = self.node(call.node_id)
        may_run = node.status is NodeStatus.READY or node.status is NodeStatus.RUNNING
        if may_run and is_call(node) and attempt > node.attempt:
            self._set_status(node, NodeStatus.RUNNING)
            node.attempt, node.started_us = attempt, at_us
            node.prefill_instance, node.decode_instance = prefill_instance, decode_instance

    def pending(self) -> GraphDelta:
        """Every loser, doomed node and ready tool that starts by itself, from scratch.

        Empty unless a writer stopped between an event and the events that follow from it.
        """
        losers: dict[int, None] = {}
        doomed = []
        ready = []
        for node in reversed(self.nodes):
            if starts_by_itself(node):
                ready.append(node.node_id)
            if node.open and self._lost_its_use(node, losers):
                losers[node.index] = None
            elif node.hopeless:
                doomed.append((node.node_id, self._lost_parent(node)))
        return GraphDelta(tuple(reversed(ready)), self._ids(list(losers)), tuple(reversed(doomed)))

    def _reveal(self, event: NodesRevealed) -> GraphDelta:
        ready: list[Node] = []
        doomed = []
        for spec in event.nodes:
            if spec.node_id in self._by_id:
                continue
            node = self._add(spec, event.at_us)
            if node.succeeded >= node.needed:
                self._make_ready(node, event.at_us)
                ready.append(node)
            elif node.hopeless:
                doomed.append((node.node_id, self._lost_parent(node)))
        node_ids = tuple([node.node_id for node in ready])
        return GraphDelta(node_ids, self._losers(ready) if ready else (), tuple(doomed))

    def _add(self, spec: NodeSpec, at_us: int) -> Node:
        index = len(self.nodes)
        parents = [self.node(parent) for parent in spec.after]
        node = Node(index, spec, tuple([parent.index for parent in parents]), at_us)
        for parent in parents:
            parent.children.append(index)
            if parent.status is NodeStatus.SUCCEEDED:
                node.succeeded += 1
            elif not parent.open:
                node.lost += 1
        self.nodes.append(node)
        self._by_id[spec.node_id] = node
        self.counts[node.status] += 1
        if spec.template:
            self.rounds[spec.template] = max(spec.round, self.rounds.get(spec.template, 0))
        return node

    def _close(self, node: Node, status: NodeStatus, reason: str, at_us: int) -> GraphDelta:
        """End an open node and tell its children."""
        released = [node] if node.status is NodeStatus.BLOCKED else []
        ready: list[Node] = []
        doomed = []
        self._set_status(node, status)
        node.reason, node.finished_us = reason, at_us
        for index in node.children:
            child = self.nodes[index]
            if status is NodeStatus.SUCCEEDED:
                child.succeeded += 1
                if child.status is NodeStatus.BLOCKED and child.succeeded >= child.needed:
                    self._make_ready(child, at_us)
                    ready.append(child)
            else:
                child.lost += 1
                # Only the failure that takes the last hope names the child, so each is named once.
                if child.hopeless and len(child.parents) - child.lost == child.needed - 1:
                    doomed.append((child.node_id, node.node_id))
        released += ready
        losers = self._losers(released) if released else ()
        return GraphDelta(tuple([child.node_id for child in ready]), losers, tuple(doomed), (node.node_id,))

    def _losers(self, released: list[Node]) -> tuple[str, ...]:
        """Open ancestors that lost their use because the `released` nodes wait for no parent any more."""
        losers: dict[int, None] = {}
        rest = released
        while rest:
            child = rest.pop()
            if child.met and child.needed == len(child.parents):
                continue  # all its parents have succeeded
            for index in child.parents:
                parent = self.nodes[index]
                if parent.open and index not in losers and self._lost_its_use(parent, losers):
                    losers[index] = None
                    rest.append(parent)
        return self._ids(sorted(losers, reverse=True)) if losers else ()

    def _lost_its_use(self, node: Node, losers: dict[int, None]) -> bool:
        """Whether no child waits for the open `node` any more, and for one of them because a join was met.

        A node without children may be a result; a child that failed or was cancelled alone says nothing
        about its parents; a join that keeps its losers holds them for good.
        """
        met = False
        for index in node.children:
            child = self.nodes[index]
            loser = index in losers
            if child.spec.join.keep_losers or (child.status is NodeStatus.BLOCKED and not loser):
                return False
            met = met or loser or child.met
        return met

    def _lost_parent(self, node: Node) -> str:
        """The first parent that ended without success."""
        return next(
            parent.node_id
            for parent in map(self.nodes.__getitem__, node.parents)
            if not parent.open and parent.status is not NodeStatus.SUCCEEDED
        )

    def _change(self, event: WorkflowChanged) -> None:
        if not self.live or event.at_us < self.changed_us:
            return
        self.changed_us = event.at_us
        self.spec = self.spec._replace(
            priority=event.priority, slo_scale_milli=event.slo_scale_milli, deadline_us=event.deadline_us
        )
        self.status = WorkflowStatus.PAUSED if event.paused else WorkflowStatus.RUNNING

    def _make_ready(self, node: Node, at_us: int) -> None:
        self._set_status(node, NodeStatus.READY)
        node.met = True
        node.ready_us = at_us

    def _set_status(self, node: Node, status: NodeStatus) -> None:
        self.counts[node.status] -= 1
        self.counts[status] += 1
        node.status = status

    def _ids(self, indices: list[int]) -> tuple[str, ...]:
        return tuple([self.nodes[index].node_id for index in indices])


def is_call(node: Node) -> bool:
    """Whether the node runs in the cluster."""
    return node.spec.kind is NodeKind.CALL


def starts_by_itself(node: Node) -> bool:
    """A ready tool that waits for no StartTool."""
    tool = node.spec.tool
    return tool is not None and tool.start_now and node.status is NodeStatus.READY
