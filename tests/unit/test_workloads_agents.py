"""Agents of other shapes have the graphs and sizes that their descriptions state."""

import pytest

from hexagent.sim.workloads.agents import SHAPES
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.statistics import summary

# Shape: mean calls a workflow, mean output tokens a call.
STATED = {
    "coding-agent": (33, 520),
    "deep-research": (60, 240),
    "debate": (16, 385),
    "map-reduce": (60, 290),
    "self-consistency": (32, 2_040),
    "reasoning": (1, 7_500),
    "browser": (12, 68),
    "rag-chat": (1, 315),
    "completion": (1, 27),
    "reflexion": (13, 210),
}


def _flows(name: str) -> tuple[ScriptedWorkflow, ...]:
    return generate(name, Options(workflows=20)).workflows


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_those_stated(name: str) -> None:
    calls, output = STATED[name]
    row = summary(generate(name))[0]
    assert row.mean_calls == pytest.approx(calls, rel=0.1)
    assert row.mean_output_tokens == pytest.approx(output, rel=0.1)


def test_a_coding_agent_extends_its_context_until_it_is_full() -> None:
    ends = [_extends(before, item) for flow in _flows("coding-agent") for before, item in _pairs(flow)]
    assert 0 < ends.count(False) < len(ends) / 20
    assert max(item.prompt_tokens for flow in _flows("coding-agent") for item in flow.items) < 120_000


def test_a_browser_keeps_no_page() -> None:
    for flow in _flows("browser"):
        for before, item in _pairs(flow):
            assert item.segments[: len(before.segments) - 1] == before.segments[:-1]
            assert before.segments[-1] not in item.segments


def test_searchers_run_side_by_side_until_the_report() -> None:
    for flow in _flows("deep-research"):
        plan, *searches, report = flow.items
        first = [item for item in searches if item.deps == (plan.index,)]
        assert len(first) == len(report.deps)
        assert 5 <= len(first) <= 20
        assert all(len(item.deps) == 1 for item in searches)


def test_debaters_read_all_answers_of_the_last_round() -> None:
    for flow in _flows("debate"):
        rounds: dict[int, list[WorkItem]] = {}
        for item in flow.items[:-1]:
            rounds.setdefault(item.round, []).append(item)
        for round, items in rounds.items():
            before = tuple([item.index for item in rounds.get(round - 1, [])])
            assert {item.deps for item in items} == {before}


def test_summaries_end_in_one() -> None:
    for flow in _flows("map-reduce"):
        waited_for = [dep for item in flow.items for dep in item.deps]
        assert sorted(waited_for) == list(range(len(flow.items) - 1))


def test_a_reflection_waits_for_all_votes() -> None:
    for flow in _flows("reflexion"):
        assert all(len(item.deps) == 3 for item in flow.items if item.role == "reflect")


def test_samples_share_their_prompt() -> None:
    for flow in _flows("self-consistency"):
        assert len({item.segments for item in flow.items}) == 1
        assert not any(item.deps for item in flow.items)


def _pairs(flow: ScriptedWorkflow) -> list[tuple[WorkItem, WorkItem]]:
    return list(zip(flow.items, flow.items[1:], strict=False))


def _extends(before: WorkItem, item: WorkItem) -> bool:
    return item.segments[: len(before.segments)] == before.segments
