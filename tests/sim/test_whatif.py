"""What-if: changes of a history and its cluster, and what is said about them."""

import json
from pathlib import Path

import pytest

from hexagent.cli.failures import EXIT_USAGE
from hexagent.cli.main import run_command
from hexagent.core.errors import HexagentError
from hexagent.core.instance.spec import Role
from hexagent.sim.changes import Scenario, changed
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options

BASE = Scenario(named_cluster("hetero-1"), generate("bfcl", Options(workflows=4, tenants=("default",))))

EVERY = [f"-{n} {gpu} {role}" for role in ("prefill", "decode") for gpu, n in (("a100", 2), ("h100", 3), ("h200", 3))]


def pool(scenario: Scenario, gpu_type: str, role: Role) -> list[str]:
    return [s.instance_id for s in scenario.cluster.instances if (s.gpu_type, s.role) == (gpu_type, role)]


def test_instances_are_swapped() -> None:
    after = changed(BASE, "-2 h100 decode, +4 a100 decode")
    assert pool(after, "h100", Role.DECODE) == ["decode-h100-0"]
    assert pool(after, "a100", Role.DECODE) == [f"decode-a100-{n}" for n in range(6)]
    assert after.workload is BASE.workload
    assert list(after.cluster.instances) == sorted(after.cluster.instances)


def test_a_gpu_type_that_the_cluster_lacks_brings_its_own_memory() -> None:
    (spec,) = [s for s in changed(BASE, "+1 b200 decode").cluster.instances if s.gpu_type == "b200"]
    h200 = next(s for s in BASE.cluster.instances if s.gpu_type == "h200")
    assert spec.kv_blocks > h200.kv_blocks
    assert spec.tp == h200.tp


def test_a_flipped_instance_stays_itself() -> None:
    after = changed(BASE, "flip decode-h200-0")
    assert pool(after, "h200", Role.PREFILL) == ["decode-h200-0", *[f"prefill-h200-{n}" for n in range(3)]]
    assert changed(after, "flip decode-h200-0") == BASE


def test_a_tenant_brings_the_history_once_more_and_fans_out() -> None:
    after = changed(BASE, "tenant b:3x2, rate x2")
    theirs = [script for script in after.workload.workflows if script.tenant == "b"]
    ours = [script for script in after.workload.workflows if script.tenant != "b"]
    assert [len(script.items) for script in theirs] == [2 * len(script.items) for script in BASE.workload.workflows]
    assert [script.workflow_id for script in ours] == [script.workflow_id for script in BASE.workload.workflows]
    assert [script.arrival_us for script in ours] == [script.arrival_us // 2 for script in BASE.workload.workflows]
    assert ours[0].arrival_us < theirs[0].arrival_us < ours[1].arrival_us
    assert [tenant.weight for tenant in after.cluster.tenants if tenant.name == "b"] == [3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is none of +N GPU ROLE"),
        ("swap h100", "is none of +N GPU ROLE"),
        ("+1 h1000 decode", "no GPU type 'h1000'; known: a100, b200"),
        ("+1 h100 dekode", "no role 'dekode'; known: prefill, decode, both"),
        ("-4 h100 decode", "the cluster has 2 a100 decode, 3 h100 decode"),
        ("-2 a100 decode, -3 h100 decode, -3 h200 decode", "leaves no decode instance"),
        (f"{', '.join(EVERY)}, +1 h100 decode", "no instance is left that it could be like"),
        ("+600 a100 decode", "616 instances, more than 512"),
        ("flip h200-decode-0", "no instance 'h200-decode-0'; known: decode-a100-0"),
        ("tenant default:2", "give a name other than default"),
        ("tenant b:0", "a weight that is not between 1 and"),
        ("rate x0", "is not between 0.01 and 100"),
    ],
)
def test_bad_changes_say_what_is_known(text: str, said: str) -> None:
    with pytest.raises(HexagentError) as caught:
        changed(BASE, text)
    assert said in caught.value.message


def test_the_command_compares_each_change_with_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, rows = tmp_path / "trace.jsonl", tmp_path / "rows.json"
    node = {"deps": [], "prompt": 6_000, "output": 120, "kind": "step", "tool_ms": 0}
    after = {"id": 1, "deps": [0], "prompt": 6_400, "output": 120, "kind": "step", "tool_ms": 100}
    lines = [{"id": f"w{n}", "nodes": [{"id": 0, **node}, after]} for n in range(24)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    command = ["sim", "whatif", str(trace), "--cluster", "mini", "--rate", "2", "--seeds", "1-2", "--alpha", "2"]
    command += ["--change", "+2 h100 prefill", "--change", "tenant b:1x2, rate x1.5"]
    assert run_command([*command, "--json", str(rows)]) == 0
    base, more, tenant = json.loads(rows.read_text())["rows"]
    assert [row["change"] for row in (base, more, tenant)] == ["base", "+2 h100 prefill", "tenant b:1x2, rate x1.5"]
    assert base["req95_change"] is None
    assert base["workflows"] == more["workflows"] == tenant["workflows"] == 24
    assert more["req95"] < base["req95"] < tenant["req95"]
    assert more["req95_change"] == pytest.approx(more["req95"] / base["req95"] - 1, abs=1e-5)
    assert more["req95_change_low"] <= more["req95_change"] <= more["req95_change_high"] < 0
    assert more["within_change"] == pytest.approx(more["within_alpha"] - base["within_alpha"], abs=1e-5)
    assert "1: +2 h100 prefill" in capsys.readouterr().out


def test_the_command_names_the_option_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"id":"w","nodes":[{"id":0,"deps":[],"prompt":9,"output":9,"kind":"step"}]}')
    for given, said in (
        (["--change", "tenant b:0"], "--change: 'b:0' has a weight"),
        (["--change", "rate x2", "--rate", "fast"], "--rate: 'fast' is neither"),
        (["--change", "rate x2", "--cluster", "none"], "--cluster: no cluster or file 'none'; known: demo"),
        (["--change", "rate x2", "--policy", "lifo"], "--policy: unknown policy 'lifo'"),
    ):
        assert run_command(["sim", "whatif", str(trace), *given]) == EXIT_USAGE
        assert said in capsys.readouterr().err
