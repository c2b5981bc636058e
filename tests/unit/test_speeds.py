"""Learned speed: robust against outliers, quick after a change, bounded."""

import random

import pytest

from hexagent.core.estimate.speeds import HIGHEST_PPM, LOWEST_PPM, Factor, SpeedLearner
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.telemetry import StepSample
from hexagent.core.units import PPM

TABLE = load_table("h100", "llama-3.1-70b", 4)
NOMINAL_US = 20_000


def observe(factor: Factor, speed: float, count: int, seed: int, noise: float = 0.07) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        factor.observe(int(NOMINAL_US * speed * rng.lognormvariate(0, noise)), NOMINAL_US)


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_is_priced_within_ten_percent_after_sixty_observations(seed: int) -> None:
    factor = Factor()
    observe(factor, 1.0, 100, seed)
    assert abs(factor.ppm / PPM - 1.0) < 0.1
    observe(factor, 1.5, 60, seed + 1_000)
    assert abs(factor.ppm / PPM / 1.5 - 1) < 0.1
    observe(factor, 1.0, 60, seed + 2_000)
    assert abs(factor.ppm / PPM - 1.0) < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_one_outlier_does_not_move_it(seed: int) -> None:
    factor = Factor()
    observe(factor, 1.0, 40, seed)
    before = factor.ppm
    factor.observe(100 * NOMINAL_US, NOMINAL_US)
    assert abs(factor.ppm - before) < PPM // 50


@pytest.mark.parametrize(("measured_us", "bound"), [(1, LOWEST_PPM), (1_000 * NOMINAL_US, HIGHEST_PPM)])
def test_it_stays_within_bounds(measured_us: int, bound: int) -> None:
    factor = Factor()
    for _ in range(100):
        factor.observe(measured_us, NOMINAL_US)
    assert factor.ppm == bound


def test_regimes_of_an_instance_are_apart() -> None:
    learner = SpeedLearner()
    prefill_us, decode_us = TABLE.prefill_us(1_000), TABLE.decode_us(8, 1_000)
    learner.observe("p", TABLE, StepSample(1, 2 * prefill_us, 1_000, 500, 0, 0))
    learner.observe("p", TABLE, StepSample(10, 5 * decode_us, 0, 0, 8, 1_000))
    learner.observe("p", TABLE, StepSample(1, 1, 16, 8, 8, 1_000))  # mixed, mostly decode: says nothing of either
    (factor,) = learner.factors()
    assert factor.observations == 2
    assert abs(factor.prefill_ppm - 2 * PPM) < PPM // 100
    assert abs(factor.decode_ppm - PPM // 2) < PPM // 100


def test_what_prompts_add_to_mixed_steps_tells_of_prefill() -> None:
    learner = SpeedLearner()
    decode_us, mixed_us = TABLE.decode_us(32, 1_000), TABLE.mixed_us([(2_000, 0)], 32, 1_000)
    for _ in range(10):
        learner.observe("p", TABLE, StepSample(10, 20 * decode_us, 0, 0, 32, 1_000))
        learner.observe("p", TABLE, StepSample(1, 2 * decode_us + 3 * (mixed_us - decode_us), 2_000, 1_000, 32, 1_000))
    (factor,) = learner.factors()
    assert factor.prefill_ppm == pytest.approx(3 * PPM, rel=0.001)
    assert factor.decode_ppm == pytest.approx(2 * PPM, rel=0.001)
