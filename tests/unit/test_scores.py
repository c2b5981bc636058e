"""Calibrated quantiles: coverage of what is exchangeable, of what drifts, and where little is known."""

import random

import pytest

from hexagent.core.estimate.lengths import PERCENTS
from hexagent.core.estimate.scores import GROUPS_MAX, PRIOR_PPM, TRUSTED, Calibrated, Scores
from hexagent.core.units import PPM

GROUP = ("agent", "step", "h100")


def coverage(drift: float, calls: int = 6_000) -> list[float]:
    """Shares in per cent at or below the quantiles, of log-normal things whose size drifts by so much a call."""
    rng = random.Random(5)
    calibrated = Calibrated()
    below = [0] * len(PERCENTS)
    for number in range(calls):
        scale = 10_000 * (1 + drift * number)
        predicted = (int(scale * rng.lognormvariate(0, 0.3)),) * 3  # a prediction of its own error
        quantiles = calibrated.quantiles(GROUP, [10_000] * 3 if drift else predicted)
        measured = int(scale * rng.lognormvariate(0, 0.5))
        calibrated.observe(GROUP, [10_000] * 3 if drift else predicted, measured)
        if number >= 500:
            below = [count + (measured <= quantile) for count, quantile in zip(below, quantiles, strict=True)]
    return [100 * count / (calls - 500) for count in below]


@pytest.mark.parametrize("drift", [0.0, 0.001])
def test_stated_coverage_is_coverage(drift: float) -> None:
    for percent, covered in zip(PERCENTS, coverage(drift), strict=True):
        assert abs(covered - percent) < (1 if percent == 99 else 2)


def test_a_group_that_has_few_scores_is_answered_by_a_wider_one() -> None:
    scores = Scores(50)
    assert scores.quantile_ppm(GROUP) == PRIOR_PPM[50]
    for _ in range(TRUSTED):
        scores.observe(("agent", "other", "h100"), 3 * PPM, False)
    assert scores.quantile_ppm(GROUP) == 3 * PPM
    assert scores.quantile_ppm(("stranger", "", "")) == 3 * PPM
    for _ in range(TRUSTED):
        scores.observe(GROUP, PPM, False)
    assert scores.quantile_ppm(GROUP) == PPM


def test_a_level_does_not_follow_misses_up_to_the_largest_score() -> None:
    scores = Scores(99)
    for number in range(TRUSTED * 10):
        scores.observe(GROUP, (number + 1) * PPM, True)
    assert scores.level_ppm(GROUP) == 992_500
    assert scores.quantile_ppm(GROUP) == 994 * PPM


def test_groups_are_bounded() -> None:
    scores = Scores(90)
    for number in range(2 * GROUPS_MAX):
        scores.observe((f"class {number}", "step", ""), PPM, True)
    assert scores.level_ppm((f"class {2 * GROUPS_MAX - 1}", "step", "")) == 90 * PPM // 100
    assert scores.level_ppm(("class 0", "step", "")) > 90 * PPM // 100


def test_a_composition_that_tells_nothing_does_not_answer() -> None:
    rng = random.Random(5)
    calibrated = Calibrated()
    for _ in range(3_000):
        calibrated.observe(GROUP, [int(10_000 * rng.lognormvariate(0, 1))] * 3, rng.randint(1_000, 2_000))
    assert calibrated.quantiles(GROUP, [1] * 3) == calibrated.quantiles(GROUP, [10**6] * 3)
    assert calibrated.quantiles(("stranger", "", ""), [1] * 3) != calibrated.quantiles(
        ("stranger", "", ""), [10**6] * 3
    )
