"""Why a call went where it went: one record a decision, complete enough to explain and to replay."""

from enum import IntEnum
from typing import Final, NamedTuple

from hexagent.core.ids import Ticket


class DecisionKind(IntEnum):
    DISPATCH = 1  # prefill and decode instance chosen together
    BIND = 2  # decode instance chosen, or chosen again, at prefill end
    REFUSE = 3


class Candidate(NamedTuple):
    """A placement that was considered; all times are predicted model time."""

    prefill_instance: str
    decode_instance: str
    prefill_start_us: int
    prefill_end_us: int
    transfer_end_us: int
    finish_us: int


NOWHERE: Final = Candidate("", "", 0, 0, 0, 0)  # of a call that is refused


class DecisionRecord(NamedTuple):
    sequence: int  # of the decision, from 1 in each epoch
    at_us: int
    kind: DecisionKind
    policy: str
    ticket: Ticket
    chosen: Candidate
    others: tuple[Candidate, ...]  # best first, at most three
    key: tuple[int, ...]  # the order key the call won with, smallest first
    position: int  # among the calls that were waiting, from 1
    waiting: int
    age_us: int  # of the workflow
    horizon_us: int  # of the workflow
    prompt_tokens: int
    predicted_output_tokens: int
    reserve_output_tokens: int
    snapshot_revision: int  # of the estimates; 0 = tables alone, as there was no snapshot or a stale one
    reason: str = ""  # with REFUSE
