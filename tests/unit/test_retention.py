"""Which bodies are deleted when, by the events that name them."""

from hexagent.core.ids import CallId
from hexagent.core.workflow.events import CallFinished, NodesRevealed, WorkflowFinished
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    NodeKind,
    NodeSpec,
    NodeStatus,
    SegmentRef,
    WorkflowStatus,
)
from hexagent_services.dag_tracker.retention import Retention
from hexagent_services.dag_tracker.trail import Trail

GRACE_US = 100


def reveal(retention: Retention, trail: Trail, *digests: str) -> None:
    segments = (*(SegmentRef(digest, 1) for digest in digests), SegmentRef("", 1, "before"))
    nodes = tuple(NodeSpec(f"n{i}", NodeKind.CALL, "", (), call=CallSpec("m", segments, 1, 1)) for i in range(2))
    retention.note(NodesRevealed(trail.workflow_id, nodes, 1), trail)


def answer(retention: Retention, trail: Trail, digest: str) -> None:
    outcome = CallOutcome(CallId(trail.workflow_id, "n0"), 1, NodeStatus.SUCCEEDED, output=SegmentRef(digest, 1))
    retention.note(CallFinished(outcome, 2), trail)


def finish(retention: Retention, trail: Trail, at_us: int, stored_at: int = 0) -> None:
    retention.note(WorkflowFinished(trail.workflow_id, WorkflowStatus.COMPLETED, at_us), trail, stored_at)


def freed(retention: Retention, now_us: int) -> list[tuple[str, list[str]]]:
    found = []
    while (ended := retention.due(now_us)) is not None:
        found.append((ended.trail.workflow_id, retention.release(ended.digests)))
    return found


def test_bodies_outlive_their_workflow_by_the_grace() -> None:
    retention, one = Retention(GRACE_US, 10, 0), Trail("one")
    reveal(retention, one, "prompt", "prompt", "system")
    answer(retention, one, "output")
    assert freed(retention, 10_000) == []
    finish(retention, one, 1_000)
    assert freed(retention, 1_000 + GRACE_US) == []
    assert freed(retention, 1_001 + GRACE_US) == [("one", ["prompt", "system", "output"])]
    assert freed(retention, 10_000) == []


def test_a_body_goes_with_the_last_workflow_that_names_it() -> None:
    retention, one, two = Retention(GRACE_US, 10, 0), Trail("one"), Trail("two")
    reveal(retention, one, "system", "a")
    reveal(retention, two, "system", "b")
    finish(retention, one, 1_000)
    assert freed(retention, 2_000) == [("one", ["a"])]
    answer(retention, two, "a")  # the same text again
    finish(retention, two, 3_000)
    assert freed(retention, 4_000) == [("two", ["system", "b", "a"])]


def test_of_too_many_ended_workflows_the_oldest_have_no_grace() -> None:
    retention = Retention(GRACE_US, 1, 0)
    for i in range(3):
        reveal(retention, trail := Trail(f"w{i}"), f"d{i}")
        finish(retention, trail, 1_000 + i)
    assert freed(retention, 1_000) == []  # not before its end is sure to be stored
    assert freed(retention, 1_003) == [("w0", ["d0"]), ("w1", ["d1"])]


def test_what_was_freed_before_a_restart_is_not_freed_again() -> None:
    retention, one, two, three = Retention(GRACE_US, 10, 7), Trail("one"), Trail("two"), Trail("three")
    for trail in (one, two, three):
        reveal(retention, trail, "system", trail.workflow_id)
    finish(retention, one, 1_000, stored_at=7)
    finish(retention, two, 1_001, stored_at=9)
    assert freed(retention, 9_000) == [("two", ["two"])]
    finish(retention, three, 9_000)
    assert freed(retention, 10_000) == [("three", ["system", "three"])]
