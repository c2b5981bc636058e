"""Clusters of several models, adapters and precisions: no call runs where what it needs is not served."""

from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.errors import HexagentError
from hexagent.core.estimate.tables import load_table
from hexagent.core.ids import CallId
from hexagent.core.instance.needs import ANYTHING, Needs, served, serves
from hexagent.core.instance.spec import PROFILES, InstanceSpec, Lora, Role
from hexagent.core.policy.registry import known
from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.clients import call_id
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import Target, Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.targets import aimed
from hexagent.sim.world import World
from tests.sim.cases import cluster, instance

POLICIES = known(clairvoyant=True)
MODELS = {"llama-3.1-70b": 4, "llama-3.1-8b": 1}  # and GPUs of an instance
ADAPTERS = ("chess", "sql")
TARGETS = tuple(Target(*parts) for parts in product(MODELS, ("", *ADAPTERS), ("", "fp8", "bf16")))
REFUSALS = ("UNKNOWN_LORA", "PRECISION_NOT_SERVED")


class Pool(NamedTuple):
    """A prefill and a decode instance that are alike."""

    gpu: str
    precision: str
    loras: tuple[str, ...]


POOLS = st.builds(
    Pool,
    st.sampled_from(["h100", "h200"]),
    st.sampled_from(["bf16", "fp8"]),
    st.sampled_from([ADAPTERS, ("sql",), ()]),
)


def instances_of(
    model: str, pools: list[Pool], cached: bool, apart: bool, profile: str = "trtllm-1.2.1"
) -> list[InstanceSpec]:
    """KV of different precisions stays `apart`, or all of it is bf16."""
    found = []
    for number, (gpu, precision, loras) in enumerate(pools):
        for role in (Role.PREFILL, Role.DECODE):
            kv_precision = precision if apart else "bf16"
            changes = {"tp": MODELS[model], "precision": precision, "prefix_cache": cached, "model": model}
            changes["profile"] = profile
            adapters = tuple(Lora(name, 16) for name in loras)
            kv_blocks = load_table(gpu, model, MODELS[model], precision).kv_tokens // 32
            name = f"{role.name.lower()}-{model}-{number}"
            found.append(instance(name, gpu, role, kv_blocks, **changes, loras=adapters, kv_precision=kv_precision))
    return found


class Watched(World):
    outcomes: dict[CallId, CallOutcome]

    def _outcome(self, outcome: CallOutcome, now_us: int) -> None:
        self.outcomes[outcome.call] = outcome
        super()._outcome(outcome, now_us)


def workload_of(targets: list[Target], seed: int) -> Workload:
    return aimed(generate("bfcl", Options(workflows=3, rate_per_s=400, seed=seed)), tuple(targets))


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    pools=st.lists(st.lists(POOLS, min_size=1, max_size=3), min_size=len(MODELS), max_size=len(MODELS)),
    cached=st.booleans(),
    apart=st.booleans(),
    profile=st.sampled_from(sorted(PROFILES)),
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3),
    seed=st.integers(1, 5),
)
def test_calls_run_where_their_needs_are_served_or_are_refused(
    policy: str, pools: list[list[Pool]], cached: bool, apart: bool, profile: str, targets: list[Target], seed: int
) -> None:
    by_model = {
        model: instances_of(model, own, cached, apart, profile) for model, own in zip(MODELS, pools, strict=True)
    }
    specs = {spec.instance_id: spec for own in by_model.values() for spec in own}
    workload = workload_of(targets, seed)
    world = Watched(cluster(*specs.values()), workload, policy, seed)
    world.outcomes = {}
    asked = {item.target for script in workload.workflows for item in script.items}
    if not all(served(by_model[target.model], target.needs) for target in asked):
        with pytest.raises(HexagentError) as refused:
            world.run()
        assert refused.value.reason in REFUSALS
        return
    rows = world.run().rows
    assert [row.status for row in rows] == ["COMPLETED"] * len(rows)
    assert not any(world.scheduler.waiting.values())
    for script in workload.workflows:
        for item in script.items:
            outcome = world.outcomes[CallId(script.workflow_id, call_id(item))]
            for name in (outcome.prefill_instance, outcome.decode_instance or outcome.prefill_instance):
                assert specs[name].model == item.target.model
                assert serves(specs[name], item.target.needs)


def test_a_horizon_is_that_of_the_instances_that_serve_the_call() -> None:
    """The fp8 pair is the faster one."""
    specs = instances_of("llama-3.1-70b", [Pool("h100", "bf16", ()), Pool("h200", "fp8", ("sql",))], False, False)
    horizons = {}
    for needs in (ANYTHING, Needs("sql"), Needs(min_precision="bf16")):
        world = World(cluster(*specs), workload_of([Target("llama-3.1-70b", *needs)], 1), "fcfs", 1)
        horizons[needs] = [row.solo_us for row in world.run().rows]
    assert horizons[ANYTHING] == horizons[Needs("sql")]
    assert all(
        exact > any_ for exact, any_ in zip(horizons[Needs(min_precision="bf16")], horizons[ANYTHING], strict=True)
    )
