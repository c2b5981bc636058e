"""Predictions held against what happened: by the snapshot in force, before it is learned from."""

import random

import pytest

from hexagent.core.estimate.calibration import Calibration
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.features import CallFeatures
from hexagent.core.estimate.snapshot import LengthQuantiles, Snapshot, SpeedFactor, ToolQuantiles
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.telemetry import StepSample, TransferSample
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World

CLUSTER = named_cluster("mini")
P, D = CLUSTER.instances[1], CLUSTER.instances[0]
STEPS = StepSample(10, 10 * table_of(D, ()).decode_us(8, 1_000), 0, 0, 8, 1_000)
LENGTH = LengthQuantiles("agent", "step", "", 0, 99, 50, 90, 99, 50)


def calibration(*, decode_ppm: int = 1_000_000) -> Calibration:
    estimator = Estimator(CLUSTER)
    speeds = (SpeedFactor(D.instance_id, 1_000_000, decode_ppm, 9),)
    estimator.update(Snapshot(1, 0, speeds, (LENGTH,), (ToolQuantiles("search", 9, 1_000, 2_000, 3_000),)))
    return Calibration(estimator)


def test_a_step_is_compared_with_its_corrected_prediction() -> None:
    for decode_ppm, bias_ppm, error_ppm in ((1_000_000, 1_000_000, 0), (2_000_000, 500_000, 1_000_000)):
        score = calibration(decode_ppm=decode_ppm)
        score.step(D, STEPS)
        score.step(D, STEPS._replace(prefill_tokens=100))  # mixed: says nothing of either
        (row,) = score.rows()
        assert row[:3] == ("decode_step", D.instance_id, 1)
        assert row[3:5] == pytest.approx((bias_ppm, error_ppm), abs=200)


def test_shares_below_quantiles_are_those_of_the_latest() -> None:
    score, rng = calibration(), random.Random(1)
    for _ in range(2_000):
        score.output(CallFeatures("agent", "step", 10), rng.randint(1, 100))
    (row,) = score.rows()
    assert row.subject == "agent/step"
    assert row.samples == 2_000
    assert (row.below_q50_ppm, row.below_q90_ppm) == pytest.approx((500_000, 900_000), abs=100_000)


def test_nothing_is_compared_without_a_snapshot_or_a_prediction() -> None:
    score = Calibration(Estimator(CLUSTER))
    score.step(D, STEPS)
    assert score.rows() == ()
    score = calibration()
    score.tool("never seen", 5)
    score.tool("search", 2_000)
    score.transfer(P, D, TransferSample(P.instance_id, D.instance_id, 0, 10_000, 125_000_000, 90_000))
    assert [row[:4] for row in score.rows()] == [
        ("tool", "search", 1, 2_000_000),
        ("transfer", f"{P.instance_id}>{D.instance_id}", 1, 1_000_000),
    ]


def test_learning_brings_predictions_of_a_run_close() -> None:
    workload = generate("bfcl", Options(workflows=30, rate_per_s=10, seed=1))
    world = World(named_cluster("mixed-3"), workload, "hexagent", 5)
    world.learner.calibration = Calibration(world.scheduler.estimator)
    world.run()
    rows = [row for row in world.learner.calibration.rows() if row.samples >= 100]
    for quantity in ("prefill_step", "decode_step", "transfer"):
        errors = [row.error_ppm for row in rows if row.quantity == quantity]
        assert errors, quantity
        assert sum(errors) / len(errors) < 120_000, "7 % noise, and what is not learned yet"
