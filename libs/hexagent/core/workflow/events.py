"""What happened to a workflow: the only things written to its stream, and all that its state derives from."""

from typing import NamedTuple

from hexagent.core.ids import CallId
from hexagent.core.workflow.model import CallOutcome, NodeSpec, NodeStatus, WorkflowSpec, WorkflowStatus

# Why the tracker itself ended a node: the `reason` of its ToolFinished or of the outcome in its CallFinished.
JOIN_MET = "JOIN_MET"  # every join that waited for the node is met by others
PARENT_FAILED = "PARENT_FAILED"  # the node's join can no longer be met
NODE_CANCELLED = "NODE_CANCELLED"  # the client cancelled the node and gave no reason of its own
TOOL_TIMEOUT = "TOOL_TIMEOUT"  # a started tool was not finished in time
WORKFLOW_CANCELLED = "WORKFLOW_CANCELLED"  # also of a WorkflowFinished without a reason of the client's
WORKFLOW_FINISHED = "WORKFLOW_FINISHED"  # the client finished the workflow with the node still open
WORKFLOW_ABANDONED = "WORKFLOW_ABANDONED"  # idle expiry


class WorkflowStarted(NamedTuple):
    spec: WorkflowSpec
    at_us: int
    request_id: str = ""

    @property
    def workflow_id(self) -> str:
        return self.spec.workflow_id


class NodesRevealed(NamedTuple):
    """Everything one reveal named; nodes the graph already has are in it too and change nothing."""

    workflow_id: str
    nodes: tuple[NodeSpec, ...]  # parents stand before children
    at_us: int
    request_id: str = ""


class ToolStarted(NamedTuple):
    node: CallId
    at_us: int
    request_id: str = ""

    @property
    def workflow_id(self) -> str:
        return self.node.workflow_id


class ToolFinished(NamedTuple):
    node: CallId
    status: NodeStatus  # terminal
    at_us: int
    reason: str = ""
    request_id: str = ""
    message: str = ""

    @property
    def workflow_id(self) -> str:
        return self.node.workflow_id


class CallFinished(NamedTuple):
    """A call reached its end: by an engine's outcome, or because the graph no longer needs or allows it."""

    outcome: CallOutcome
    at_us: int
    request_id: str = ""  # of the command that cancelled the call, "" = no command did

    @property
    def workflow_id(self) -> str:
        return self.outcome.call.workflow_id


class WorkflowChanged(NamedTuple):
    """New scheduling terms or a pause; every field holds the value from now on."""

    workflow_id: str
    priority: int
    slo_scale_milli: int
    deadline_us: int
    paused: bool
    at_us: int
    request_id: str = ""


class WorkflowFinished(NamedTuple):
    """No further reveal; nodes still open at CANCELLED, FAILED or ABANDONED are finished by events before this."""

    workflow_id: str
    status: WorkflowStatus
    at_us: int
    reason: str = ""
    request_id: str = ""


WorkflowEvent = (
    WorkflowStarted | NodesRevealed | ToolStarted | ToolFinished | CallFinished | WorkflowChanged | WorkflowFinished
)
