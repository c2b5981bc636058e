"""What the scheduler core asks its driver to do."""

from typing import NamedTuple

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.model import CallOutcome


class Dispatch(NamedTuple):
    """Hand one attempt to the agent of `prefill_instance`."""

    ticket: Ticket
    prefill_instance: str
    decode_instance: str  # "" = chosen at prefill end by a later `Bind`; equal to prefill_instance = local
    reserve_output_tokens: int  # decode blocks to reserve beyond the prompt
    rank: int  # order among calls waiting on the instance, lower first
    decision: int  # sequence of the record that explains it


class Bind(NamedTuple):
    """Choose, or choose again, where a dispatched call decodes."""

    ticket: Ticket
    prefill_instance: str
    decode_instance: str
    decision: int


class CancelAttempt(NamedTuple):
    """Stop an attempt wherever it is."""

    ticket: Ticket
    prefill_instance: str
    decode_instance: str
    reason: str


class ChangeRole(NamedTuple):
    """The role an instance shall have: `now`, as it holds nothing, else for its agent to remember meanwhile."""

    instance_id: str
    role: Role
    now: bool


class Refuse(NamedTuple):
    """A call that will not run: its outcome goes to the tracker like an engine's."""

    outcome: CallOutcome


class Record(NamedTuple):
    record: DecisionRecord


class Choice(NamedTuple):
    """A call that a plan would start now, and where."""

    call: CallId
    prefill_instance: str
    decode_instance: str


class Shadowed(NamedTuple):
    """Diagnostic: what was started at this point, and what another policy would have started."""

    policy: str
    at_us: int
    made: tuple[Choice, ...]
    would_make: tuple[Choice, ...]

    @property
    def differs(self) -> bool:
        """Whether these are other calls, or the same ones elsewhere or in another order."""
        return self.made != self.would_make


Effect = Dispatch | Bind | CancelAttempt | ChangeRole | Refuse | Record | Shadowed
