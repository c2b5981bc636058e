"""`bench estimator`: a small run end to end, and how its rows are judged."""

import pathlib

import pytest
from typer.testing import CliRunner

from hexagent.cli.bench import estimator
from hexagent.cli.bench.estimator import (
    EstimatorOptions,
    draw_reliability,
    estimator_rows,
    pinball,
    quantile_rows,
    shown,
)
from hexagent.cli.main import app
from hexagent.sim.experiment.witness import Observation


def observations(measured: list[int], predicted: int = 50) -> list[Observation]:
    """Of ten calls a workflow."""
    return [
        Observation(f"w{number // 10}", ("a100", "h100"), "output_tokens", (predicted, 90, 99), (60, 90, 99), tokens)
        for number, tokens in enumerate(measured)
    ]


def test_coverage_counts_what_is_at_or_below() -> None:
    rows = quantile_rows("test", observations(list(range(1, 101)) * 10))
    whole = {row["quantile"]: row for row in rows if row["gpu"] == "all"}
    assert {row["gpu"] for row in rows} == {"a100", "h100", "all"}
    assert [whole[percent]["coverage"] for percent in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert all(row["covers"] for row in rows)
    assert float(whole[50]["pinball"] or 0) < float(whole[50]["baseline_pinball"] or 0)
    assert whole[50]["observations"] == 1_000
    assert whole[50]["workflows"] == 100


def test_what_is_not_covered_is_said() -> None:
    rows = quantile_rows("test", observations(list(range(1, 101)) * 10, predicted=30))
    assert not rows[0]["covers"]
    assert "*" in str(shown(rows)[0]["coverage"])


def test_a_true_quantile_of_few_values_is_right_whatever_it_covers() -> None:
    rows = quantile_rows("test", observations([50] * 700 + [10] * 300))
    assert (rows[0]["coverage"], rows[0]["ties"], rows[0]["covers"]) == (100.0, 70.0, True)


def test_calls_of_one_workflow_are_not_independent() -> None:
    """Whole workflows are above or below: that is as good as a tenth of the calls."""
    rows = quantile_rows("test", observations(([1] * 10 + [100] * 10) * 20))
    assert float(rows[0]["band"] or 0) > 15


def test_pinball() -> None:
    assert pinball([(10, 20)], 90) == 9.0
    assert pinball([(20, 10)], 90) == 1.0


def test_a_small_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(estimator.WORKFLOWS, "bfcl", 30)
    options = EstimatorOptions(("bfcl",), (), (1,), 0.9, 100, 0.1)
    rows = estimator_rows(options, lambda text: None)
    service = [row for row in rows if row["quantity"] == "service_us"]
    assert {row["gpu"] for row in service} >= {"h200", "all"}
    assert all(float(row["mape"] or 0) < 5 for row in service)
    lengths = [row for row in rows if row["quantity"] == "output_tokens" and row["gpu"] == "all"]
    assert [row["covers"] for row in lengths] == [True] * 3
    assert {row["quantity"] for row in rows if row["log_error"] is not None} == {
        "unrevealed of bfcl by history",
        "unrevealed of bfcl by solo",
    }
    draw_reliability(rows, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5_000


def test_a_workload_that_nobody_knows_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "estimator", "--workloads", "nonsense"])
    assert "no workload 'nonsense'" in str(result.exception)
