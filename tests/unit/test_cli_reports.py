"""Rows, tables and the picture: their shape and their arithmetic."""

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from hexagent import __version__
from hexagent.cli.attainment import attainment, bar, picture, scales
from hexagent.cli.demo import BASELINE, OURS, demo_completed, demo_rows, demo_workload, gain, gain_text
from hexagent.cli.explain import explanation_rows, parsed_call, scheduler_address
from hexagent.cli.program import Trip
from hexagent.cli.report import json_document, shown, table_of, write_json
from hexagent.cli.runner import DISTORTS, Run, overhead_note, overhead_share, summary_row
from hexagent.client.explain import CallExplanation
from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import CallId, Ticket
from hexagent.core.scheduling.record import Candidate, DecisionKind, DecisionRecord
from hexagent.core.workflow.model import CallOutcome, CallTimes, NodeStatus
from hexagent.sim.metrics import WorkflowRow, flat
from hexagent.sim.workloads.model import check_workflow

RUN_KEYS = {"workflow", "tenant", "class", "calls", "status", "completed", "jct_s", "horizon_s", "stretch"}
DEMO_KEYS = {"policy", "req50", "req95", "req99", "completed"}


def row(number: int, stretch: float, completed: bool = True) -> WorkflowRow:
    return WorkflowRow(
        workflow=f"w{number}",
        tenant="default",
        workflow_class="bfcl",
        calls=3,
        status="completed" if completed else "failed",
        completed=completed,
        arrival_us=number * 1_000_000,
        jct_us=round(stretch * 2_000_000),
        horizon_us=2_000_000,
        solo_us=2_000_000,
        tool_us=500_000,
    )


def run_of(stretches: Sequence[float], *, return_us: int | None = 2_000, failed: int = 0) -> Run:
    rows = [row(i, stretch) for i, stretch in enumerate(stretches)]
    rows += [row(len(stretches) + i, 1.0, completed=False) for i in range(failed)]
    trips = () if return_us is None else (Trip(CallId("w", "c"), 0, 1_000, 1_000 + return_us),)
    return Run(tuple(rows), 10.0, trips, 2.0, ((3, 2_000_000),) * len(stretches), ())


def printed(thing: object) -> str:
    out = StringIO()
    Console(file=out, width=120, highlight=False).print(thing)
    return out.getvalue()


def test_json_is_flat_rows_with_their_origin(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json(path, "run", 7, [{"a": 1, "b_s": 0.123456789, "c": None, "d": math.inf, "e": True}])
    assert json.loads(path.read_text()) == {
        "command": "run",
        "version": __version__,
        "seed": 7,
        "rows": [{"a": 1, "b_s": 0.123457, "c": None, "d": None, "e": True}],
    }
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_run_rows_have_the_agreed_keys() -> None:
    document = json_document("run", 1, [flat(r) for r in run_of([1.5], failed=1).rows])
    rows = document["rows"]
    assert isinstance(rows, list)
    assert rows[0].keys() >= RUN_KEYS
    assert rows[0]["stretch"] == pytest.approx(rows[0]["jct_s"] / rows[0]["horizon_s"])
    assert (rows[1]["completed"], rows[1]["status"], rows[1]["stretch"]) == (False, "failed", None)


def test_demo_rows_have_the_agreed_keys_and_percentiles() -> None:
    stretches = [1 + i / 100 for i in range(100)]
    rows = demo_rows({"fcfs": run_of(stretches), "hexagent": run_of([2.0], failed=1)})
    assert all(set(r) >= DEMO_KEYS for r in rows)
    assert [rows[0][name] for name in ("req50", "req95", "req99", "completed")] == [1.49, 1.94, 1.98, 100]
    # A workflow that did not complete is late at every scale.
    assert (rows[1]["req50"], rows[1]["req95"], rows[1]["completed"]) == (2.0, math.inf, 1)


def test_a_demo_is_complete_only_if_every_run_is() -> None:
    assert demo_completed({"a": run_of([1.0]), "b": run_of([2.0])})
    assert not demo_completed({"a": run_of([1.0]), "b": run_of([2.0], failed=1)})


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(2.0, 4.0, 0.5), (4.0, 4.0, 0.0), (5.0, 4.0, -0.25), (1.0, 0.0, 0.0)]
)
def test_gain(ours: float, theirs: float, expected: float) -> None:
    assert gain(ours, theirs) == pytest.approx(expected)


def test_the_gain_is_said_only_where_there_is_one() -> None:
    def rows(ours: float) -> list[dict[str, str | int | float | bool | None]]:
        return [
            {"policy": BASELINE, "req95": 4.0, "req99": 5.0},
            {"policy": OURS, "req95": ours, "req99": 2.5},
        ]

    assert "50% less slack at 95 %, 50% less at 99 %" in gain_text(rows(2.0))
    assert gain_text(rows(4.4)).startswith("No gain")
    assert "req95 +10%" in gain_text(rows(4.4))
    assert gain_text(rows(2.0)[:1]) == ""


def test_summary_row() -> None:
    summary = summary_row(run_of([1.0, 2.0, 3.0]))
    assert (summary["workflows"], summary["completed"], summary["calls"], summary["req50"]) == (3, 3, 9, 2.0)
    assert summary["makespan_s"] == pytest.approx(8.0)  # the last arrives at 2 s and takes 6 s
    assert summary["calls_per_s"] == pytest.approx(9 / 8)


def test_overhead_counts_time_scale_fold_and_warns_where_it_distorts() -> None:
    light, heavy = run_of([1.0], return_us=2_000), run_of([1.0], return_us=200_000)
    assert overhead_share(light) == pytest.approx(0.006)  # 3 calls, both ways, of 2 s
    assert "1.0 ms of wall time" in overhead_note(light)
    assert "2.0 ms of model time" in overhead_note(light)
    assert "Warning" not in overhead_note(light)
    assert overhead_share(heavy) > DISTORTS
    assert "Warning" in overhead_note(heavy)
    assert overhead_note(run_of([1.0], return_us=None)) == ""


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "····"), (1.0, "████"), (0.5, "██··"), (0.53125, "██▏·"), (-1.0, "····"), (7.0, "████")],
)
def test_bar(share: float, expected: str) -> None:
    assert bar(share, 4) == expected


def test_attainment_and_its_scales() -> None:
    runs = {"a": [1.0, 2.0, 4.0, math.inf], "b": [1.5, 1.6, 1.7, 1.8]}
    assert attainment(runs["a"], 2.0) == 0.5
    assert attainment([], 2.0) == 0.0
    steps = scales(runs)
    assert steps == sorted(set(steps))
    assert steps[0] <= 1.5
    assert steps[-1] >= 4.0  # 95 % of the workflows that completed are on time at the last line
    late = scales({"a": [1.0 + i / 100 for i in range(99)] + [900.0]})
    assert late[-1] < 3.0  # one straggler does not hide the rest
    assert scales({"a": [2.0, 2.0]}) == [2.0]
    assert scales({"a": []}) == [1.0]


def test_the_picture_has_a_column_for_each_policy() -> None:
    text = printed(picture({"fcfs": [2.0, 3.0], "hexagent": [1.0, 1.5]}))
    three = printed(picture({name: [1.0, 2.0, 9.0] for name in ("fcfs", "workflow-fcfs", "hexagent")}, 80))
    assert max(len(line.rstrip()) for line in three.splitlines()) <= 80
    assert "fcfs" in text
    assert "hexagent" in text
    assert "100%" in text


def test_values_are_shown_for_people() -> None:
    values: list[str | int | float | bool | None] = [None, True, False, 3, 1.234, 12345.6, math.inf, "x"]
    assert [shown(value) for value in values] == ["-", "yes", "no", "3", "1.23", "12,346", "-", "x"]
    assert "jct_s" in printed(table_of("t", [{"workflow": "w", "jct_s": 1.0}]))


def test_the_demos_workload_is_seeded_and_runs_as_written() -> None:
    full, quick = demo_workload(1, quick=False), demo_workload(1, quick=True)
    assert full == demo_workload(1, quick=False)
    assert full != demo_workload(2, quick=False)
    assert len(quick.workflows) < len(full.workflows)
    assert {w.workflow_class for w in full.workflows} == {"bfcl", "lats"}
    for workflow in full.workflows:
        check_workflow(workflow)
    items = [item for workflow in full.workflows for item in workflow.items]
    assert any(len(item.deps) > 1 for item in items)  # joins
    assert any(item.tool_us for item in items)
    assert any(item.round for item in items)  # loops


def explanation() -> CallExplanation:
    call = CallId("w", "c1")
    chosen = Candidate("p0", "d0", 1_000_000, 1_500_000, 1_600_000, 3_000_000)
    record = DecisionRecord(
        sequence=4,
        at_us=900_000,
        kind=DecisionKind.DISPATCH,
        policy="hexagent",
        ticket=Ticket(call, 1, 1),
        chosen=chosen,
        others=(chosen._replace(decode_instance="d1"),),
        key=(5, 1),
        position=1,
        waiting=3,
        age_us=800_000,
        horizon_us=2_000_000,
        prompt_tokens=100,
        predicted_output_tokens=20,
        reserve_output_tokens=512,
        snapshot_revision=2,
    )
    times = CallTimes(
        dispatched_us=900_000, prefill_start_us=1_100_000, prefill_end_us=1_500_000, transfer_end_us=1_700_000,
        decode_start_us=1_700_000, first_token_us=1_800_000, end_us=3_500_000,
    )  # fmt: skip
    outcome = CallOutcome(call, 1, NodeStatus.SUCCEEDED, times=times)
    return CallExplanation(call, NodeStatus.SUCCEEDED, outcome, (record._replace(sequence=3), record), 0, "")


def test_an_explanation_sets_what_happened_beside_what_was_predicted() -> None:
    first, last = explanation_rows(explanation())
    assert (last["decision"], last["prefill_instance"], last["position"], last["waiting"]) == ("dispatch", "p0", 1, 3)
    assert (last["predicted_prefill_start_s"], last["actual_prefill_start_s"]) == (1.0, 1.1)
    assert (last["predicted_finish_s"], last["actual_finish_s"]) == (3.0, 3.5)
    assert first["actual_finish_s"] is None  # a later decision replaced it


def test_calls_and_addresses_are_read() -> None:
    assert parsed_call("bfcl-s1-000001.ab/c12") == CallId("bfcl-s1-000001.ab", "c12")
    assert scheduler_address("127.0.0.1:7400") == "127.0.0.1:7401"
    for text in ("", "/", "w/", "/c", "w c/d"):
        with pytest.raises(InvalidArgument):
            parsed_call(text)
