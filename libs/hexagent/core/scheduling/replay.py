"""Deciding again from a journal's inputs: the same policy must decide the same."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.policy.profile import Profile
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Record, Shadowed
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.record import DecisionRecord


class Difference(NamedTuple):
    """A decision that was made on one side only, or differently; None = there was none."""

    recorded: DecisionRecord | None
    replayed: DecisionRecord | None


class Replayed(NamedTuple):
    inputs: int
    decisions: int  # in the journal
    differences: tuple[Difference, ...]
    shadowed: tuple[Shadowed, ...]  # where the other policies would have done something else


def replay(
    cluster: ClusterSpec,
    policy: str,
    profile: Profile,
    entries: Iterable[tuple[int, SchedulerEvent | DecisionRecord]],
    others: tuple[tuple[str, Profile], ...] = (),
) -> Replayed:
    """Feed the inputs to a fresh core and hold its decisions against the recorded ones, pair by pair.

    `entries` are (model time, input or recorded decision) in the order of the journal. `others` are policies and
    profiles that plan at the same points on the same state: what they would have done instead, history staying
    as it was.
    """
    core = SchedulerCore(cluster, policy, profile, others)
    made: deque[DecisionRecord] = deque()
    differences: list[Difference] = []
    shadowed: list[Shadowed] = []
    inputs = decisions = 0
    for now_us, entry in entries:
        if isinstance(entry, DecisionRecord):
            decisions += 1
            again = made.popleft() if made else None
            if again != entry:
                differences.append(Difference(entry, again))
            continue
        inputs += 1
        differences += [Difference(None, extra) for extra in made]
        effects = core.handle(entry, now_us)
        made = deque(e.record for e in effects if isinstance(e, Record))
        shadowed += [e for e in effects if isinstance(e, Shadowed) and e.differs]
    differences += [Difference(None, extra) for extra in made]
    return Replayed(inputs, decisions, tuple(differences), tuple(shadowed))
