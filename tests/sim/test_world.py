"""Whole simulated runs: everything completes, in order, the same each time, and `hexagent` is worth having."""

import pathlib
from statistics import mean

import pytest

from hexagent.core.instance.spec import PROFILES, Role
from hexagent.core.policy.registry import known
from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.clusters import named_cluster
from hexagent.sim.fleet import Latency
from hexagent.sim.metrics import summary
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, WorkItem, Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.trace import TraceOptions, read_trace
from hexagent.sim.world import RunResult, World

POLICIES = known(clairvoyant=True)


class Watched(World):
    """Keeps the outcomes that come back from the fleet."""

    outcomes: list[CallOutcome]

    def run(self) -> RunResult:
        self.outcomes = []
        return super().run()

    def _outcome(self, outcome: CallOutcome, now_us: int) -> None:
        self.outcomes.append(outcome)
        super()._outcome(outcome, now_us)


def run(workload: Workload, policy: str = "hexagent", seed: int = 1, profile: str = "trtllm-1.2.1") -> RunResult:
    return World(named_cluster("mixed-3", profile=profile), workload, policy, seed).run()


def test_recorded_workflows_complete(traces_dir: pathlib.Path) -> None:
    for path in sorted(traces_dir.glob("*.jsonl")):
        result = run(read_trace(path, TraceOptions(limit=3)))
        assert [row.status for row in result.rows] == ["COMPLETED"] * 3


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_engine_profile_serves(profile: str) -> None:
    result = run(generate("bfcl", Options(workflows=12, seed=3)), profile=profile)
    assert all(row.completed for row in result.rows)
    assert result.calls == result.decisions


@pytest.mark.parametrize("policy", ["fcfs", "hexagent"])
def test_instances_that_do_both_serve_without_a_hand_off(policy: str) -> None:
    cluster = named_cluster("mixed-3")
    both = tuple(i._replace(role=Role.BOTH) for i in cluster.instances if i.role is Role.PREFILL)
    workload = generate("bfcl", Options(workflows=12, seed=3))
    world = Watched(cluster._replace(instances=both), workload, policy, 1)
    assert all(row.completed for row in world.run().rows)
    assert all(o.prefill_instance == o.decode_instance and not o.kv_bytes for o in world.outcomes)


def test_no_call_starts_before_its_parents_end_and_its_stages_are_in_order() -> None:
    workload = generate("lats", Options(workflows=2, seed=4))
    world = Watched(named_cluster("mixed-3"), workload, "hexagent", 1)
    world.run()
    outcomes = {o.call: o for o in world.outcomes}
    for script in workload.workflows:
        for item in script.items:
            outcome = outcomes[(script.workflow_id, f"c{item.index}")]  # type: ignore[index]
            assert outcome.output_tokens == item.output_tokens
            times = outcome.times
            if item.output_tokens > 1:
                stages = [times.prefill_start_us, times.prefill_end_us, times.transfer_start_us, times.transfer_end_us]
                assert stages == sorted(stages)
                assert times.transfer_end_us <= times.decode_start_us < times.end_us
            for dep in item.deps:
                parent = outcomes[(script.workflow_id, f"c{dep}")]  # type: ignore[index]
                assert parent.times.end_us < times.dispatched_us < times.prefill_start_us


def _item(index: int, deps: tuple[int, ...] = (), **changes: int) -> WorkItem:
    item = WorkItem(index, deps, "worker", 500, 20, 512, (Segment(f"s{index}", 500),))
    return item._replace(**changes)  # type: ignore[arg-type]


def _one(*items: WorkItem, conversation: bool = False) -> Workload:
    return Workload("test", "test", (ScriptedWorkflow("w", "c", "default", 1_000, items, conversation),))


def test_tools_take_their_time_in_jct_and_horizon() -> None:
    plain, slow = (run(_one(_item(0), _item(1, (0,), tool_us=us))).rows[0] for us in (0, 3_000_000))
    answered_us = Latency().request_us + Latency().update_us
    assert slow.tool_us == 3_000_000
    assert slow.horizon_us - plain.horizon_us == 3_000_000 + answered_us
    # Its start and its end are answered before the client goes on.
    assert slow.jct_us - plain.jct_us == pytest.approx(3_000_000 + 2 * answered_us, abs=20_000)
    assert slow.stretch_notool == pytest.approx(plain.stretch, rel=0.05)


def test_a_person_s_pause_is_in_neither_side_of_a_conversation() -> None:
    back_to_back, paused = (run(_one(_item(0), _item(1, (0,), gap_us=us), conversation=True)) for us in (0, 60_000_000))
    assert paused.ended_us > 60_000_000 > back_to_back.ended_us
    assert paused.rows[0].jct_us == pytest.approx(back_to_back.rows[0].jct_us, rel=0.1)
    assert paused.rows[0].solo_us == back_to_back.rows[0].solo_us


def test_a_join_of_some_branches_waits_for_no_more() -> None:
    """Two of three suffice; the third, long, is cancelled and counts for nothing in the horizon."""
    branches = [_item(0), _item(1), _item(2, output_tokens=510)]
    world = World(named_cluster("mixed-3"), _one(*branches, _item(3, (0, 1, 2), join_k=2)), "hexagent", 1)
    row = world.run().rows[0]
    assert row.completed
    assert row.horizon_us == row.solo_us < 4_000_000
    assert row.jct_us < 4_000_000
    assert world.scheduler.ledger.attempts == {}


def test_hexagent_needs_a_smaller_scale_than_fcfs_under_overload() -> None:
    """Mean over seeds on a small mixed cluster that gets several times what it can prefill."""
    required: dict[str, list[tuple[float, float]]] = {"fcfs": [], "hexagent": []}
    for seed in (1, 2, 3):
        workload = generate("bfcl", Options(seed=seed, workflows=120, rate_per_s=40))
        for policy, scales in required.items():
            row = summary(run(workload, policy, seed).rows)
            assert row.completed == 120
            scales.append((row.req95, row.req99))
    for percent in (0, 1):
        hexagent, fcfs = (mean(scales[percent] for scales in required[p]) for p in ("hexagent", "fcfs"))
        assert hexagent < 0.95 * fcfs
