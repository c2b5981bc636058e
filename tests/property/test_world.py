"""Whole simulated runs of drawn cells, watched at every event: what holds whatever the policy and the engines are."""

import random
from typing import Any, NamedTuple

import pytest

from hexagent.core.ids import CallId
from hexagent.core.instance.spec import PROFILES, ClusterSpec, Role
from hexagent.core.policy.registry import keeps_roles, known
from hexagent.core.units import NEVER_US, ceil_div
from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.bounds.lower import lower_bound
from hexagent.sim.clients import call_id
from hexagent.sim.clusters import named_cluster
from hexagent.sim.metrics import PERCENTS, required_scale
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import RunResult, World

SIZES = {"lats": 1, "mixed": 3}
POLICIES = known(clairvoyant=True)


class Case(NamedTuple):
    cluster: ClusterSpec
    workload: Workload
    policy: str
    seed: int


def drawn(seed: int) -> Case:
    """Policies without caches, then with; profiles and workloads in turn; rates and scarce KV by chance."""
    rng = random.Random(seed)
    name = sorted(GENERATORS)[seed % len(GENERATORS)]
    rate = rng.choice([2, 40, 400])
    workload = generate(name, Options(workflows=SIZES.get(name, 6), rate_per_s=rate, seed=seed))
    profile = sorted(PROFILES)[seed % len(PROFILES)]
    cluster = named_cluster(rng.choice(["mini", "mixed-3"]), profile=profile, prefix_cache=seed >= len(POLICIES))
    if rng.random() < 0.5:
        largest = max(item.prompt_tokens + item.max_tokens for w in workload.workflows for item in w.items)
        blocks = ceil_div(largest, 32) + rng.randrange(100)
        cluster = cluster._replace(instances=tuple(i._replace(kv_blocks=blocks) for i in cluster.instances))
    return Case(cluster, workload, POLICIES[seed % len(POLICIES)], seed)


class Watched(World):
    """Looks at every instance after each of its events, and at the scheduler after each of its own."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.cluster, case.workload, case.policy, case.seed)
        self.outcomes: dict[CallId, CallOutcome] = {}
        settle = self.fleet._settle

        def watched(station: Any, effects: Any, now_us: int) -> None:
            settle(station, effects, now_us)
            self.look_at(station, now_us)

        self.fleet._settle = watched  # type: ignore[method-assign]

    def look_at(self, station: Any, now_us: int) -> None:
        load, spec = station.model.load(now_us), station.spec
        assert load.kv_used_blocks + load.kv_cached_blocks + load.kv_free_blocks == spec.kv_blocks
        assert min(load.kv_used_blocks, load.kv_cached_blocks, load.kv_free_blocks) >= 0
        assert load.decoding + load.waiting <= len(station.model.tickets())
        assert load.decoding <= spec.max_batch
        if load.queued and station.model.next_due_us() == NEVER_US:
            assert load.kv_used_blocks, f"{spec.instance_id} stands idle and empty before {load.queued} calls"

    def _tell_scheduler(self, event: Any) -> None:
        super()._tell_scheduler(event)
        scheduler = self.scheduler
        if scheduler.epoch and any(len(waiting) for waiting in scheduler.waiting.values()):
            assert scheduler.ledger.attempts, "calls wait and nothing runs"

    def _outcome(self, outcome: CallOutcome, now_us: int) -> None:
        assert outcome.call not in self.outcomes
        self.outcomes[outcome.call] = outcome
        super()._outcome(outcome, now_us)


@pytest.mark.parametrize("seed", range(2 * len(POLICIES)))
def test_what_holds_of_every_run(seed: int) -> None:
    case = drawn(seed)
    world = Watched(case)
    result = world.run()
    check_completed(case, world, result)
    check_order(case, world.outcomes)
    stretches = [row.stretch for row in result.rows]
    bound = lower_bound(case.cluster, case.workload, case.seed, fixed_roles=keeps_roles(case.policy, case.cluster))
    for percent, least in zip(PERCENTS, bound, strict=True):
        assert least <= required_scale(stretches, percent)


def check_completed(case: Case, world: Watched, result: RunResult) -> None:
    """Nothing is lost, nothing runs twice, and nothing is left behind."""
    assert [row.status for row in result.rows] == ["COMPLETED"] * len(case.workload.workflows)
    assert result.calls == len(world.outcomes) == sum(len(w.items) for w in case.workload.workflows)
    assert not world.scheduler.ledger.attempts
    assert not any(world.scheduler.waiting.values())
    for station in world.fleet.stations.values():
        assert not station.model.tickets()
        assert station.model.load(result.ended_us).kv_used_blocks == 0


def check_order(case: Case, outcomes: dict[CallId, CallOutcome]) -> None:
    """Stages follow each other, and calls what they wait for and the tools between."""
    prefill = {spec.instance_id for spec in case.cluster.instances if spec.role is Role.PREFILL}
    kept = keeps_roles(case.policy, case.cluster)
    for script in case.workload.workflows:
        ends_us: list[int] = []
        for item in script.items:
            outcome = outcomes[CallId(script.workflow_id, call_id(item))]
            times = outcome.times
            assert outcome.output_tokens == item.output_tokens
            assert times.dispatched_us < times.prefill_end_us <= times.end_us
            ready_us = max([script.arrival_us, *[ends_us[dep] for dep in item.deps]]) + item.tool_us
            assert times.dispatched_us > ready_us
            if outcome.prefill_instance != outcome.decode_instance and item.output_tokens > 1:
                stages = (times.prefill_end_us, times.transfer_start_us, times.transfer_end_us, times.decode_start_us)
                assert list(stages) == sorted(stages)
            if kept:
                assert outcome.prefill_instance in prefill
                assert outcome.decode_instance not in prefill or item.output_tokens == 1
            ends_us.append(times.end_us)
