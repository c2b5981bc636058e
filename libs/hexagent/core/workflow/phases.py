"""The phases of a call, end to end without a gap: what spans show and what times are attributed to."""

from enum import Enum
from typing import NamedTuple

from hexagent.core.workflow.model import CallTimes


class PhaseKind(Enum):
    """In the order in which a call goes through them."""

    QUEUE = "queue"  # ready, no token of the prompt computed: at the scheduler, then at the engine
    PREFILL = "prefill"
    WAIT = "wait"  # the prompt's KV is pinned on the prefill side until the decode side has room and pulls it
    KV_TRANSFER = "kv_transfer"
    DECODE = "decode"  # from the KV's arrival, so the rest of the step that runs then is part of it


class CallPhase(NamedTuple):
    """Model time; phases of no length are left out."""

    kind: PhaseKind
    start_us: int
    end_us: int


def phases_of(ready_us: int, times: CallTimes, finished_us: int) -> tuple[CallPhase, ...]:
    """What the last attempt of a call that ended went through, each phase beginning where the one before ends.

    What earlier attempts took counts as queue. A call that ended early has the phases it completed and the one it
    was in; of one that was cancelled after its dispatch nobody knows the phases beyond the queue. Instants of
    clocks that disagree are moved into [ready_us, finished_us] and into order.
    """
    ends = [
        (PhaseKind.QUEUE, times.prefill_start_us or times.dispatched_us or finished_us),
        (PhaseKind.PREFILL, times.prefill_end_us),
        (PhaseKind.WAIT, times.transfer_start_us),
        (PhaseKind.KV_TRANSFER, times.transfer_end_us),
        (PhaseKind.DECODE, times.end_us if times.prefill_end_us else 0),
    ]
    phases = []
    from_us = ready_us
    for kind, end_us in ends:
        until_us = min(max(end_us, from_us), finished_us)
        if end_us and until_us > from_us:
            phases.append(CallPhase(kind, from_us, until_us))
            from_us = until_us
    return tuple(phases)
