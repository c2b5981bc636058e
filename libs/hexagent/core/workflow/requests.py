"""Request ids: whether a repeated command asks for what the event under its id has done."""

from hexagent.core.errors import AlreadyExists
from hexagent.core.ids import CallId
from hexagent.core.workflow.commands import (
    CancelNode,
    CancelWorkflow,
    ChangeWorkflow,
    Command,
    FinishTool,
    FinishWorkflow,
    RevealNodes,
    StartTool,
    StartWorkflow,
)
from hexagent.core.workflow.events import (
    NODE_CANCELLED,
    WORKFLOW_CANCELLED,
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowChanged,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.model import NodeStatus, WorkflowStatus


def check_repetition(command: Command, request_id: str, answered: WorkflowEvent) -> None:
    """Raises `AlreadyExists` DUPLICATE_REQUEST unless `command` asks again for what `answered` did under its id."""
    if not _asks_same(command, answered):
        raise AlreadyExists(
            f"request {request_id} was used before with other content",
            reason="DUPLICATE_REQUEST",
            field="request_id",
            details={"request_id": request_id},
        )


def _asks_same(command: Command, event: WorkflowEvent) -> bool:
    match command:
        case StartWorkflow(spec=spec) if isinstance(event, WorkflowStarted):
            return event.spec == spec
        case StartWorkflow(nodes=nodes) | RevealNodes(nodes=nodes):
            # The event holds the nodes in topological order and each once.
            return isinstance(event, NodesRevealed) and (
                nodes == event.nodes
                or {node.node_id: node for node in nodes} == {node.node_id: node for node in event.nodes}
            )
        case StartTool(node=node):
            return isinstance(event, ToolStarted) and event.node == node
        case FinishTool(node=node):
            return isinstance(event, ToolFinished) and (event.node, event.status, event.reason, event.message) == (
                node,
                command.status,
                command.reason,
                command.message,
            )
        case FinishWorkflow(status=status, reason=reason):
            return isinstance(event, WorkflowFinished) and (event.status, event.reason) == (status, reason)
        case CancelWorkflow():
            reason = command.reason or WORKFLOW_CANCELLED
            return isinstance(event, WorkflowFinished) and (event.status, event.reason) == (
                WorkflowStatus.CANCELLED,
                reason,
            )
        case CancelNode():
            return _end_of(event) == (command.node, NodeStatus.CANCELLED, command.reason or NODE_CANCELLED)
        case ChangeWorkflow():
            return isinstance(event, WorkflowChanged) and all(
                wanted is None or wanted == given
                for wanted, given in (
                    (command.priority, event.priority),
                    (command.slo_scale_milli, event.slo_scale_milli),
                    (command.deadline_us, event.deadline_us),
                    (command.paused, event.paused),
                )
            )
        case _:
            return False


def _end_of(event: WorkflowEvent) -> tuple[CallId, NodeStatus, str] | None:
    match event:
        case CallFinished(outcome=outcome):
            return outcome.call, outcome.status, outcome.reason
        case ToolFinished():
            return event.node, event.status, event.reason
        case _:
            return None
