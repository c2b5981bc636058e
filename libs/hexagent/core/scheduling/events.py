"""What the scheduler core reacts to, besides the workflow events it shares with the tracker."""

from enum import IntEnum
from typing import Final, NamedTuple

from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.ids import Ticket
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.core.instance.telemetry import Telemetry
from hexagent.core.workflow.events import WorkflowEvent

UNREACHABLE: Final = "UNREACHABLE_"  # begins the reason of a refusal that nobody gave: the agent does not answer


class Phase(IntEnum):
    """Where an attempt of a call is, as its agent reports it."""

    ACCEPTED = 1  # the prefill agent has the call: its prompt waits or is being computed
    PREFILLED = 3  # KV is pinned on the prefill instance
    DECODING = 5  # KV has arrived
    ENDED = 6  # no blocks are held any more; an outcome is on its way to the tracker
    HAND_OFF_REFUSED = 7  # the decode side said no before KV moved: bind another, not an attempt
    LOST = 8  # the agent or its engine lost the attempt: dispatch again, not an attempt of the call's own


class CallProgress(NamedTuple):
    ticket: Ticket
    phase: Phase
    instance_id: str
    at_us: int
    cached_tokens: int = 0
    output_tokens: int = 0
    reason: str = ""  # with HAND_OFF_REFUSED and LOST


class HeldTicket(NamedTuple):
    """An attempt an agent holds when a scheduler attaches; adopted, not dispatched again."""

    ticket: Ticket
    phase: Phase
    instance_id: str
    prompt_tokens: int
    reserve_output_tokens: int
    output_tokens: int
    decode_instance: str


class InstanceUp(NamedTuple):
    """An agent answered for an instance; also sent again when its description changes."""

    spec: InstanceSpec
    held: tuple[HeldTicket, ...]
    at_us: int
    cordoned: bool = False  # its agent knows that it is closed to new calls
    draining: bool = False  # its agent takes no new calls for it until it says otherwise
    wanted_role: Role | None = None  # its agent knows that it shall have this one; None = the one that it has


class InstanceDown(NamedTuple):
    """Declared dead: every attempt on it is lost."""

    instance_id: str
    at_us: int
    reason: str = ""  # for operators
    spec: InstanceSpec | None = None  # where its agent says so, which may be before it has ever been up


class InstanceCordoned(NamedTuple):
    """No new call goes there (`cordoned`), or it may again."""

    instance_id: str
    cordoned: bool
    at_us: int


class InstanceFlip(NamedTuple):
    """It shall have `role`: no new call goes there, and it changes once it holds nothing."""

    instance_id: str
    role: Role  # that it has: it stays as it is
    at_us: int


class Started(NamedTuple):
    """Every known agent answered or is declared dead: dispatching may begin."""

    epoch: int
    at_us: int


class Tick(NamedTuple):
    """Time passed; sent at the interval the core asks for."""

    at_us: int


SchedulerEvent = (
    WorkflowEvent
    | CallProgress
    | InstanceUp
    | InstanceDown
    | InstanceCordoned
    | InstanceFlip
    | Telemetry
    | Snapshot
    | Started
    | Tick
)
