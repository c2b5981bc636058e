"""Generators keep the sizes the benchmark states, give runnable scripts and the same bytes everywhere."""

import os
import subprocess
import sys

import pytest

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.sim.workloads.generators import GENERATORS, KINDS, generate
from hexagent.sim.workloads.model import WorkItem, Workload, check_workflow, digest
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.statistics import summary

SEEDS = range(1, 7)
# Workload: workflows, rate/s, mean calls, largest number of calls, mean prompt and output tokens a call.
STATED = {
    "sharegpt": (100, 10, 6.66, 80, 256, 277),
    "bfcl": (400, 40, 10.75, 70, 735, 34),
    "lats": (100, 40, 159.7, 480, 467, 72.6),
}


def _items(workloads: list[Workload]) -> list[WorkItem]:
    return [item for workload in workloads for workflow in workload.workflows for item in workflow.items]


@pytest.mark.parametrize("name", STATED)
def test_sizes_are_those_stated(name: str) -> None:
    count, rate, calls, most, prompt, output = STATED[name]
    workloads = [generate(name, Options(seed=seed)) for seed in SEEDS]
    items = _items(workloads)
    assert {len(workload.workflows) for workload in workloads} == {count}
    assert workloads[0].workflows[-1].arrival_us == (count - 1) * 1_000_000 // rate
    for workload in workloads:
        assert summary(workload)[0].mean_calls == pytest.approx(calls, rel=0.05)
    assert max(len(workflow.items) for workload in workloads for workflow in workload.workflows) <= most
    assert sum(item.prompt_tokens for item in items) / len(items) == pytest.approx(prompt, rel=0.05)
    assert sum(item.output_tokens for item in items) / len(items) == pytest.approx(output, rel=0.05)


def test_largest_workflows_reach_the_stated_maximum() -> None:
    for name in ("sharegpt", "bfcl"):
        rows = [summary(generate(name, Options(seed=seed)))[0] for seed in SEEDS]
        assert sum(row.max_calls for row in rows) / len(rows) > 0.8 * STATED[name][3]


def test_mixed_holds_equal_parts() -> None:
    rows = {row.workflow_class: row for row in summary(generate("mixed"))}
    assert [rows[name].workflows for name in ("sharegpt", "bfcl", "lats", "all")] == [34, 33, 33, 100]
    assert rows["all"].span_s == 9.9
    assert rows["all"].calls == sum(rows[name].calls for name in STATED)


@pytest.mark.parametrize("name", GENERATORS)
def test_scripts_can_be_run(name: str) -> None:
    workload = generate(name, Options(seed=3, tenants=("a", "b")))
    ids = [workflow.workflow_id for workflow in workload.workflows]
    assert len(set(ids)) == len(ids)
    assert {workflow.tenant for workflow in workload.workflows} == {"a", "b"}
    assert [w.arrival_us for w in workload.workflows] == sorted(w.arrival_us for w in workload.workflows)
    for workflow in workload.workflows:
        check_workflow(workflow)


@pytest.mark.parametrize("name", GENERATORS)
def test_cap_tells_nothing_about_an_output(name: str) -> None:
    caps: dict[tuple[str, str], set[int]] = {}
    for seed in (1, 2):
        for workflow in generate(name, Options(seed=seed, workflows=20)).workflows:
            for item in workflow.items:
                caps.setdefault((workflow.workflow_class, item.role), set()).add(item.max_tokens)
    assert all(len(values) == 1 for values in caps.values())


def test_function_calls_wait_for_tools_and_extend_the_prompt_before() -> None:
    for workflow in generate("bfcl", Options(workflows=20)).workflows:
        assert workflow.items[0].tool_us == 0
        for before, item in zip(workflow.items, workflow.items[1:], strict=False):
            assert 50_000 <= item.tool_us <= 500_000
            assert item.segments[: len(before.segments)] == before.segments
            assert item.segments[len(before.segments)].output_of == before.index
            assert item.deps == (before.index,)


def test_history_makes_prompts_hold_all_before() -> None:
    plain = _items([generate("sharegpt", Options(seed=seed)) for seed in SEEDS])
    full = _items([generate("sharegpt-history", Options(seed=seed)) for seed in SEEDS])
    assert sum(item.segments[-1].tokens for item in full) / len(full) == pytest.approx(256, rel=0.05)
    assert sum(i.prompt_tokens for i in full) / len(full) > 10 * sum(i.prompt_tokens for i in plain) / len(plain)


def test_tree_search_fans_out_and_joins() -> None:
    for workflow in generate("lats", Options(workflows=20)).workflows:
        width = sum(not item.deps for item in workflow.items)
        assert 4 <= width <= 12
        first = workflow.items[:width]
        assert {item.segments for item in first} == {first[0].segments}
        selects = [item for item in workflow.items if item.role == "select"]
        assert len(selects[0].deps) == width
        assert [item.round for item in selects] == list(range(len(selects)))
        assert workflow.items[-1].role == "answer"


def test_a_workflow_keeps_its_calls_when_rate_and_arrivals_change() -> None:
    fixed = generate("bfcl", Options(workflows=50))
    bursty = generate("bfcl", Options(workflows=50, rate_per_s=2.5, arrivals="gamma:4"))
    assert [w._replace(arrival_us=0) for w in fixed.workflows] == [w._replace(arrival_us=0) for w in bursty.workflows]


def test_scale_multiplies_workflows_and_rate() -> None:
    workload = generate("sharegpt", Options(scale=2))
    assert len(workload.workflows) == 200
    assert workload.workflows[-1].arrival_us == 199 * 50_000


def test_other_seeds_are_other_workloads() -> None:
    assert len({digest(generate("mixed", Options(seed=seed, workflows=9))) for seed in range(5)}) == 5


@pytest.mark.parametrize("sigma_milli", [1, 500, 1_000])
def test_spread_of_calls_keeps_mean_prompt(sigma_milli: int) -> None:
    rows = [summary(generate("bfcl", Options(seed=seed, calls_sigma_milli=sigma_milli)))[0] for seed in SEEDS]
    calls = sum(row.calls for row in rows)
    assert calls / sum(row.workflows for row in rows) == pytest.approx(10.75, rel=0.05)
    assert sum(row.mean_prompt_tokens * row.calls for row in rows) / calls == pytest.approx(735, rel=0.05)


def test_same_bytes_under_every_hash_seed() -> None:
    program = (
        "from hexagent.sim.workloads.generators import GENERATORS, generate\n"
        "from hexagent.sim.workloads.model import digest\n"
        "from hexagent.sim.workloads.options import Options\n"
        "for name in GENERATORS:\n"
        "    for arrivals in ('fixed', 'poisson', 'gamma:4'):\n"
        "        print(digest(generate(name, Options(seed=7, workflows=12, arrivals=arrivals))))\n"
    )
    outputs = set()
    for hash_seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 3 * len(GENERATORS)


def test_bytes_are_pinned() -> None:
    """A change of any draw changes every published figure: it must be meant."""
    assert digest(generate("mixed", Options(seed=1, workflows=30, arrivals="gamma:2"))) == PINNED


PINNED = "b7fbeae762893a36955f903f4da504aadae741e0c247598284bf80c777f270db"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(NotFound) as caught:
        generate("sharegtp")
    assert caught.value.details["known"] == ", ".join(sorted(GENERATORS))
    assert {kind for generator in GENERATORS.values() for kind in generator.kinds} == set(KINDS)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (Options(workflows=-1), "workflows"),
        (Options(rate_per_s=-1), "rate_per_s"),
        (Options(rate_per_s=float("nan")), "rate_per_s"),
        (Options(arrivals="uniform"), "arrivals"),
        (Options(arrivals="gamma:0"), "arrivals"),
        (Options(arrivals="gamma:x"), "arrivals"),
        (Options(arrivals="fixed:2"), "arrivals"),
        (Options(scale=0), "scale"),
        (Options(tenants=()), "tenants"),
        (Options(tenants=("a b",)), "tenants"),
        (Options(calls_sigma_milli=-1), "calls_sigma_milli"),
        (Options(workflows=1_000_000, scale=2), "scale"),
    ],
)
def test_bad_options_are_named(options: Options, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        generate("bfcl", options)
    assert caught.value.field == field


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_workflows_do(count: int) -> None:
    for name in GENERATORS:
        assert len(generate(name, Options(workflows=count)).workflows) == count
