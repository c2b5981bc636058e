"""The largest load a policy holds: how it is searched for, and what is said of it."""

import json
import math
from pathlib import Path

import pytest

from hexagent.cli.failures import EXIT_USAGE
from hexagent.cli.main import run_command
from hexagent.sim.experiment import capacity
from hexagent.sim.experiment.capacity import PRECISION, Search, capacity_rows
from hexagent.sim.experiment.cell import Cell, workload_of
from hexagent.sim.experiment.run import Outcome, Run
from hexagent.sim.metrics import WorkflowRow

CELL = Cell("llama-3.1-70b", "mixed-3", "bfcl", "full", arrivals="poisson", duration_s=20.0)


def outcomes(late: int) -> list[Outcome]:
    """Two runs of 100 workflows, `late` of all of which need a scale of 5, the others 1."""
    rows = [
        WorkflowRow(
            f"w{i}", "default", "c", 1, "COMPLETED", True, i, 5_000_000 if i < late else 1_000_000, 0, 1_000_000, 0
        )
        for i in range(200)
    ]
    return [Outcome(Run(CELL, "fcfs", 1), tuple(half), 1.0, 2.0) for half in (rows[:100], rows[100:])]


def ended(policy: str, limit: float) -> Search:
    """As if loads up to `limit` were served in time."""
    search = Search(CELL, policy, alpha=3.0)
    for _ in range(30):
        load = search.next_load
        if load is None:
            return search
        search = search.after(load, outcomes(2 if load <= limit else 3))
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("limit", [0.011, 0.3, 1.0, 1.7, 9.0])
def test_a_search_ends_within_its_precision(limit: float) -> None:
    search = ended("fcfs", limit)
    assert search.held <= limit < search.over <= search.held * PRECISION
    assert len(search.tried) <= 12


def test_a_search_ends_where_loads_do() -> None:
    assert (ended("fcfs", 20.0).held, ended("fcfs", 20.0).over) == (10.0, math.inf)
    assert (ended("fcfs", 0.0).held, ended("fcfs", 0.0).over) == (0.0, 0.01)


def test_one_workflow_of_a_hundred_may_be_late() -> None:
    search = Search(CELL, "fcfs", alpha=3.0)
    assert search.after(1.0, outcomes(2)).held == 1.0
    assert search.after(1.0, outcomes(3)).over == 1.0


def test_what_is_held_above_a_load_that_is_too_much_does_not_count() -> None:
    tried = ((1.0, 2.0), (4.0, 2.5), (2.0, 3.5))
    assert Search(CELL, "fcfs", 3.0, tried).held == 1.0


def test_rows_compare_with_the_best_practice() -> None:
    limits = {"hexagent-plus": 4.0, "prefix-affinity": 2.0, "aggregated": 1.0, "conversation-sticky": 0.0}
    rows = {row["policy"]: row for row in capacity_rows([ended(p, limit) for p, limit in limits.items()], (1, 2))}
    assert [rows[policy]["ratio_to_best"] for policy in limits] == [2.0, 1.0, 0.5, 0.0]
    ours = rows["hexagent-plus"]
    # Six instances of four GPUs, an A100, an H100 and an H200 on each side, at 1, 2 and 2.4.
    assert ours["workflows_per_gpu_hour"] == pytest.approx(float(ours["rate_per_s"] or 0) * 3_600 / (8 * (1 + 2 + 2.4)))
    # As many arrive as the rate says.
    arriving = len(workload_of(CELL._replace(load=4.0), 1).workflows) / CELL.duration_s
    assert ours["rate_per_s"] == pytest.approx(arriving, rel=0.1)
    (alone,) = capacity_rows([ended("hexagent", 1.0)], (1,))
    assert alone["ratio_to_best"] is None


def test_the_command_searches_writes_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "PRECISION", 4.0)
    out, rows = tmp_path / "out", tmp_path / "rows.json"
    command = ["bench", "capacity", "--cluster", "mini", "--workload", "bfcl", "--duration", "3", "--seeds", "1"]
    command += ["--policies", "hexagent-plus,prefix-affinity", "--processes", "1", "--alpha", "1.5"]
    assert run_command([*command, "--out", str(out), "--json", str(rows)]) == 0
    assert (out / "capacity.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads(rows.read_text())
    assert [row["policy"] for row in document["rows"]] == ["hexagent-plus", "prefix-affinity"]
    for row in document["rows"]:
        assert row["req99"] <= row["alpha"] == 1.5
        assert row["load"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workload", "weather"], "--workload: no workload 'weather'; known: agents"),
        (["--cluster", "moon"], "--cluster: no cluster 'moon'"),
        (["--policies", "lifo"], "--policies: unknown policy 'lifo'"),
        (["--arrivals", "weekly"], "--arrivals"),
        (["--duration", "100000"], "--duration: 100000 is not between"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", "capacity", *arguments]) == EXIT_USAGE
    assert said in capsys.readouterr().err
