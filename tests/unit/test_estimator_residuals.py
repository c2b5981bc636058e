"""Residual times as the estimator keeps them: by the order of what happened, for workflows that run."""

from collections.abc import Iterable, Iterator

import pytest

from hexagent.core.errors import NotFound
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.remaining import COMPLETED_MIN
from hexagent.core.ids import CallId, Ticket
from hexagent.core.scheduling.record import Candidate, DecisionKind, DecisionRecord
from hexagent.core.workflow.events import CallFinished, NodesRevealed, WorkflowEvent, WorkflowFinished, WorkflowStarted
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    NodeKind,
    NodeSpec,
    NodeStatus,
    WorkflowSpec,
    WorkflowStatus,
)
from hexagent.sim.clusters import named_cluster
from hexagent_services.estimator.residuals import Residuals

CLUSTER = named_cluster("mixed-3")
LEVELS = 3
LATER_US = 10_000  # than everything
CALL = CallSpec(CLUSTER.models[0], (), 100, 4_096)


Event = WorkflowEvent | DecisionRecord


def chain(name: str) -> Iterator[Event]:
    """One call after another, each dispatched a while after its reveal."""
    yield WorkflowStarted(WorkflowSpec(name, "default", "agent"), 0)
    for level in range(LEVELS):
        node, at_us = f"c{level}", 100 * level
        yield NodesRevealed(name, (NodeSpec(node, NodeKind.CALL, "step", (), call=CALL),), at_us)
        yield dispatch(name, node, at_us + 5)
        outcome = CallOutcome(CallId(name, node), 1, NodeStatus.SUCCEEDED, prompt_tokens=100, output_tokens=300)
        yield CallFinished(outcome, at_us + 50)
    yield WorkflowFinished(name, WorkflowStatus.COMPLETED, 1_000)


def dispatch(name: str, node: str, at_us: int) -> DecisionRecord:
    ticket, chosen = Ticket(CallId(name, node), 1, 1), Candidate("p", "d", 0, 0, 0, 0)
    return DecisionRecord(1, at_us, DecisionKind.DISPATCH, "fcfs", ticket, chosen, (), (), 1, 1, 0, 0, 100, 300, 300, 1)


def fed(*feeds: Iterable[Event], until_us: int = LATER_US) -> Residuals:
    """With each feed after the one before, and of the last one only what happened until then."""
    residuals = Residuals(CLUSTER, Estimator(CLUSTER))
    for feed in feeds:
        residuals.advance(LATER_US)
        for event in feed:
            if isinstance(event, DecisionRecord):
                residuals.decided(event)
            else:
                residuals.observe(event)
    residuals.advance(until_us)
    return residuals


PAST = [event for number in range(COMPLETED_MIN) for event in chain(f"past {number}")]
SECOND_REVEALED = 5  # events of a chain until then: started, revealed, dispatched, finished, revealed


def moved(events: list[Event], us: int) -> list[Event]:
    """With the scheduler's clock so far ahead of the tracker's."""
    return [e._replace(at_us=e.at_us + us) if isinstance(e, DecisionRecord) else e for e in events]


def test_a_dispatch_counts_when_it_was_whenever_it_arrives() -> None:
    events = list(chain("w"))[:SECOND_REVEALED]
    in_order = fed(PAST, events).of("w")
    assert in_order is not None
    assert in_order.call == CallId("w", "c0")
    for reverse in (False, True):
        arriving = sorted(events, key=lambda event: isinstance(event, DecisionRecord), reverse=reverse)
        assert fed(PAST, arriving).of("w") == in_order
    behind, ahead = (fed(PAST, moved(events, us)).of("w") for us in (-50, 150))
    assert behind == in_order._replace(dispatched_at_us=-45)
    assert ahead is None  # when it had ended


def test_nothing_counts_before_all_has_been_heard() -> None:
    events = list(chain("w"))
    running = fed(PAST, events, until_us=205)
    known = running.of("w")
    assert known is not None
    assert known.call == CallId("w", "c2")
    earlier = fed(PAST, events, until_us=204).of("w")
    assert earlier is not None
    assert earlier.call == CallId("w", "c1")


def test_only_what_runs_is_answered() -> None:
    events = list(chain("w"))
    residuals = fed(PAST)
    for name in ("w", "past 0"):
        with pytest.raises(NotFound, match=f"'{name}' does not run"):
            residuals.of(name)
    assert fed(PAST, events[:2]).of("w") is None  # not dispatched
    assert fed(events[:3]).of("w") is None  # of a class that nobody knows
    running = fed(PAST, events[:3], list(chain("later"))[:3])
    assert [residual.call.workflow_id for residual in running.newest(10)] == ["later", "w"]
    assert [residual.call.workflow_id for residual in running.newest(1)] == ["later"]
    assert fed(PAST, events).newest(10) == []


def test_dispatches_of_what_nobody_knows_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hexagent_services.estimator.residuals.WAITING_MAX", 1)
    started, revealed, dispatched = list(chain("w"))[:3]
    assert isinstance(revealed, NodesRevealed)
    # The dispatches come first, by the time, and one of them is forgotten.
    late = [started, revealed._replace(at_us=100)]
    assert fed(PAST, [dispatched, *late]).of("w") is not None
    assert fed(PAST, [dispatched, *late, dispatch("nobody", "c0", 6)]).of("w") is None
