"""Advice to somebody who runs another stack: from a trace alone, with reasons, held against what was observed."""

import json
from pathlib import Path
from typing import Any

import pytest

from hexagent.cli.failures import EXIT_USAGE
from hexagent.cli.main import run_command
from hexagent.cli.simulate.receipts import receipt, simulated
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.phases import PhaseKind
from hexagent.sim.changes import Scenario
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.trace import read_facts, read_trace

NODE = {"prompt": 6_000, "output": 120, "kind": "step", "tool_ms": 0}


def recorded(folder: Path, count: int, **more: Any) -> Path:
    """`count` workflows of two calls, a third of a second apart."""
    path = folder / "trace.jsonl"
    nodes = [{"id": 0, "deps": [], **NODE}, {"id": 1, "deps": [0], **NODE, "tool_ms": 100}]
    lines = [{"id": f"w{n}", "arrival_ms": n * 333, "nodes": nodes, **more} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def chat(number: int, start_s: float, end_s: float, trace: str) -> dict[str, Any]:
    usage = {"gen_ai.usage.input_tokens": 900, "gen_ai.usage.output_tokens": 40}
    times = {"start_unix_ns": round(start_s * 1e9), "end_unix_ns": round(end_s * 1e9)}
    attributes = {"gen_ai.operation.name": "chat", **usage}
    return {"trace_id": trace, "span_id": f"s{number}", **times, "attributes": attributes, "links": []}


def test_spans_tell_how_long_workflows_took(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    spans = [chat(1, 10, 11, "a"), chat(2, 12, 14.5, "a"), chat(3, 11, 12.25, "b")]
    path.write_text("\n".join(map(json.dumps, spans)))
    facts = read_facts(path)
    assert facts.jct_us == {"a": 4_500_000, "b": 1_250_000}
    assert (facts.arrivals, facts.calls, facts.drawn) == (True, 3, 0)


def test_recorded_workflows_may_say_it_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_facts(recorded(tmp_path, 2, jct_ms=1_500)).jct_us == {"w0": 1_500_000, "w1": 1_500_000}
    assert read_facts(recorded(tmp_path, 2)).jct_us == {}
    assert run_command(["advise", str(recorded(tmp_path, 2, jct_ms="long"))]) == EXIT_USAGE
    assert "trace.jsonl:1: jct_ms: must be a number" in capsys.readouterr().err


def test_a_receipt_names_the_call_and_what_it_waited_for(tmp_path: Path) -> None:
    scenario = Scenario(named_cluster("mixed-3"), read_trace(recorded(tmp_path, 24)))
    slow, fast = (simulated(scenario, policy, 1) for policy in ("fcfs:least-loaded", "hexagent"))
    gains = {name: row.jct_us - fast.rows[name].jct_us for name, row in slow.rows.items()}
    most = max(gains, key=lambda name: gains[name])
    found = receipt(most, slow, fast)
    assert found is not None
    node = slow.graphs[most].node(found.call)
    assert node.outcome is not None
    assert found.slow.took_us - found.fast.took_us > 0
    assert found.slow.took_us <= node.finished_us - node.ready_us
    assert found.slow.place in (node.outcome.prefill_instance, node.outcome.decode_instance)
    assert found.text().startswith(f"{found.call} spent {found.slow.took_us / US_PER_S:.2f} s ")
    assert found.phase in PhaseKind
    assert receipt(most, slow, slow) is None


def test_the_time_of_conversations_is_that_of_their_turns(tmp_path: Path) -> None:
    trace = recorded(tmp_path, 2)
    trace.write_text(trace.read_text().replace('"tool_ms": 100}', '"tool_ms": null, "gap_ms": 60000}'))
    run = simulated(Scenario(named_cluster("mini"), read_trace(trace)), "fcfs", 1)
    for name, row in run.rows.items():
        assert row.jct_us < 60 * US_PER_S
        assert sum(run.spent[name]) == row.jct_us
        assert run.spent[name].other_us < row.jct_us / 10


def test_advice_holds_the_model_against_what_was_observed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, rows = recorded(tmp_path, 12, jct_ms=2_000), tmp_path / "rows.json"
    command = ["advise", str(trace), "--cluster", "mini", "--policy", "hexagent", "--worst", "2", "--alpha", "2"]
    assert run_command([*command, "--json", str(rows)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    made = json.loads(rows.read_text())["rows"]
    assert [row["workflow"] for row in made] == [f"w{n}" for n in range(12)]
    for row in made:
        assert row["gain_s"] == pytest.approx(row["baseline_jct_s"] - row["policy_jct_s"], abs=1e-5)
        parts = sum(value for name, value in row.items() if name.startswith("policy_") and name.endswith("_s"))
        assert parts == pytest.approx(2 * row["policy_jct_s"], abs=1e-4)  # the time itself, and its parts
        assert row["observed_jct_s"] == 2
    ratios = sorted(row["baseline_jct_s"] / 2 for row in made)
    assert f"Simulated over observed: median {(ratios[5] + ratios[6]) / 2:.2f}" in said
    assert "Arrivals are not recorded" not in said
    assert "stands for your stack; it is not your stack" in said
    receipts = [row for row in made if row["receipt"]]
    assert 0 < len(receipts) <= 4
    assert {row["gain_s"] != 0 for row in receipts} == {True}


def test_advice_names_the_option_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = str(recorded(tmp_path, 1))
    for given, said in (
        (["--baseline", "lifo"], "--baseline: unknown policy 'lifo'; known: fcfs"),
        (["--policy", "fcfs", "--baseline", "fcfs"], "--baseline: is 'fcfs' as --policy is"),
        (["--cluster", "none"], "--cluster: no cluster or file 'none'"),
        (["--trace-format", "csv"], "--trace-format: no trace format 'csv'; known: recorded"),
    ):
        assert run_command(["advise", trace, *given]) == EXIT_USAGE
        assert said in capsys.readouterr().err
