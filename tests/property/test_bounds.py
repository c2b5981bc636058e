"""The lower bound is one: no step beats its rates, no policy its scales; and it is near where little stands between."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, ClusterSpec
from hexagent.core.instance.times import TrueTimes
from hexagent.core.policy.registry import keeps_roles, known
from hexagent.sim.bounds.cell import cell_of
from hexagent.sim.bounds.engine import Engine, Reach
from hexagent.sim.bounds.lower import LowerBound, lower_bound
from hexagent.sim.bounds.pieces import pieces_of
from hexagent.sim.clusters import named_cluster
from hexagent.sim.conditions import CONDITIONS, Conditions
from hexagent.sim.fleet import Latency
from hexagent.sim.metrics import PERCENTS, required_scale
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, WorkItem, Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World

LONGEST, SHORTEST = 9_000, 20
MODELS = ("llama-3.1-70b", "qwen3-235b-a22b")


def engine_of(cluster: ClusterSpec, number: int) -> tuple[Engine, TrueTimes]:
    spec = cluster.instances[number % len(cluster.instances)]
    engine = Engine.of(cluster, spec)
    return engine, TrueTimes(engine.table, Truth.drawn(cluster, spec.instance_id))


@settings(max_examples=60)
@given(
    model=st.sampled_from(MODELS),
    number=st.integers(0, 15),
    kappa=st.sampled_from([0.0, 1e-5, 1e-4]),
    chunks=st.lists(st.tuples(st.integers(1, 2_000), st.integers(0, LONGEST - 2_000)), min_size=1, max_size=40),
    key=st.integers(0, 2**64 - 1),
)
def test_no_prefill_step_beats_the_rate(
    model: str, number: int, kappa: float, chunks: list[tuple[int, int]], key: int
) -> None:
    while sum(new for new, _ in chunks) > 8_192:
        chunks.pop()
    engine, times = engine_of(named_cluster("hetero-1", model), number)
    work = sum(new + kappa * new * (2 * prefix + new) for new, prefix in chunks)
    rate = engine.prefill_rate(kappa, Reach(LONGEST, SHORTEST, False))
    assert work <= rate * times.prefill_us(tuple(chunks), 0, 0, key, 0)


@settings(max_examples=60)
@given(
    number=st.integers(0, 15),
    kappa=st.sampled_from([0.0, 1e-4]),
    contexts=st.lists(st.integers(SHORTEST + 1, LONGEST), min_size=1, max_size=128),
    key=st.integers(0, 2**64 - 1),
)
def test_no_decode_step_beats_the_rate_or_the_least_time(
    number: int, kappa: float, contexts: list[int], key: int
) -> None:
    engine, times = engine_of(named_cluster("hetero-1"), number)
    reach = Reach(LONGEST, SHORTEST, False)
    step_us = times.decode_us(len(contexts), sum(contexts) // len(contexts), key, 0)
    # A call counts with the context before its newest token: means are rounded down.
    work = sum(1 + kappa * (context - 1) for context in contexts)
    assert work <= engine.decode_rate(kappa, reach) * step_us
    assert engine.least_step_us(np.array([float(max(contexts) - 1)]), reach)[0] <= step_us


@settings(max_examples=60)
@given(
    number=st.integers(0, 15),
    new=st.lists(st.integers(1, 8_192), min_size=1, max_size=4),
    others=st.integers(0, 30),
    key=st.integers(0, 2**64 - 1),
)
def test_no_way_to_compute_a_prompt_beats_its_least_time(number: int, new: list[int], others: int, key: int) -> None:
    engine, times = engine_of(named_cluster("hetero-1"), number)
    spent_us, prefix = 0, 0
    for chunk in new:
        room = (8_192 - chunk) // 250
        spent_us += times.prefill_us(((chunk, prefix), *[(250, 0)] * min(others, room)), 0, 0, key, prefix)
        prefix += chunk
    reach = Reach(4 * 8_192, SHORTEST, False)
    least_us = engine.least_prefill_us(np.array([float(prefix)]), np.array([float(prefix) ** 2]), reach)[0]
    assert 0 < least_us <= spent_us


@pytest.mark.parametrize("name", sorted(GENERATORS))
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_no_policy_is_below_the_bound(name: str, prefix_cache: bool) -> None:
    """All policies and profiles in turn, under rates from idle to a burst."""
    profiles, policies = sorted(PROFILES), known(clairvoyant=True)
    for seed in range(2):
        turn = 2 * sorted(GENERATORS).index(name) + seed + 2 * prefix_cache
        size = 2 if name in ("lats", "mixed") else 8
        workload = generate(name, Options(workflows=size, rate_per_s=(1, 30, 400)[turn % 3], seed=seed))
        cluster = named_cluster("mixed-3", profile=profiles[turn % len(profiles)], prefix_cache=prefix_cache)
        cluster = cluster._replace(noise_ppm=(70_000, 0)[turn % 2])
        policy = policies[turn % len(policies)]
        slower = Conditions(prefill_factor_ppm=1_400_000, decode_factor_ppm=2_000_000) if turn % 5 == 0 else CONDITIONS
        result = World(cluster, workload, policy, seed, conditions=slower).run()
        bound = lower_bound(cluster, workload, seed, slower, fixed_roles=keeps_roles(policy, cluster))
        check_not_below(result.rows, bound)


@pytest.mark.parametrize("policy", known(clairvoyant=True))
def test_no_policy_is_below_the_bound_under_overload(policy: str) -> None:
    """One pair of instances gets several times what it can prefill."""
    workload = generate("bfcl", Options(workflows=16, rate_per_s=100, seed=5))
    mixed = named_cluster("mixed-3")
    pair = tuple(i for i in mixed.instances if i.instance_id in ("prefill-a100-0", "decode-h200-0"))
    cluster = mixed._replace(noise_ppm=0, instances=pair)
    bound = lower_bound(cluster, workload, 1, fixed_roles=keeps_roles(policy, cluster))
    check_not_below(World(cluster, workload, policy, 1).run().rows, bound)
    cell = cell_of(cluster._replace(seed=1), workload)
    # Not by longest paths alone: the work of all together is what it stands on here.
    assert not keeps_roles(policy, cluster) or bound.req95 > 1.2 * np.max(cell.path_us / cell.solo_us)


def check_not_below(rows: tuple, bound: LowerBound) -> None:  # type: ignore[type-arg]
    for percent, least in zip(PERCENTS, bound, strict=True):
        assert least <= required_scale([row.stretch for row in rows], percent)


def item(index: int, deps: tuple[int, ...] = (), prompt: int = 4_000, **changes: int) -> WorkItem:
    made = WorkItem(index, deps, "worker", prompt, 20, 512, (Segment(f"s{index}", prompt),))
    return made._replace(**changes)  # type: ignore[arg-type]


def one(*items: WorkItem, conversation: bool = False) -> Workload:
    return Workload("test", "test", (ScriptedWorkflow("w", "c", "default", 1_000, items, conversation),))


@pytest.mark.parametrize(
    "workload",
    [
        one(item(0)),
        one(item(0), item(1, (0,), tool_us=700_000), item(2, (1,))),
        one(item(0), item(1, (0,), gap_us=9_000_000), conversation=True),
    ],
    ids=["call", "chain", "conversation"],
)
def test_a_workflow_alone_is_near_its_bound(workload: Workload) -> None:
    cluster = named_cluster("mixed-3")._replace(noise_ppm=0)
    stretch = World(cluster, workload, "hexagent", 1).run().rows[0].stretch
    assert lower_bound(cluster, workload, 1).req100 <= stretch
    # The policy does not know yet which instance is fast, so it gets the chance of equal ones.
    even = cluster._replace(hidden_factor_ppm=(1_000_000, 1_000_000))
    stretch = World(even, workload, "hexagent", 1, Latency.even(500)).run().rows[0].stretch
    assert lower_bound(even, workload, 1).req100 == pytest.approx(stretch, rel=0.04)


def test_a_branch_its_join_can_do_without_counts_for_nothing() -> None:
    cluster = named_cluster("mixed-3")._replace(noise_ppm=0)
    calls = [item(0), item(1), item(2, prompt=60_000)]
    joined = one(*calls, item(3, (0, 1, 2), join_k=2))
    bound = lower_bound(cluster, joined, 1)
    without = lower_bound(cluster, one(item(0), item(1), item(2, (0, 1))), 1)
    assert bound == pytest.approx(without, rel=0.005)
    check_not_below(World(cluster, joined, "hexagent", 1).run().rows, bound)


def test_with_reuse_only_what_a_workflow_has_to_itself_is_counted_and_once() -> None:
    shared, own, late = Segment("system", 500), Segment("own", 300), Segment("late", 200)
    first = WorkItem(0, (), "a", 800, 10, 512, (shared, own))
    second = WorkItem(1, (0,), "a", 1_010, 10, 512, (shared, own, Segment("answer", 10, 0), late))
    other = WorkItem(0, (), "a", 700, 10, 512, (shared, late))
    workload = Workload(
        "test",
        "test",
        (
            ScriptedWorkflow("w", "c", "default", 0, (first, second)),
            ScriptedWorkflow("v", "c", "default", 0, (other,)),
        ),
    )
    assert [(p.workflow, p.holders, p.tokens, p.pairs) for p in pieces_of(workload, reuse=True)] == [
        (0, (0, 1), 300, 300 * (2 * 500 + 300)),
        (0, (1,), 200, 200 * (2 * 810 + 200)),
        (1, (0,), 200, 200 * (2 * 500 + 200)),
    ]
    assert [(p.tokens, p.pairs) for p in pieces_of(workload, reuse=False)] == [
        (tokens, tokens**2) for tokens in (800, 1_010, 700)
    ]


def test_nothing_to_serve_needs_no_scale() -> None:
    assert lower_bound(named_cluster("mixed-3"), Workload("none", "none", ()), 1) == (0, 0, 0, 0, 0)
