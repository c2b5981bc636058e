"""What the learner makes of a workflow's events."""

import pytest

from hexagent.core.estimate.features import CallFeatures, OwnOutputs
from hexagent.core.estimate.learner import Learner
from hexagent.core.estimate.lengths import TRUSTED_SAMPLES, LengthTable
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
