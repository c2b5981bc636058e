"""Experiments: what a cell is, what load means, how runs are judged and pooled."""

import math
from pathlib import Path

import numpy as np
import pytest

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.spec import ClusterSpec, TenantSpec
from hexagent.sim.experiment import paper
from hexagent.sim.experiment.bootstrap import interval, required_scales, resampled_scales
from hexagent.sim.experiment.cell import LOAD_RANGE, Cell, check_cell, cluster_of, workload_of
from hexagent.sim.experiment.load import at_rate, capacity, over_again
from hexagent.sim.experiment.policies import POLICIES, every, ours, published, strong
from hexagent.sim.experiment.pooling import Pooled, gap_closed, mean_share, pooled, reduction, underloaded
from hexagent.sim.experiment.run import Bound, Outcome, Run, bound_req95, judged, row_of, world_of
from hexagent.sim.metrics import WorkflowRow, required_scale
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, WorkItem, Workload
from hexagent.sim.workloads.options import Options
from tests.sim.cases import decodes, prefills

CELL = Cell("llama-3.1-70b", "mixed-3", "bfcl", workflows=4)
ROW = [
    *("model", "cluster", "workload", "world", "engine_profile", "policy", "dispatch", "seed", "load", "workflows"),
    *("req50", "req90", "req95", "req99", "req100", "req95_notool", "req99_notool", "makespan_s", "goodput"),
    *("jain", "lower_bound_req95", "decision_p50_ms", "decision_p99_ms"),
]


def one_call(prompt: int, output: int) -> Workload:
    item = WorkItem(0, (), "r", prompt, output, 4_096, (Segment("s", prompt),))
    return Workload("w", "w", (ScriptedWorkflow("w0", "c", "default", 0, (item,)),))


def outcome(run: Run, stretches: list[float]) -> Outcome:
    rows = [
        WorkflowRow(f"w{i}", "default", "c", 1, "COMPLETED", True, i, round(s * 1_000_000), 1_000_000, 1_000_000, 0)
        for i, s in enumerate(stretches)
    ]
    return Outcome(run, tuple(rows), 1.0, 2.0)


# --- load -----------------------------------------------------------------------------------------------------------
def test_load_one_is_what_the_instances_of_the_bottleneck_phase_take() -> None:
    """One call a workflow: prefill 1,000 tokens, 101 output tokens at mean context 1,050."""
    specs = (*prefills("a100", "h200"), *decodes("h100", kv_blocks=86))
    cluster = ClusterSpec("c", specs, (TenantSpec("default"),), 0, 0, (1_000_000, 1_000_000))
    a100, h200, h100 = (load_table(gpu, "llama-3.1-70b", 4) for gpu in ("a100", "h200", "h100"))
    got = capacity(one_call(1_000, 101), cluster)
    assert got.prefill_per_s == pytest.approx(1e6 / a100.prefill_us(1_000) + 1e6 / h200.prefill_us(1_000))
    # 86 blocks of 32 tokens hold two calls of 1,101.
    assert got.decode_per_s == pytest.approx(1e6 / (100 * h100.decode_us(2, 1_050) / 2))
    assert got.workflows_per_s == min(got.prefill_per_s, got.decode_per_s)


def test_load_scales_arrivals_and_nothing_else() -> None:
    own, half, full = (workload_of(CELL._replace(load=load), 3) for load in (0.0, 0.5, 1.0))
    assert [w.items for w in own.workflows] == [w.items for w in half.workflows] == [w.items for w in full.workflows]
    last = [workload.workflows[-1].arrival_us for workload in (half, full)]
    assert last[0] == pytest.approx(2 * last[1], rel=0.01)


def test_a_duration_holds_as_many_workflows_as_arrive_in_it() -> None:
    steady = workload_of(CELL._replace(workflows=0, duration_s=10.0, arrivals="poisson"), 3)
    assert len(steady.workflows) == 400
    assert 7e6 < steady.workflows[-1].arrival_us < 13e6


def test_the_warm_up_is_load_but_is_not_judged() -> None:
    run = Run(CELL._replace(duration_s=100.0), "hexagent", 1)
    rows = outcome(run, [1.0] * 3).rows
    late = [row._replace(arrival_us=at) for row, at in zip(rows, (9_999_999, 10_000_000, 50_000_000), strict=True)]
    assert judged(run, tuple(late)) == tuple(late[1:])
    assert bound_req95(Bound(run.cell, 1)) is None


def test_a_trace_that_records_arrivals_has_others_only_under_a_load(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    node = '{"id": 0, "deps": [], "kind": "a", "prompt": 500, "output": 3}'
    trace.write_text("".join(f'{{"id": "w{n}", "arrival_ms": {n}, "nodes": [{node}]}}\n' for n in range(4)))
    cell = CELL._replace(workflows=0, workload="t", trace=str(trace), arrivals="poisson")
    with pytest.raises(InvalidArgument, match="recorded"):
        check_cell(cell)
    check_cell(cell._replace(load=0.5))
    two = [workload_of(cell._replace(load=0.5), seed).workflows[-1].arrival_us for seed in (1, 2)]
    assert two[0] != two[1]


def test_a_duration_that_judges_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="after the warm-up") as error:
        workload_of(CELL._replace(workflows=0, duration_s=1.0, load=0.01), 1)
    assert error.value.field == "duration_s"


def test_a_workload_over_again_has_its_workflows_in_other_orders() -> None:
    once = at_rate(generate("bfcl", Options(workflows=20, seed=1)), 500, "poisson", 1)
    workflows = over_again(once, 3, 1).workflows
    assert len({script.workflow_id for script in workflows}) == 60
    arrivals_us = [script.arrival_us for script in workflows]
    assert arrivals_us == sorted(arrivals_us)
    parts = [[script.items for script in workflows[start : start + 20]] for start in (0, 20, 40)]
    assert parts[0] != parts[1] != parts[2]
    assert [sorted(part) for part in parts] == [sorted(script.items for script in once.workflows)] * 3


def test_a_rate_keeps_the_order_of_arrival() -> None:
    workload = at_rate(generate("bfcl", Options(workflows=3, seed=1)), 500, "fixed", 1)
    assert [w.arrival_us for w in workload.workflows] == [0, 2_000_000, 4_000_000]


# --- cells and runs -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "gpt"}, "known: llama"),
        ({"cluster": "moon"}, "known: hetero-1"),
        ({"workload": "weather"}, "known: agents"),
        ({"world": "flat"}, "known: full, policy-only"),
        ({"engine_profile": "steam"}, "known: ideal"),
        ({"hardware": "abacus"}, "known: slower-stack, tables"),
        ({"tp": 3}, "not one of 1, 2, 4, 8"),
        ({"tools": -1.0}, "between 0 and 100"),
        ({"spread": 3.0}, "between 0.001 and 2"),
        ({"load": LOAD_RANGE[1] + 1}, "between 0.01 and 10"),
        ({"load": math.nan}, "between 0.01 and 10"),
        ({"noise": -0.1}, "between 0 and 2"),
        ({"link_gb_per_s": 0.0}, "between 0.1 and 1000"),
        ({"duration_s": 0.5, "workflows": 0}, "between 1 and 86400"),
        ({"duration_s": 5.0}, "as many workflows as it takes"),
        ({"arrivals": "weekly"}, "fixed, poisson"),
        ({"profile": "batch_us_max = -1"}, "whole number from 0"),
    ],
)
def test_a_cell_that_cannot_be_names_the_field_and_the_limit(changes: dict[str, object], said: str) -> None:
    with pytest.raises(HexagentError, match=said) as error:
        check_cell(CELL._replace(**changes))  # type: ignore[arg-type]
    assert error.value.field in (*changes, "batch_us_max")


def test_what_the_paper_leaves_open_can_be_set() -> None:
    plain = workload_of(CELL, 1)
    slow = workload_of(CELL._replace(tools=2.0), 1)
    times = [[i.tool_us for w in load.workflows for i in w.items] for load in (plain, slow)]
    assert sum(times[0])
    assert times[1] == [2 * tool_us for tool_us in times[0]]
    alike = workload_of(CELL._replace(spread=0.001), 1)
    assert len({len(w.items) for w in alike.workflows}) < len({len(w.items) for w in plain.workflows})
    assert {spec.tp for spec in cluster_of(CELL._replace(tp=2)).instances} == {2}


def test_a_row_has_the_published_names_and_says_what_is_unusual() -> None:
    run = Run(CELL._replace(workflows=0), "fcfs:least-loaded", 7)
    row = row_of(outcome(run, [1.0, 2.0, 4.0, 3.0]), 0.5)
    assert list(row) == ROW
    assert (row["policy"], row["dispatch"], row["load"]) == ("fcfs", "least-loaded", None)
    assert (row["req50"], row["req95"], row["lower_bound_req95"]) == (2.0, 4.0, 0.5)
    assert row["goodput"] == pytest.approx(3 / 4, rel=1e-3)  # one of four is later than three horizons
    unusual = row_of(outcome(run._replace(cell=run.cell._replace(noise=0.3, load=0.9)), [1.0]), None)
    assert list(unusual) == [*ROW, "noise"]
    assert (unusual["load"], unusual["noise"]) == (0.9, 0.3)


@pytest.mark.parametrize(
    ("policy", "world", "dispatch"),
    [
        ("fcfs", "policy-only", "predicted-finish"),
        ("fcfs", "full", "cache-aware"),
        ("hexagent", "full", "predicted-finish"),
        ("atlas:least-loaded", "full", "least-loaded"),
        ("aggregated", "full", "sticky"),
    ],
)
def test_a_row_says_how_calls_were_placed(policy: str, world: str, dispatch: str) -> None:
    assert Run(CELL._replace(world=world), policy, 1).dispatch == dispatch


def test_the_bound_for_fixed_roles_is_not_claimed_for_pools_made_one() -> None:
    rows = {
        world: row_of(outcome(Run(CELL._replace(world=world), "aggregated", 1), [1.0]), 0.5)
        for world in ("policy-only", "full")
    }
    assert rows["policy-only"]["lower_bound_req95"] is None
    assert rows["full"]["lower_bound_req95"] == 0.5


@pytest.mark.parametrize("world", sorted(POLICIES))
def test_every_policy_of_a_world_runs_and_the_same_seed_gives_the_same_rows(world: str) -> None:
    cell = CELL._replace(world=world, noise=0.1)
    for policy in POLICIES[world]:
        run = Run(cell, policy, 2)
        first = world_of(run).run().rows
        assert first == world_of(run).run().rows
        assert all(row.completed for row in first)
        bound = bound_req95(Bound(cell, 2))
        assert bound is not None
        assert bound <= required_scale([row.stretch for row in first], 95) or policy == "aggregated"


def test_baselines_are_told_apart() -> None:
    names = POLICIES["full"]
    assert len(published(names)) == 4
    assert len(strong(names)) == 8
    assert ours(names) == ["hexagent", "hexagent:cache-aware", "hexagent-plus", "hexagent-plus+hints", "clairvoyant"]
    assert len(every(names)) == len(names) - len(ours(names)) == 11


def test_clients_hint_under_a_policy_whose_name_says_so() -> None:
    assert Run(CELL, "fcfs:least-loaded+hints", 1).order == "fcfs+hints"
    hinted = Run(CELL._replace(workflows=2, hints=0.5), "hexagent-plus+hints", 1)
    assert (hinted.order, hinted.dispatch) == ("hexagent-plus+hints", "keeping")
    same = Run(hinted.cell._replace(hints=0.1), "hexagent-plus", 1)
    none = Run(hinted.cell._replace(hints=-1.0), "hexagent-plus", 1)
    said = []
    for run in (hinted, same, none):
        world = world_of(run)
        rows = world.run().rows
        said.append([world.tracker.history.record(row.workflow).graph.spec.hints.total_solo_us for row in rows])
    assert said[0] == said[1]
    assert all(said[0])
    assert not any(said[2])


# --- bootstrap and pooling ------------------------------------------------------------------------------------------
def test_scales_over_an_axis_are_those_of_one_run() -> None:
    stretches = np.random.default_rng(5).permuted(np.arange(1.0, 41.0).reshape(2, 20), axis=1)
    scales = required_scales(stretches, (50, 95, 99, 100))
    assert scales.tolist() == [[required_scale(row, percent) for percent in (50, 95, 99, 100)] for row in stretches]


def test_resamples_are_deterministic_and_paired() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    scales = resampled_scales(np.array([one, 2 * one]), (50, 100), resamples=200)
    assert scales.shape == (200, 2, 2)
    assert (scales == resampled_scales(np.array([one, 2 * one]), (50, 100), resamples=200)).all()
    assert (scales[:, 1] == 2 * scales[:, 0]).all()
    # The largest of five is in a resample of five with probability 1 - 0.8^5 = 0.672.
    assert (scales[:, 0, 1] == 50.0).mean() == pytest.approx(0.672, abs=0.1)


def test_an_interval_holds_the_middle_of_the_resamples() -> None:
    assert interval(3.0, np.arange(1.0, 1_002.0)) == (3.0, 26.0, 976.0)
    assert interval(2.0, np.full(10, 2.0)) == (2.0, 2.0, 2.0)


def test_policies_are_compared_over_the_workflows_that_all_of_them_have_run() -> None:
    runs = {
        "fcfs:least-loaded": [(1, [4.0, 2.0]), (2, [8.0, 2.0])],
        "atlas:least-loaded": [(1, [5.0, 3.0]), (2, [5.0, 3.0])],
        "hexagent": [(2, [3.0, 3.0]), (1, [2.0, 4.0])],
        "clairvoyant": [(1, [2.0, 2.0]), (2, [3.0, 3.0]), (3, [9.0, 9.0])],
    }
    outcomes = {p: [outcome(Run(CELL, p, seed), s) for seed, s in each] for p, each in runs.items()}
    pool = pooled(CELL, outcomes)
    assert pool.seeds == (1, 2)
    assert pool.stretches[0].tolist() == [4.0, 2.0, 8.0, 2.0]
    assert pool.req("hexagent", 95).value == 4.0
    got = reduction(pool, "hexagent", ["fcfs:least-loaded", "atlas:least-loaded"], 95)
    assert got.baseline == "atlas:least-loaded"
    assert got.share.value == pytest.approx(0.2)
    assert got.share.low <= 0.2 <= got.share.high
    none = got._replace(share=got.share._replace(value=0.0), resampled=np.zeros_like(got.resampled))
    mean = mean_share([got, none])
    assert mean == pytest.approx([part / 2 for part in got.share])
    assert underloaded(pool) is False
    del outcomes["clairvoyant"]
    assert underloaded(pooled(CELL, outcomes)) is None
    outcomes["clairvoyant"] = [o._replace(run=o.run._replace(policy="clairvoyant")) for o in outcomes["hexagent"]]
    assert underloaded(pooled(CELL, outcomes)) is True


def one_policy_each(**stretches: list[float]) -> Pooled:
    return pooled(CELL, {name: [outcome(Run(CELL, name, 1), values)] for name, values in stretches.items()})


def test_a_cell_counts_for_the_gap_by_what_there_is_to_gain_in_it() -> None:
    much = one_policy_each(hexagent=[4.0], atlas=[3.0], clairvoyant=[2.0])  # a quarter of a half
    little = one_policy_each(hexagent=[1.0], atlas=[1.02], clairvoyant=[0.99])
    gap = gap_closed([much, little], "atlas", 95)
    assert gap is not None
    assert gap == pytest.approx([(0.25 - 0.02) / (0.5 + 0.01)] * 3)
    assert gap_closed([little], "atlas", 95) is None


# --- the paper ------------------------------------------------------------------------------------------------------
def test_signs_are_compared_with_the_paper_s_table() -> None:
    cell = CELL._replace(cluster="hetero-1")
    stretches = {"fcfs:least-loaded": [4.0], "workflow-fcfs:least-loaded": [5.0], "hexagent": [3.0]}
    pool = pooled(cell, {p: [outcome(Run(cell, p, 1), s)] for p, s in stretches.items()})
    made = {(c.policy, c.other): c for c in paper.comparisons(pool)}
    assert made["hexagent", "fcfs"].here == pytest.approx((-0.25, -0.25))
    assert made["hexagent", "fcfs"].reported[0] == pytest.approx(6.21 / 13.81 - 1)
    assert made["hexagent", "fcfs"].differing == ()
    assert made["workflow-fcfs", "fcfs"].differing == (95, 99)
    assert (
        paper.comparisons(pooled(cell._replace(workload="lats"), {"hexagent": [outcome(Run(cell, "h", 1), [1.0])]}))
        == []
    )


def test_the_paper_s_evaluation_is_two_models_two_clusters_four_workloads() -> None:
    small = paper.experiments("policy-only", "trtllm-1.2.1", (101, 102), 0, full=False)
    assert len(small) == 16
    assert {experiment.seeds for experiment in small} == {(101, 102)}
    full = paper.experiments("policy-only", "trtllm-1.2.1", (101, 102), paper.FULL_POOL, full=True)
    assert len({experiment.cell for experiment in full}) == len(full)
    for cell, seeds in full:
        check_cell(cell)
        if cell == Cell(*cell[:5]):
            assert len(seeds) * GENERATORS[cell.workload].workflows >= paper.FULL_POOL


def test_of_a_trace_as_many_workflows_are_cells_as_have_so_many_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = '{{"id": {n}, "deps": [], "kind": "a", "prompt": 500, "output": 3}}'
    nodes = ", ".join(node.format(n=n) for n in range(3))
    for name, workflows in (("many", 4), ("one", 1)):
        line = f'{{"id": "{{n}}", "nodes": [{nodes}]}}\n'.replace("{n}", "w%d")
        (tmp_path / f"{name}.jsonl").write_text("".join(line % n for n in range(workflows)))
    traces = sorted(tmp_path.glob("*.jsonl"))
    monkeypatch.setattr(paper, "TRACE_CALLS", 8)
    found = paper.recorded("full", "ideal", (101,), traces)
    assert [(cell.workload, cell.workflows) for cell, _ in found] == [("many", 2), ("one", 1)]
    for cell, _ in found:
        check_cell(cell)
        assert (cell.world, cell.engine_profile) == ("full", "ideal")
    monkeypatch.setattr(paper, "TRACE_CALLS", 2)
    assert [cell.workflows for cell, _ in paper.recorded("full", "ideal", (101,), traces)] == [1, 1]
