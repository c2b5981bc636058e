"""Percentiles of stretch, and what a row says."""

import math

import pytest

from hexagent.sim.metrics import WorkflowRow, flat, makespan_us, required_scale, summary


def row(jct_us: int = 3_000_000, solo_us: int = 2_000_000, tool_us: int = 0, **changes: object) -> WorkflowRow:
    made = WorkflowRow("w", "default", "c", 2, "COMPLETED", True, 0, jct_us, solo_us, solo_us, tool_us)
    return made._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (10, 1.0), (11, 2.0), (50, 5.0), (95, 10.0), (99, 10.0), (100, 10.0)]
)
def test_the_scale_is_the_smallest_at_which_so_many_are_timely(percent: int, expected: float) -> None:
    stretches = [float(n) for n in (7, 3, 10, 1, 9, 2, 5, 4, 8, 6)]
    assert required_scale(stretches, percent) == expected
    timely = sum(s <= expected for s in stretches)
    assert timely * 100 >= percent * len(stretches)


def test_no_workflows_need_no_scale() -> None:
    assert required_scale([], 99) == 0.0
    assert summary([]).workflows == 0
    assert makespan_us([]) == 0


def test_tool_time_comes_out_of_both_sides() -> None:
    assert row(tool_us=1_000_000).stretch == 1.5
    assert row(tool_us=1_000_000).stretch_notool == 2.0
    assert row(jct_us=1_900_000, tool_us=2_000_000).stretch_notool == 0.0


def test_a_workflow_that_did_not_complete_is_never_timely() -> None:
    failed = row(status="FAILED", completed=False)
    assert failed.stretch == failed.stretch_notool == math.inf
    assert flat(failed)["stretch"] is None
    of_both = summary([row(), failed])
    assert (of_both.req50, of_both.req100, of_both.completed, of_both.mean_jct_s) == (1.5, math.inf, 1, 3.0)


def test_makespan_is_from_the_first_arrival_to_the_last_completion() -> None:
    assert makespan_us([row(arrival_us=500_000), row(arrival_us=1_000_000, jct_us=5_000_000)]) == 5_500_000


def test_a_flat_row_has_the_published_names() -> None:
    assert flat(row()) == {
        "workflow": "w",
        "tenant": "default",
        "class": "c",
        "calls": 2,
        "status": "COMPLETED",
        "completed": True,
        "jct_s": 3.0,
        "horizon_s": 2.0,
        "solo_s": 2.0,
        "stretch": 1.5,
        "stretch_notool": 1.5,
    }
