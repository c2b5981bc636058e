"""The compiled core decides as the interpreted one does, bit for bit, and serves. Runs where `make native` has been."""

import json
import pathlib
import subprocess

import pytest

from hexagent.cli.compiled import core_is_compiled
from hexagent.cli.simulate.execute import outcome_of
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.run import Run, world_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILED = ".native/bin/hexagent"
MODEL = "llama-3.1-70b"
RUNS = (
    Run(Cell(MODEL, "hetero-1", "bfcl", workflows=12), "fcfs", 3),
    Run(Cell(MODEL, "mixed-3", "lats", workflows=1), "hexagent", 3),
    Run(Cell(MODEL, "hetero-1", "mixed", workflows=10, world="full", noise=0.3), "hexagent-plus", 3),
    Run(Cell(MODEL, "mini", "bfcl", workflows=6, world="full", engine_profile="push"), "conversation-sticky", 3),
)


def outcomes() -> list[object]:
    """The digest of each run's events and what it says of its workflows; and what `sim compare` has of one, timed."""
    results = [world_of(run).run() for run in RUNS]
    timed = outcome_of(RUNS[0])
    assert timed.decision_p99_ms > 0
    return [core_is_compiled(), *([result.digest, repr(result.rows)] for result in results), repr(timed.rows)]


@pytest.fixture(scope="module")
def native_python() -> pathlib.Path:
    if not (ROOT / COMPILED).exists():
        pytest.skip("there is no compiled core; `make native` makes one")
    if subprocess.run(["make", "--question", COMPILED], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("the compiled core is older than its sources; `make native` brings it up to date")
    return ROOT / ".native/bin/python"


def test_compiled_and_interpreted_runs_are_the_same(native_python: pathlib.Path) -> None:
    program = "import json; from tests.sim.test_native import outcomes; print(json.dumps(outcomes()))"
    ran = subprocess.run([native_python, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [True, *outcomes()[1:]]


def test_a_live_stack_runs_on_the_compiled_core(native_python: pathlib.Path, tmp_path: pathlib.Path) -> None:
    what = "bench fidelity --workloads bfcl --workflows 2 --policies hexagent-plus --time-scale 2 --json rows.json"
    command = [str(native_python.with_name("hexagent")), *what.split()]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["driver"]: row["completed"] for row in rows} == {"live": 2, "sim": 2}
