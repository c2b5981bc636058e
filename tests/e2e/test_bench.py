"""The benchmarks of the live system, small: they run, count what they say they count, and lose nothing."""

import json
from pathlib import Path

import pytest

from tests.e2e.local_stack import command

pytestmark = pytest.mark.e2e


def test_killed_processes_lose_and_repeat_nothing(tmp_path: Path) -> None:
    out = tmp_path / "restart.json"
    done = command("bench", "restart", "--rounds", "5", "--every", "3", "--seed", "7", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    *_, every = json.loads(out.read_text())["rows"]
    assert every["kills"] == 5
    assert every["workflows"] > 0
    assert every["streams"] > 0
    names = ("workflows_lost", "calls_not_succeeded", "duplicated_ends", "wrong_streams")
    assert {name: every[name] for name in names} == dict.fromkeys(names, 0)


def test_the_control_plane_is_measured_by_service(tmp_path: Path) -> None:
    out = tmp_path / "control.json"
    done = command("bench", "control-plane", "--rates", "5", "--seconds", "2", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in json.loads(out.read_text())["rows"] if row["rate"] == 5]
    services = {row["service"]: row["cpu_ms_per_call"] for row in rows}
    assert {"dag-tracker", "scheduler", "estimator", "nats-server", "all"} <= set(services)
    assert services["all"] > 0
    assert rows[0]["calls"] == 10
    assert rows[0]["errors"] == 0
    assert rows[0]["added_ttft_p50_ms"] > 0


def test_the_same_workload_runs_live_and_simulated(tmp_path: Path) -> None:
    out, picture = tmp_path / "fidelity.json", tmp_path / "fidelity.svg"
    done = command(
        "bench", "fidelity", "--workloads", "bfcl", "--policies", "fcfs", "--workflows", "3", "--time-scale", "2",
        "--json", str(out), "--picture", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["command"] == "bench fidelity"
    live, sim = document["rows"]
    assert (live["driver"], sim["driver"]) == ("live", "sim")
    for name in ("workload", "policy", "workflows", "completed", "calls", "request_latency_ms"):
        assert live[name] == sim[name]
    assert live["completed"] == 3
    assert sim["mean_diff_pct"] == pytest.approx(100 * (sim["mean_jct_s"] / live["mean_jct_s"] - 1), abs=1e-3)
    assert abs(sim["mean_diff_pct"]) < 30  # a busy machine lags
    for row in (live, sim):
        parts = [row[name] for name in row if name.endswith("_s") and "jct" not in name]
        assert sum(parts) == pytest.approx(row["mean_jct_s"], abs=1e-3)
    assert picture.read_text().startswith("<?xml")
