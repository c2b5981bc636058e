"""What the learner makes of a workflow's events."""

import pytest

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.features import CallFeatures, OwnOutputs
from hexagent.core.estimate.learner import REFRESH_US, Learner
from hexagent.core.estimate.lengths import TRUSTED_SAMPLES, LengthTable
from hexagent.core.estimate.snapshot import LengthQuantiles, LinkFit, Snapshot, SpeedFactor
from hexagent.core.ids import CallId
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    NodeKind,
    NodeSpec,
    NodeStatus,
    ToolSpec,
    WorkflowSpec,
    WorkflowStatus,
)
from hexagent.sim.clusters import named_cluster

CALL = CallSpec("m", (), 100, 4_096)


def plan(learner: Learner, name: str, tokens: list[int], tool_us: int) -> None:
    """A chain declared in one reveal, whose second node is a tool."""
    learner.observe_event(WorkflowStarted(WorkflowSpec(name, "default", "agent"), 0))
    nodes = [
        NodeSpec(f"c{i}", NodeKind.CALL, "step", (f"c{i - 1}",) if i else (), call=CALL) for i in range(len(tokens))
    ]
    tool = NodeSpec("t", NodeKind.TOOL, "", ("c0",), tool=ToolSpec("search"))
    learner.observe_event(NodesRevealed(name, (*nodes, tool), 1))
    for i, output in enumerate(tokens):
        outcome = CallOutcome(CallId(name, f"c{i}"), 1, NodeStatus.SUCCEEDED, prompt_tokens=100, output_tokens=output)
        learner.observe_event(CallFinished(outcome, 10 + i))
    learner.observe_event(ToolStarted(CallId(name, "t"), 100))
    learner.observe_event(ToolFinished(CallId(name, "t"), NodeStatus.SUCCEEDED, 100 + tool_us))
    learner.observe_event(WorkflowFinished(name, WorkflowStatus.COMPLETED, 10_000))


def test_calls_of_a_declared_plan_are_learned_with_what_is_known_when_they_are_ready() -> None:
    """All is revealed at once, so that the outputs which tell a call's length come after its reveal."""
    learner = Learner()
    for number in range(100):
        habit = (10, 1_000)[number % 2]
        plan(learner, f"w{number}", [habit] * 8, 50_000)
    snapshot = learner.snapshot(1)
    assert snapshot is not None
    told = LengthTable(snapshot)
    for habit in (10, 1_000):
        features = CallFeatures("agent", "step", 100, own=OwnOutputs().then(habit))
        assert told.predict(features, 4_096, 0).q50 == pytest.approx(habit, rel=0.1, abs=10)


def test_tools_are_timed_from_start_to_end() -> None:
    learner = Learner()
    for number in range(TRUSTED_SAMPLES):
        plan(learner, f"w{number}", [5], 70_000)
    snapshot = learner.snapshot(1)
    assert snapshot is not None
    assert snapshot.tools == (("search", TRUSTED_SAMPLES, 70_000, 70_000, 70_000),)
    assert learner.snapshot(2) is None


def test_what_has_not_changed_is_told_again_after_a_while() -> None:
    learner = Learner()
    assert learner.snapshot(REFRESH_US - 1) is None
    assert learner.snapshot(REFRESH_US) == Snapshot(1, REFRESH_US)
    assert learner.snapshot(2 * REFRESH_US - 1) is None


def test_a_stale_snapshot_says_nothing_of_instances_and_goes_on_about_lengths() -> None:
    cluster = named_cluster("mixed-3")
    a, b = cluster.instances[0], cluster.instances[-1]
    estimator = Estimator(cluster)
    told = Snapshot(
        9,
        1_000,
        (SpeedFactor(a.instance_id, 2_000_000, 2_000_000, 9),),
        (LengthQuantiles("agent", "step", "", 0, 99, 7, 8, 9, 7),),
        links=(LinkFit(b.instance_id, a.instance_id, 9_000_000, 1_000_000, 0, 99),),
    )
    for at_us, stale in ((101_000, False), (101_001, True)):
        estimator.update(told)
        estimator.look_at_age(at_us, 100_000)
        assert (estimator.revision, estimator.stale) == ((0, True) if stale else (9, False))
        assert estimator.speed_ppm(a.instance_id)[0] == (1_000_000 if stale else 2_000_000)
        assert (estimator.transfer_us(b, a, 0) > 1_000_000) is not stale
        assert estimator.output_tokens(CallFeatures("agent", "step", 10), 100, 0).q50 == 7
    changes = estimator.changes
    estimator.look_at_age(200_000, 100_000)
    assert estimator.changes == changes
    estimator.update(told._replace(revision=3, at_us=500))
    assert estimator.stale
    estimator.update(told._replace(revision=3, at_us=150_000))  # of an estimator that lost its own
    assert estimator.revision == 3
