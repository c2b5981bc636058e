"""Hardware that differs from its tables, and estimates that are wrong."""

import math
from statistics import mean, stdev

import pytest

from hexagent.core.estimate.snapshot import EMPTY, LengthQuantiles, SpeedFactor, ToolQuantiles
from hexagent.core.ids import CallId
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.sim.clusters import named_cluster
from hexagent.sim.conditions import Conditions, EstimateNoise, hints, means_of_classes
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import RunResult, World

WORKLOAD = generate("bfcl", Options(workflows=6, rate_per_s=0.01, seed=3))  # far apart: nobody queues


def run(conditions: Conditions, seed: int = 1) -> RunResult:
    return World(named_cluster("mixed-3"), WORKLOAD, "hexagent", seed, conditions=conditions).run()


def test_a_slower_phase_makes_workflows_slower_and_not_their_horizons() -> None:
    plain, prefill, decode, both = (
        run(Conditions(*factors))
        for factors in ((1_000_000, 1_000_000), (2_000_000, 1_000_000), (1_000_000, 2_000_000), (2_000_000, 2_000_000))
    )
    jct = [mean(row.jct_us - row.tool_us for row in result.rows) for result in (plain, prefill, decode, both)]
    assert jct[0] < min(jct[1:3])
    assert max(jct[1:3]) < jct[3]
    assert jct[3] == pytest.approx(2 * jct[0], rel=0.1)
    assert all(result.rows[0].solo_us == plain.rows[0].solo_us for result in (prefill, decode, both))


def test_errors_are_log_normal_constant_and_on_every_instance() -> None:
    cluster = named_cluster("hetero-2")
    factors: list[float] = []
    for seed in range(30):
        noise = EstimateNoise(cluster._replace(seed=seed), 300_000)
        bent = noise.bent()
        assert bent == noise.bent()
        assert [s.instance_id for s in bent.speeds] == sorted(i.instance_id for i in cluster.instances)
        factors += [math.log(s.prefill_ppm / 1e6) for s in bent.speeds]
    assert mean(factors) == pytest.approx(0, abs=0.05)
    assert stdev(factors) == pytest.approx(0.3, rel=0.1)


def test_what_was_learned_is_bent_by_the_same_factor() -> None:
    noise = EstimateNoise(named_cluster("mixed-3")._replace(seed=4), 300_000)
    first = noise.bent().speeds[0]
    learned = EMPTY._replace(
        revision=7,
        speeds=(SpeedFactor(first.instance_id, 2_000_000, 1_000_000, 9),),
        lengths=(LengthQuantiles("c", "r", "", 0, 5, 1_000, 2_000, 3_000, 1_500),),
        tools=(ToolQuantiles("t", 5, 10_000, 20_000, 30_000),),
    )
    bent = noise.bent(learned)
    assert bent.revision == 7
    assert bent.speeds[0] == (first.instance_id, 2 * first.prefill_ppm, first.decode_ppm, 9)
    length, tool = bent.lengths[0], bent.tools[0]
    assert length.q50 != 1_000
    assert length.q90 == pytest.approx(2 * length.q50, abs=2)
    assert tool.q90_us == pytest.approx(2 * tool.q50_us, abs=2)


def test_wrong_estimates_change_decisions() -> None:
    exact, wrong = (run(Conditions(estimate_noise_ppm=ppm), seed=2) for ppm in (0, 600_000))
    assert all(row.completed for row in wrong.rows)
    assert mean(row.jct_us for row in wrong.rows) > mean(row.jct_us for row in exact.rows)


def test_true_lengths_are_told_of_every_call() -> None:
    predicted: dict[CallId, int] = {}

    def journal(entry: SchedulerEvent | DecisionRecord, now_us: int) -> None:
        if isinstance(entry, DecisionRecord):
            predicted[entry.ticket.call] = entry.predicted_output_tokens

    told = Conditions(true_lengths=True)
    World(named_cluster("mixed-3"), WORKLOAD, "hexagent", 1, journal=journal, conditions=told).run()
    for workflow in WORKLOAD.workflows:
        for item in workflow.items:
            assert predicted[CallId(workflow.workflow_id, f"c{item.index}")] == item.output_tokens


def test_hints_are_wrong_by_as_much_as_they_are_said_to_be() -> None:
    said = [hints(3, f"w{number}", 10_000_000, 300_000).total_solo_us / 10_000_000 for number in range(400)]
    assert mean(map(math.log, said)) == pytest.approx(0, abs=0.05)
    assert stdev(map(math.log, said)) == pytest.approx(0.3, rel=0.1)
    assert hints(3, "w1", 10_000_000, 0).total_solo_us == 10_000_000


def test_the_scheduler_has_the_hint_and_the_paper_s_rule_does_without() -> None:
    worlds = [
        World(named_cluster("mixed-3"), WORKLOAD, "hexagent", 1, conditions=Conditions(hint_noise_ppm=noise))
        for noise in (-1, 0)
    ]
    results = [world.run() for world in worlds]
    assert results[0].digest == results[1].digest
    records = [{e.predictor: e for e in world.scheduler.projection.work.errors()} for world in worlds]
    assert "solo" not in records[0]
    solo = records[1]["solo"]
    assert solo.workflows == 6
    assert solo.log_error_milli < 100  # what is revealed has predicted lengths


def test_means_of_classes_are_all_that_is_told_of_lengths() -> None:
    rows = (
        LengthQuantiles("", "", "", 0, 9, 10, 20, 30, 15),
        LengthQuantiles("c", "", "", 0, 9, 10, 20, 30, 16),
        LengthQuantiles("c", "r", "", 0, 9, 10, 20, 30, 17),
        LengthQuantiles("c", "r", "prompt", 4, 9, 10, 20, 30, 18),
    )
    told = means_of_classes(EMPTY._replace(lengths=rows)).lengths
    assert [(row.workflow_class, row.role, row.q50, row.q90, row.q99) for row in told] == [
        ("", "", 15, 15, 15),
        ("c", "", 16, 16, 16),
    ]
    assert run(Conditions(mean_lengths=True)).digest != run(Conditions()).digest
