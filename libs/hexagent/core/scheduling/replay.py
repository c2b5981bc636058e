"""Deciding again from a journal's inputs: the same policy must decide the same."""

from collections.abc import Iterable
from typing import NamedTuple

from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Record
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


def replay(
    cluster: ClusterSpec, policy: str, entries: Iterable[tuple[int, SchedulerEvent | DecisionRecord]]
) -> Replayed:
    """Feed the inputs to a fresh core and hold its decisions against the recorded ones, pair by pair.

    `entries` are (model time, input or recorded decision) in the order of the journal.
    """
    core = SchedulerCore(cluster, policy)
    made: list[DecisionRecord] = []
    differences: list[Difference] = []
    inputs = decisions = 0
    for now_us, entry in entries:
        if isinstance(entry, DecisionRecord):
            decisions += 1
            again = made.pop(0) if made else None
            if again != entry:
                differences.append(Difference(entry, again))
            continue
        differences += [Difference(None, extra) for extra in made]
        inputs += 1
        made = [e.record for e in core.handle(entry, now_us) if isinstance(e, Record)]
    differences += [Difference(None, extra) for extra in made]
    return Replayed(inputs, decisions, tuple(differences))
