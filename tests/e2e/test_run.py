"""`hexagent run`: workloads live through the SDK, on a stack of processes of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from hexagent.sim.workloads.trace import read_trace
from tests.e2e.local_stack import command

pytestmark = pytest.mark.e2e

KEYS = ["workflow", "tenant", "class", "calls", "status", "completed", "jct_s", "horizon_s", "stretch"]
PARTS = ["queue_s", "prefill_s", "kv_wait_s", "kv_transfer_s", "decode_s", "tool_s", "other_s"]


def rows_of(path: Path, command: str) -> list[dict[str, Any]]:
    document = json.loads(path.read_text())
    assert document["command"] == command
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def test_chains_with_tools_complete(tmp_path: Path) -> None:
    spans = tmp_path / "spans.jsonl"
    spans.write_text("of an earlier run\n")
    done = command(
        "run", "bfcl", "--workflows", "5", "--time-scale", "5", "--json", str(tmp_path / "rows.json"),
        "--trace-file", str(spans),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path / "rows.json", "run")
    assert len(rows) == 5
    for row in rows:
        assert all(key in row for key in KEYS)
        assert (row["status"], row["completed"], row["tenant"], row["class"]) == ("completed", True, "default", "bfcl")
        assert row["jct_s"] > 0
        assert row["stretch"] == pytest.approx(row["jct_s"] / row["horizon_s"], rel=1e-3)
        assert sum(row[part] for part in PARTS) == pytest.approx(row["jct_s"], abs=1e-5)
        assert min(row["decode_s"], row["tool_s"], row["other_s"]) > 0
    assert "Control plane:" in done.stdout
    assert "Where their time went" in done.stdout
    names = [json.loads(line)["name"] for line in spans.read_text().splitlines()]
    assert names.count("invoke_workflow bfcl") == 5
    assert sum(name.startswith("chat ") for name in names) == sum(row["calls"] for row in rows)
    imported = {w.workflow_id: len(w.items) for w in read_trace(spans).workflows}
    assert imported == {row["workflow"]: row["calls"] for row in rows}


def test_tree_search_with_joins_completes_under_another_policy(tmp_path: Path) -> None:
    done = command(
        "run", "lats", "--workflows", "1", "--time-scale", "5", "--policy", "fcfs", "--no-prefix-cache",
        "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows_of(tmp_path / "rows.json", "run")
    assert row["completed"]
    assert row["calls"] > 20


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("bfcl_multi_turn_base", "hexagent-plus"),
        ("tot_game24", "hexagent"),
        ("mlperf_agentic_coding", "prefix-affinity"),
        ("mooncake_conversation_chains", "conversation-sticky"),
    ],
)
def test_recorded_workflows_complete(name: str, policy: str, traces_dir: Path, tmp_path: Path) -> None:
    done = command(
        "run", "--trace", str(traces_dir / f"{name}.jsonl"), "--limit", "1", "--time-scale", "20", "--gap-limit", "5",
        "--policy", policy, "--prefix-cache", "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["completed"] for row in rows_of(tmp_path / "rows.json", "run")] == [True]


def test_the_demo_compares_policies(tmp_path: Path) -> None:
    done = command("demo", "--quick", "--policies", "hexagent", "--time-scale", "5", "--json", str(tmp_path / "d.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows_of(tmp_path / "d.json", "demo")
    assert row["policy"] == "hexagent"
    assert row["completed"] == row["workflows"] > 0
    assert 0 < row["req50"] <= row["req95"] <= row["req99"]
    assert "Share of workflows on time" in done.stdout
