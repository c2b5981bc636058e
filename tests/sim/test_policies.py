"""Every policy in whole simulated runs: all work is done, the same each time, and each knows what it should."""

import importlib
import os
import subprocess
import sys

import pytest

from hexagent.core.policy.registry import known
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.model import WorkflowStatus
from hexagent.sim.clusters import named_cluster
from hexagent.sim.fleet import Latency
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World
from tests.sim.test_world import Watched, _item, _one, run

# Without prefix caches the other dispatchers are one of these.
POLICIES = [name for name in known(clairvoyant=True) if not name.endswith((":predicted-finish", ":cache-aware"))]
FEW = ("fcfs:least-loaded", "aggregated", "hexagent")
RUNS = [
    (name, policy)
    for name in sorted(GENERATORS)
    for policy in POLICIES
    if name in ("bfcl", "lats", "sharegpt") or policy in FEW
]


@pytest.mark.parametrize(("name", "policy"), RUNS)
def test_every_workflow_completes(name: str, policy: str) -> None:
    workload = generate(name, Options(workflows=3, seed=2))
    world = World(named_cluster("mixed-3"), workload, policy, 1)
    result = world.run()
    calls = sum(len(w.items) for w in workload.workflows)
    assert [row.workflow for row in result.rows] == [w.workflow_id for w in workload.workflows]
    assert all(row.completed and row.status == "COMPLETED" for row in result.rows)
    assert result.calls == result.decisions == calls
    for row, script in zip(result.rows, workload.workflows, strict=True):
        # A tool's measured time has the way of its start's answer and of its end in it.
        tool_ways_us = sum(Latency()[:2]) * len([item for item in script.items if item.tool_us])
        assert 0 <= row.horizon_us - row.solo_us <= tool_ways_us
        assert 0.7 < row.stretch < 30
        assert world.tracker.history.record(script.workflow_id).graph.status is WorkflowStatus.COMPLETED
    assert not world.scheduler.ledger.attempts
    assert not world.scheduler.projection.workflows


def test_aggregated_instances_serve_what_they_prefill_and_mostly_keep_their_workflows() -> None:
    workload = generate("bfcl", Options(workflows=24, seed=3))
    world = Watched(named_cluster("mixed-3"), workload, "aggregated", 1)
    separate = run(workload, "hexagent")
    rows = world.run().rows
    assert all(row.completed for row in rows)
    assert [row.solo_us for row in rows] == [row.solo_us for row in separate.rows]
    assert {o.prefill_instance for o in world.outcomes} == {s.instance_id for s in named_cluster("mixed-3").instances}
    assert all(o.prefill_instance == o.decode_instance and not o.kv_bytes for o in world.outcomes)
    homes = {(o.call.workflow_id, o.prefill_instance) for o in world.outcomes}
    assert len(homes) < 1.5 * len(rows)


@pytest.mark.parametrize(("policy", "low", "high"), [("clairvoyant", 0.95, 1.0), ("hexagent", 0.0, 0.5)])
def test_only_the_clairvoyant_foretells_a_first_call(policy: str, low: float, high: float) -> None:
    """Predicted over true time of 400 tokens without noise; it leaves out how the context makes steps longer."""
    records: list[DecisionRecord] = []

    def journal(entry: SchedulerEvent | DecisionRecord, now_us: int) -> None:
        if isinstance(entry, DecisionRecord):
            records.append(entry)

    quiet = named_cluster("mixed-3")._replace(noise_ppm=0)
    world = Watched(quiet, _one(_item(0, output_tokens=400)), policy, 5, journal=journal)
    world.run()
    predicted_us = records[0].chosen.finish_us - records[0].at_us
    assert low < predicted_us / (world.outcomes[0].times.end_us - records[0].at_us) < high


def test_the_same_seed_gives_the_same_digest_whatever_the_hash_seed_and_the_processor() -> None:
    """numpy takes other code paths where a processor lacks a feature; `dispatched` are those that are used here."""
    numpy_core = importlib.import_module("numpy._core._multiarray_umath")
    dispatched = " ".join(name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__[name])
    said = set()
    for hash_seed, disabled in (("0", ""), ("1", dispatched), ("2", dispatched)):
        env = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "NPY_DISABLE_CPU_FEATURES": disabled,
            "PYTHONPATH": os.getcwd(),
        }
        program = "from tests.sim.test_policies import digests; print(*digests())"
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1
    assert len(set(said.pop().split())) == len(POLICIES) + 1


def digests() -> list[str]:
    """One a policy, and one of `hexagent-plus` where engines cache prefixes, so that prefill instances keep calls."""
    workload = generate("mixed", Options(workflows=2))
    cached = World(named_cluster("mixed-3", prefix_cache=True), workload, "hexagent-plus", 1)
    return [run(workload, policy).digest for policy in POLICIES] + [cached.run().digest]
