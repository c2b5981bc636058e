"""The world in which engines cache prefixes: every policy serves, within KV, and gets the hits its placement earns."""

import pytest

from hexagent.core.instance.spec import Role
from hexagent.core.policy.registry import known
from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.clusters import aggregated, named_cluster
from hexagent.sim.metrics import summary
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import RunResult, World


class Watched(World):
    """Keeps outcomes, and looks at every instance's blocks four times a second."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.outcomes: list[CallOutcome] = []
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.schedule(0, self._watch)

    def _watch(self, now_us: int) -> None:
        for station in self.fleet.stations.values():
            load = station.model.load(now_us)
            assert load.kv_used_blocks + load.kv_cached_blocks + load.kv_free_blocks == station.spec.kv_blocks
            assert min(load.kv_used_blocks, load.kv_cached_blocks, load.kv_free_blocks) >= 0
        for instance in self.scheduler.ledger.instances.values():
            assert instance.kv_free_tokens >= 0
        if not self._ended:
            self.schedule(now_us + 250_000, self._watch)

    def _outcome(self, outcome: CallOutcome, now_us: int) -> None:
        self.outcomes.append(outcome)
        super()._outcome(outcome, now_us)


def watched(
    workload: Workload, policy: str, kv_blocks: int = 0, profile: str = "trtllm-1.2.1"
) -> tuple[Watched, RunResult]:
    cluster = named_cluster("mixed-3", profile=profile, prefix_cache=True)
    if policy.startswith("aggregated"):
        cluster = aggregated(cluster)
    if kv_blocks:
        cluster = cluster._replace(instances=tuple(i._replace(kv_blocks=kv_blocks) for i in cluster.instances))
    world = Watched(cluster, workload, policy, 1)
    return world, world.run()


@pytest.mark.parametrize("policy", [name for name in known() if ":" not in name] + ["hexagent:cache-aware"])
def test_every_workflow_completes_in_caches_that_evict(policy: str) -> None:
    """130 blocks hold two of these prompts with their longest output, and hardly what others leave behind."""
    world, result = watched(generate("bfcl", Options(workflows=16, seed=2)), policy, kv_blocks=130)
    assert summary(result.rows).completed == 16
    assert result.reuse.attempts == result.calls
    assert 0 < result.reuse.reported_tokens < result.reuse.prompt_tokens
    assert not world.scheduler.ledger.attempts
    for outcome in world.outcomes:
        assert outcome.cached_tokens % 32 == 0
        assert outcome.cached_tokens < outcome.prompt_tokens


@pytest.mark.parametrize("profile", ["push", "ideal"])
def test_beliefs_follow_engines_that_evict(profile: str) -> None:
    reuse = watched(generate("bfcl", Options(workflows=30, seed=3)), "fcfs", 130, profile)[1].reuse
    assert reuse.reported_tokens > reuse.prompt_tokens // 4
    assert reuse.wrong_tokens < reuse.prompt_tokens // 20


def test_placement_that_knows_the_cache_reuses_more() -> None:
    workload = generate("bfcl", Options(workflows=40, seed=4))
    blind, aware = (watched(workload, p)[1].reuse for p in ("fcfs:predicted-finish", "fcfs:cache-aware"))
    assert aware.prompt_tokens == blind.prompt_tokens
    assert aware.prompt_tokens - aware.reported_tokens < 0.85 * (blind.prompt_tokens - blind.reported_tokens)


def test_a_conversation_s_short_turns_run_where_it_decodes() -> None:
    world, _ = watched(generate("bfcl", Options(workflows=20, seed=5)), "conversation-sticky")
    local = [o for o in world.outcomes if o.prefill_instance == o.decode_instance]
    assert len(local) > len(world.outcomes) // 2
    roles = {spec.instance_id: spec.role for spec in named_cluster("mixed-3").instances}
    assert {roles[o.prefill_instance] for o in local} == {Role.DECODE}
    assert all(o.kv_bytes == 0 for o in local)
    assert all(o.prompt_tokens - o.cached_tokens <= 256 for o in local)


def test_the_full_world_is_deterministic() -> None:
    workload = generate("bfcl", Options(workflows=10, seed=6))
    for policy in ("hexagent:cache-aware", "conversation-sticky"):
        first, second = (watched(workload, policy, 130)[1] for _ in range(2))
        assert first.digest == second.digest
