"""The tracker: the truth about workflows, and the only writer of their events.

`handle` turns commands into events and effects and never awaits, logs, reads a clock or draws a number; `apply`
rebuilds the same state from the stored events.
"""

from collections import deque
from collections.abc import Callable

from hexagent.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from hexagent.core.ids import CallId, checked_id
from hexagent.core.workflow.commands import (
    CancelCall,
    CancelNode,
    CancelWorkflow,
    ChangeWorkflow,
    Command,
    Effect,
    FinishTool,
    FinishWorkflow,
    Publish,
    Reconcile,
    RecordDispatch,
    RecordOutcome,
    RevealNodes,
    StartTool,
    StartWorkflow,
    Tick,
)
from hexagent.core.workflow.description import WorkflowDescription, describe
from hexagent.core.workflow.events import (
    JOIN_MET,
    NODE_CANCELLED,
    PARENT_FAILED,
    TOOL_TIMEOUT,
    WORKFLOW_ABANDONED,
    WORKFLOW_CANCELLED,
    WORKFLOW_FINISHED,
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowChanged,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.graph import GraphDelta, Node, WorkflowGraph, is_call, starts_by_itself
from hexagent.core.workflow.history import History, WorkflowRecord
from hexagent.core.workflow.limits import Catalog, Limits
from hexagent.core.workflow.model import (
    TERMINAL,
    CallOutcome,
    CallTimes,
    NodeKind,
    NodeSpec,
    NodeStatus,
    WorkflowStatus,
)
from hexagent.core.workflow.requests import check_repetition
from hexagent.core.workflow.reveal import validate_reveal
from hexagent.core.workflow.terms import validate_demands, validate_start, validate_terms, validate_text


class Tracker:
    """State of all workflows; `history` is for reading, `catalog` may be replaced when the cluster changes."""

    def __init__(self, limits: Limits, catalog: Catalog) -> None:
        self.limits = limits
        self.catalog = catalog
        self.history = History(limits)
        self.ignored_outcomes = 0  # since the start: of calls that had ended already

    def handle(self, command: Command, now_us: int) -> tuple[Effect, ...]:
        """What to do about `command` at `now_us`, in order; the state has changed accordingly.

        A refusal raises a `HexagentError` and changes nothing. Commands about workflows that are not remembered:
        NotFound UNKNOWN_WORKFLOW; that have ended: FailedPrecondition WORKFLOW_FINISHED.
        """
        # Events stay in order of time even if the clock of a restarted process is behind.
        now_us = max(now_us, self.history.latest_us)
        turn = _Turn(self.history, now_us)
        match command:
            case RecordOutcome(outcome=outcome):
                self._record_outcome(outcome, turn)
            case RecordDispatch(call=call):
                self.history.record(call.workflow_id).graph.dispatched(
                    call, command.attempt, now_us, command.prefill_instance, command.decode_instance
                )
            case RevealNodes():
                self._reveal(command, turn)
            case StartWorkflow():
                self._start(command, turn)
            case StartTool():
                self._start_tool(command, turn)
            case FinishTool():
                self._finish_tool(command, turn)
            case FinishWorkflow():
                self._finish_workflow(command, turn)
            case CancelWorkflow():
                self._cancel_workflow(command, turn)
            case CancelNode():
                self._cancel_node(command, turn)
            case ChangeWorkflow():
                self._change(command, turn)
            case Tick():
                self._tick(turn)
            case Reconcile():
                self._reconcile(turn)
        return tuple(turn.effects)

    def apply(self, event: WorkflowEvent) -> None:
        """Replay one stored event; then `Reconcile` once all are applied."""
        self.history.apply(event)

    def describe(self, workflow_id: str, solo: Callable[[Node], int]) -> WorkflowDescription:
        """The workflow with its costs; `solo` gives the microseconds of a node alone on the cluster."""
        return describe(self.history.record(workflow_id).graph, solo)

    def digest(self) -> str:
        """Equal for equal event histories."""
        return self.history.digest()

    def _record(self, workflow_id: str, command: Command, request_id: str) -> WorkflowRecord | None:
        """The live workflow a command is about; None when the command was answered before."""
        if request_id:
            record = self.history.record(workflow_id)
            answered = record.requests.get(checked_id(request_id, "request_id"))
            if answered is not None:
                check_repetition(command, request_id, answered)
                return None
        return self.history.live(workflow_id)

    def _start(self, command: StartWorkflow, turn: "_Turn") -> None:
        spec, request_id = command.spec, command.request_id
        if spec.workflow_id in self.history:
            self._start_again(command, turn)
            return
        validate_start(spec, self.limits, self.catalog, turn.now_us)
        if request_id:
            checked_id(request_id, "request_id")
        limit = self.catalog.workflows_max.get(spec.tenant)
        if limit is not None and self.history.live_of(spec.tenant) >= limit:
            raise ResourceExhausted(
                f"{limit} workflows of tenant {spec.tenant} are live, no more can start",
                reason="TOO_MANY_TENANT_WORKFLOWS",
                field="tenant",
                details={"limit": str(limit)},
            )
        if self.history.live_count >= self.limits.live_workflows:
            raise ResourceExhausted(
                f"{self.limits.live_workflows} workflows are live, no more can start",
                reason="TOO_MANY_WORKFLOWS",
                details={"limit": str(self.limits.live_workflows)},
            )
        started = WorkflowStarted(spec, turn.now_us, request_id)
        nodes = self._checked(WorkflowGraph(started), command.nodes) if command.nodes else ()
        turn.publish(started)
        if nodes:
            turn.reveal(spec.workflow_id, nodes, request_id)

    def _start_again(self, command: StartWorkflow, turn: "_Turn") -> None:
        """A start whose id is taken: by the same request it is answered, and completed if it was cut off."""
        record = self.history.record(command.spec.workflow_id)
        request_id, started = command.request_id, record.graph.started
        if not request_id or request_id != started.request_id:
            raise AlreadyExists(
                f"workflow {command.spec.workflow_id} exists", reason="WORKFLOW_EXISTS", field="workflow_id"
            )
        check_repetition(command, request_id, started)
        revealed = record.requests.get(request_id)
        if revealed is not None:
            check_repetition(command, request_id, revealed)
        elif command.nodes and record.graph.live:
            turn.reveal(command.spec.workflow_id, self._checked(record.graph, command.nodes), request_id)

    def _reveal(self, command: RevealNodes, turn: "_Turn") -> None:
        record = self._record(command.workflow_id, command, command.request_id)
        if record is None:
            return
        graph = record.graph
        nodes = self._checked(graph, command.nodes)
        if any(graph.find(node.node_id) is None for node in nodes):
            turn.reveal(command.workflow_id, nodes, command.request_id)

    def _checked(self, graph: WorkflowGraph, nodes: tuple[NodeSpec, ...]) -> tuple[NodeSpec, ...]:
        """The nodes in topological order, if the graph and the cluster can take them."""
        ordered = validate_reveal(graph, nodes, self.limits)
        for i, node in enumerate(nodes):
            if node.call is not None and graph.find(node.node_id) is None:
                validate_demands(node.call, f"nodes[{i}].call", self.catalog)
        return ordered

    def _start_tool(self, command: StartTool, turn: "_Turn") -> None:
        record = self._record(command.node.workflow_id, command, command.request_id)
        if record is not None:
            _check_tool(record.graph.node(command.node.node_id), (NodeStatus.READY,))
            turn.publish(ToolStarted(command.node, turn.now_us, command.request_id))

    def _finish_tool(self, command: FinishTool, turn: "_Turn") -> None:
        record = self._record(command.node.workflow_id, command, command.request_id)
        if record is None:
            return
        if command.status not in (NodeStatus.SUCCEEDED, NodeStatus.FAILED, NodeStatus.CANCELLED):
            raise InvalidArgument("a tool ends as succeeded, failed or cancelled", reason="BAD_STATUS", field="status")
        validate_text(command.reason, command.message, self.limits)
        node = record.graph.node(command.node.node_id)
        _check_tool(node, (NodeStatus.READY, NodeStatus.RUNNING))
        turn.finish(record.graph, node, command.status, command.reason, command.message, command.request_id)

    def _finish_workflow(self, command: FinishWorkflow, turn: "_Turn") -> None:
        record = self._record(command.workflow_id, command, command.request_id)
        if record is None:
            return
        if command.status not in (WorkflowStatus.COMPLETED, WorkflowStatus.FAILED):
            raise InvalidArgument("a workflow is finished as completed or failed", reason="BAD_STATUS", field="status")
        validate_text(command.reason, "", self.limits)
        turn.end(record.graph, command.status, command.reason, WORKFLOW_FINISHED, command.request_id)

    def _cancel_workflow(self, command: CancelWorkflow, turn: "_Turn") -> None:
        record = self._record(command.workflow_id, command, command.request_id)
        if record is None:
            return
        validate_text(command.reason, "", self.limits)
        reason = command.reason or WORKFLOW_CANCELLED
        turn.end(record.graph, WorkflowStatus.CANCELLED, reason, WORKFLOW_CANCELLED, command.request_id)

    def _cancel_node(self, command: CancelNode, turn: "_Turn") -> None:
        record = self._record(command.node.workflow_id, command, command.request_id)
        if record is None:
            return
        validate_text(command.reason, "", self.limits)
        node = record.graph.node(command.node.node_id)
        if node.open:
            reason = command.reason or NODE_CANCELLED
            turn.finish(record.graph, node, NodeStatus.CANCELLED, reason, "", command.request_id)

    def _change(self, command: ChangeWorkflow, turn: "_Turn") -> None:
        record = self._record(command.workflow_id, command, command.request_id)
        if record is None:
            return
        old = record.graph.spec
        new = old._replace(
            priority=old.priority if command.priority is None else command.priority,
            slo_scale_milli=old.slo_scale_milli if command.slo_scale_milli is None else command.slo_scale_milli,
            deadline_us=old.deadline_us if command.deadline_us is None else command.deadline_us,
        )
        # A deadline that passed since may stay as it is while other terms change.
        kept = new if command.deadline_us is not None else new._replace(deadline_us=0)
        validate_terms(kept, self.limits, turn.now_us)
        paused = record.graph.status is WorkflowStatus.PAUSED if command.paused is None else command.paused
        turn.publish(
            WorkflowChanged(
                command.workflow_id,
                new.priority,
                new.slo_scale_milli,
                new.deadline_us,
                paused,
                turn.now_us,
                command.request_id,
            )
        )

    def _record_outcome(self, outcome: CallOutcome, turn: "_Turn") -> None:
        graph = self.history.record(outcome.call.workflow_id).graph
        node = graph.node(outcome.call.node_id)
        if not is_call(node):
            raise FailedPrecondition(f"{outcome.call} is a tool", reason="NOT_A_CALL", field="call")
        if outcome.status not in TERMINAL:
            raise InvalidArgument(
                f"{outcome.call}: an outcome is an end, not {outcome.status.name}", reason="BAD_STATUS", field="status"
            )
        if not node.open:
            self.ignored_outcomes += 1
            return
        if node.status is NodeStatus.BLOCKED and outcome.status is NodeStatus.SUCCEEDED:
            raise FailedPrecondition(
                f"{outcome.call} cannot succeed before its parents", reason="NODE_NOT_READY", field="call"
            )
        turn.settle(graph, turn.publish(CallFinished(outcome, turn.now_us)))

    def _tick(self, turn: "_Turn") -> None:
        tools, idle = self.history.due(turn.now_us)
        for call in tools:
            graph = self.history.record(call.workflow_id).graph
            node = graph.node(call.node_id)
            if node.open:  # an earlier timeout of this tick may have ended it
                turn.finish(graph, node, NodeStatus.FAILED, TOOL_TIMEOUT, f"tool {call} ran too long")
        for workflow_id in idle:
            graph = self.history.record(workflow_id).graph
            turn.end(graph, WorkflowStatus.ABANDONED, WORKFLOW_ABANDONED, WORKFLOW_ABANDONED)

    def _reconcile(self, turn: "_Turn") -> None:
        for workflow_id in self.history.workflow_ids():
            graph = self.history.record(workflow_id).graph
            if graph.live:
                turn.settle(graph, graph.pending())


class _Turn:
    """The events and effects of one command."""

    __slots__ = ("effects", "history", "now_us")

    def __init__(self, history: History, now_us: int) -> None:
        self.history = history
        self.now_us = now_us
        self.effects: list[Effect] = []

    def publish(self, event: WorkflowEvent) -> GraphDelta:
        """Write the event and apply it."""
        self.effects.append(Publish(event))
        return self.history.apply(event)

    def finish(
        self, graph: WorkflowGraph, node: Node, status: NodeStatus, reason: str, message: str = "", request_id: str = ""
    ) -> None:
        """End an open node without an outcome of its own, and all that cannot go on or is not needed then."""
        self.settle(graph, self.close(graph, node, status, reason, message, request_id))

    def close(
        self, graph: WorkflowGraph, node: Node, status: NodeStatus, reason: str, message: str = "", request_id: str = ""
    ) -> GraphDelta:
        """Write the end of an open node; what follows from it is the caller's."""
        node_id = CallId(graph.workflow_id, node.node_id)
        if not is_call(node):
            return self.publish(ToolFinished(node_id, status, self.now_us, reason, request_id, message))
        in_cluster = node.status in (NodeStatus.READY, NodeStatus.RUNNING)
        outcome = CallOutcome(
            node_id,
            node.attempt,
            status,
            reason=reason,
            message=message,
            prefill_instance=node.prefill_instance,
            decode_instance=node.decode_instance,
            times=CallTimes(dispatched_us=max(node.started_us, 0), end_us=self.now_us),
        )
        delta = self.publish(CallFinished(outcome, self.now_us, request_id))
        if in_cluster:
            self.effects.append(CancelCall(node_id, reason))
        return delta

    def reveal(self, workflow_id: str, nodes: tuple[NodeSpec, ...], request_id: str) -> None:
        """Write a checked reveal and what follows from it."""
        delta = self.publish(NodesRevealed(workflow_id, nodes, self.now_us, request_id))
        self.settle(self.history.record(workflow_id).graph, delta)

    def settle(self, graph: WorkflowGraph, delta: GraphDelta) -> None:
        """Write the starts and ends that follow from `delta`, and what follows from those."""
        rest = deque((delta,))
        while rest:
            delta = rest.popleft()
            for node_id in delta.ready:
                if starts_by_itself(graph.node(node_id)):
                    self.publish(ToolStarted(CallId(graph.workflow_id, node_id), self.now_us))
            for node_id in delta.losers:
                node = graph.node(node_id)
                if node.open:
                    rest.append(self.close(graph, node, NodeStatus.CANCELLED, JOIN_MET))
            for node_id, parent_id in delta.doomed:
                node = graph.node(node_id)
                if node.open:
                    message = _cause(graph.node(parent_id))
                    rest.append(self.close(graph, node, NodeStatus.FAILED, PARENT_FAILED, message))

    def end(
        self, graph: WorkflowGraph, status: WorkflowStatus, reason: str, node_reason: str, request_id: str = ""
    ) -> None:
        """Cancel every open node, children before parents so that none fails by its parent, and end the workflow."""
        if graph.open_count:
            for node in reversed(graph.nodes):
                if node.open:
                    self.close(graph, node, NodeStatus.CANCELLED, node_reason)
        self.publish(WorkflowFinished(graph.workflow_id, status, self.now_us, reason, request_id))


def _cause(parent: Node) -> str:
    """Why a child of `parent` cannot go on, down to the first failure."""
    if parent.reason == PARENT_FAILED:
        return parent.message
    said = f": {parent.reason}" if parent.reason else ""
    return f"parent {parent.node_id} {parent.status.name.lower()}{said}"


def _check_tool(node: Node, statuses: tuple[NodeStatus, ...]) -> None:
    """Raises FailedPrecondition unless the node is a tool in one of `statuses`."""
    if node.spec.kind is not NodeKind.TOOL:
        raise FailedPrecondition(f"{node.node_id} is a call, not a tool", reason="NOT_A_TOOL", field="node_id")
    if node.status not in statuses:
        wanted = " or ".join(status.name.lower() for status in statuses)
        raise FailedPrecondition(
            f"tool {node.node_id} is {node.status.name.lower()}, not {wanted}",
            reason="NODE_NOT_READY" if node.open else "NODE_FINISHED",
            field="node_id",
            details={"status": node.status.name, "reason": node.reason},
        )
