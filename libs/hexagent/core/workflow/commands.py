"""What the tracker is asked to do, and what it wants done: both plain values."""

from typing import NamedTuple

from hexagent.core.ids import CallId
from hexagent.core.workflow.events import WorkflowEvent
from hexagent.core.workflow.model import CallOutcome, NodeSpec, NodeStatus, WorkflowSpec, WorkflowStatus

# A command with a `request_id` is done once: repeated with the same content it does nothing more, with other
# content it is refused with AlreadyExists DUPLICATE_REQUEST. "" = not remembered. The scope is the workflow.


class StartWorkflow(NamedTuple):
    """A workflow, and its first nodes if it has any yet; AlreadyExists WORKFLOW_EXISTS when the id is taken."""

    spec: WorkflowSpec
    request_id: str = ""
    nodes: tuple[NodeSpec, ...] = ()  # all or nothing: if they are refused, the workflow does not start


class RevealNodes(NamedTuple):
    """Nodes in any order; those already in the graph with the same content are left as they are."""

    workflow_id: str
    nodes: tuple[NodeSpec, ...]
    request_id: str = ""


class StartTool(NamedTuple):
    """The client begins a READY tool."""

    node: CallId
    request_id: str = ""


class FinishTool(NamedTuple):
    """The client ends a READY or RUNNING tool."""

    node: CallId
    status: NodeStatus  # SUCCEEDED, FAILED or CANCELLED
    reason: str = ""
    message: str = ""
    request_id: str = ""


class FinishWorkflow(NamedTuple):
    """Nothing more will be revealed; open nodes are cancelled."""

    workflow_id: str
    status: WorkflowStatus = WorkflowStatus.COMPLETED  # or FAILED
    reason: str = ""
    request_id: str = ""


class CancelWorkflow(NamedTuple):
    """Stop everything; open nodes are cancelled."""

    workflow_id: str
    reason: str = ""  # "" = WORKFLOW_CANCELLED
    request_id: str = ""


class CancelNode(NamedTuple):
    """Stop one node; nothing happens when it is at its end already."""

    node: CallId
    reason: str = ""  # "" = NODE_CANCELLED
    request_id: str = ""


class ChangeWorkflow(NamedTuple):
    """New scheduling terms; None leaves a term as it is."""

    workflow_id: str
    priority: int | None = None
    slo_scale_milli: int | None = None  # 0 = none
    deadline_us: int | None = None  # 0 = none
    paused: bool | None = None
    request_id: str = ""


class RecordOutcome(NamedTuple):
    """An engine or the scheduler ended a call; the first outcome wins, later ones are counted and ignored."""

    outcome: CallOutcome


class RecordDispatch(NamedTuple):
    """A call was sent to instances; informative, forgotten by a restart."""

    call: CallId
    attempt: int
    prefill_instance: str = ""
    decode_instance: str = ""


class Tick(NamedTuple):
    """Time passed: tools over their timeout fail, workflows nobody moves are abandoned."""


class Reconcile(NamedTuple):
    """Write what follows from the replayed events but was not written before the last stop."""


Command = (
    StartWorkflow
    | RevealNodes
    | StartTool
    | FinishTool
    | FinishWorkflow
    | CancelWorkflow
    | CancelNode
    | ChangeWorkflow
    | RecordOutcome
    | RecordDispatch
    | Tick
    | Reconcile
)


class Publish(NamedTuple):
    """Append the event to the workflow stream; in the order of the effects."""

    event: WorkflowEvent


class CancelCall(NamedTuple):
    """The cluster may hold this call, and it ended without an outcome: take it back."""

    call: CallId
    reason: str


Effect = Publish | CancelCall
