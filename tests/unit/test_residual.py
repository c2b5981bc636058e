"""Residual times: coverage from the first workflows on, whatever varies."""

import random

import numpy as np
import pytest

from hexagent.core.estimate import residual
from hexagent.core.estimate.lengths import PERCENTS
from hexagent.core.estimate.levels import Ints
from hexagent.core.estimate.remaining import RemainingWork, Trail
from hexagent.core.estimate.residual import TRUSTED, Guess, ResidualTimes
from hexagent.core.units import PPM
from hexagent.core.workflow.model import Hints

CALL_US = 1_000_000
ONE_LEVEL = np.array([10**9])
GUESS = Guess("agent", "step", (), 1, 0, CALL_US, CALL_US)


def quantiles(times: ResidualTimes, guess: Guess, chances: Ints = ONE_LEVEL) -> tuple[int, ...]:
    return times.quantiles(guess, times.mixture(guess, chances))


def complete(times: ResidualTimes, name: str, horizon_us: int, guess: Guess = GUESS, roles: int = 1) -> None:
    """A workflow of one level, with calls of so many roles, that takes so long."""
    for number in range(roles):
        asked = guess._replace(role=f"step {number}" if number else guess.role)
        times.expect(name, asked, times.mixture(asked, ONE_LEVEL))
    times.completed(name, 1, horizon_us)
    times.forget(name)


class Burst:
    """Workflows of one class, ten more with each tick of a clock by which every level takes one tick."""

    def __init__(self, workflows: int, calls: list[int], habit: float, noise: float) -> None:
        rng = random.Random(4)
        self.work, self.residual = RemainingWork(), ResidualTimes()
        self.levels_us = {
            f"w{number}": [int(CALL_US * habits * rng.lognormvariate(0, noise)) for _ in range(rng.choice(calls))]
            for number in range(workflows)
            for habits in [rng.lognormvariate(0, habit)]
        }
        self.below: list[list[bool]] = [[] for _ in PERCENTS]

    def run(self) -> list[float]:
        """Shares in per cent at or below the quantiles."""
        started = [(number // 10, name, Trail("agent", Hints(), "")) for number, name in enumerate(self.levels_us)]
        for tick in range(len(started) // 10 + max(map(len, self.levels_us.values()))):
            for start, name, trail in started:
                if start <= tick <= start + len(self.levels_us[name]):
                    self.step(name, trail, tick - start, self.levels_us[name])
        return [100 * sum(below) / len(below) for below in self.below]

    def step(self, name: str, trail: Trail, depth: int, levels_us: list[int]) -> None:
        """The level has ended; the next one is revealed at its usual length, or the workflow is complete."""
        if depth == len(levels_us):
            self.work.completed(trail, sum(levels_us))
            self.residual.completed(name, depth, sum(levels_us))
            self.residual.forget(name)
            return
        start_us = sum(levels_us[:depth])
        self.residual.goes_on(name, start_us)
        horizon_us = start_us + CALL_US
        trail.settle(start_us)
        self.work.deepened(trail, ["step"], horizon_us, depth + 1)
        ahead = self.work.levels_ahead(trail, horizon_us)
        if ahead is not None:
            guess = Guess("agent", "step", (), depth + 1, start_us, horizon_us, ahead[1])
            mixture = self.residual.mixture(guess, ahead[0])
            for below, quantile in zip(self.below, self.residual.quantiles(guess, mixture), strict=True):
                below.append(sum(levels_us[depth:]) <= quantile)
            self.residual.expect(name, guess, mixture)


@pytest.mark.parametrize(
    ("calls", "habit", "noise"),
    [
        ([1, 2, 3, 4, 6, 8, 12], 0.0, 0.5),  # what ends first is short
        ([8], 0.4, 0.2),  # levels say nothing, what they take does
    ],
)
def test_stated_coverage_is_coverage_in_a_burst(calls: list[int], habit: float, noise: float) -> None:
    covered = Burst(300, calls, habit, noise).run()
    for percent, share in zip(PERCENTS, covered, strict=True):
        assert abs(share - percent) < {50: 5, 90: 5, 99: 2}[percent]


def test_before_anything_is_known_the_guess_stands() -> None:
    assert quantiles(ResidualTimes(), GUESS) == (CALL_US,) * 3
    thirds = np.array([500_000_000, 0, 500_000_000])
    assert quantiles(ResidualTimes(), GUESS, thirds) == (CALL_US, 3 * CALL_US, 3 * CALL_US)


def test_a_group_without_scores_is_answered_by_its_class() -> None:
    times = ResidualTimes()
    for number in range(50):
        complete(times, f"w{number}", 2 * CALL_US)
    assert quantiles(times, GUESS._replace(role="other"))[0] == 2 * CALL_US
    assert quantiles(times, GUESS._replace(workflow_class="other"))[0] == CALL_US


def test_what_is_remembered_of_a_workflow_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "EXPECTED_MAX", TRUSTED - 1)
    times = ResidualTimes()
    complete(times, "wide", 3 * CALL_US, roles=2 * TRUSTED)
    assert quantiles(times, GUESS) == (CALL_US,) * 3
    times.completed("wide", 1, 9 * CALL_US)  # forgotten
    complete(times, "small", 3 * CALL_US)
    assert quantiles(times, GUESS) == (3 * CALL_US,) * 3


def test_what_is_beyond_all_bounds_stays_a_number() -> None:
    times = ResidualTimes()
    for number in range(TRUSTED):
        complete(times, f"w{number}", 10**15, GUESS._replace(horizon_us=1))
    longest = quantiles(times, GUESS._replace(horizon_us=10**15))
    assert longest == (residual.HIGHEST_PPM // PPM * residual.LONGEST_US,) * 3


def test_calls_side_by_side_are_scored_once() -> None:
    times = ResidualTimes()
    for _ in range(10 * TRUSTED):
        times.expect("wide", GUESS, times.mixture(GUESS, ONE_LEVEL))
    times.completed("wide", 1, 9 * CALL_US)
    for number in range(TRUSTED):
        complete(times, f"w{number}", CALL_US)
    assert times.mixture(GUESS, ONE_LEVEL).at_ppm([PPM // 2]) == [CALL_US]
