"""Predicted remaining work: levels that follow, hints by their record, and how much of either to count on."""

import math
import random
from itertools import pairwise
from typing import NamedTuple

import pytest

from hexagent.core.estimate.levels import Levels
from hexagent.core.estimate.remaining import TENANTS_MAX, RemainingWork, Trail, log_ratio_milli
from hexagent.core.workflow.model import Hints

CALL_US = 1_000_000


class Remaining(NamedTuple):
    unrevealed_us: int  # predicted
    counted_us: int  # of it


def remaining(work: RemainingWork, trail: Trail, horizon_us: int) -> Remaining:
    counted_us = trail.total_us * int(work.counted_ppm[trail.record]) // 1_000_000
    return Remaining(max(trail.total_us - horizon_us, 0), max(counted_us - horizon_us, 0))


def run(
    work: RemainingWork, calls: int, hints: Hints = Hints(), name: str = "agent", tenant: str = ""
) -> list[Remaining]:
    """A chain of calls of one second each; what was predicted after each was revealed."""
    trail = Trail(name, hints, tenant)
    predicted = []
    for depth in range(1, calls + 1):
        trail.settle((depth - 1) * CALL_US)
        work.deepened(trail, ["step"], depth * CALL_US, depth)
        predicted.append(remaining(work, trail, depth * CALL_US))
    work.completed(trail, calls * CALL_US)
    return predicted


def test_a_loop_of_fixed_length_is_predicted_and_comes_to_be_counted_on() -> None:
    work = RemainingWork()
    assert not any(remaining.counted_us for remaining in run(work, 8))
    counted_us = []
    for _ in range(4):
        for _ in range(40):
            run(work, 8)
        predicted = run(work, 8)
        expected = [(8 - depth) * CALL_US for depth in range(1, 9)]
        assert [remaining.unrevealed_us for remaining in predicted] == pytest.approx(expected, abs=1_000)
        assert all(remaining.counted_us <= remaining.unrevealed_us for remaining in predicted)
        counted_us.append(predicted[0].counted_us)
    assert counted_us == sorted(counted_us)
    assert counted_us[-1] > 2.5 * CALL_US


def test_what_cannot_be_known_is_not_counted_on() -> None:
    rng = random.Random(1)
    work = RemainingWork()
    for _ in range(200):
        run(work, rng.choice((1, 2, 4, 8, 16, 32)))
    assert not any(remaining.counted_us for remaining in run(work, 32))
    assert [error.counted_ppm < 150_000 for error in work.errors()] == [True]


def test_a_role_tells_what_follows_it() -> None:
    levels = Levels()
    for rounds in (1, 2, 3, 4, 5) * 20:
        path = ["think", "act"] * rounds + ["answer"]
        for depth, (role, following) in enumerate(pairwise(path), 1):
            levels.went_on(depth, role, following)
        levels.ended(len(path), "answer")
    assert levels.further(3, "answer") == 0
    assert levels.further(1, "think") == 6
    assert levels.further(10, "act") == 1


def test_workflows_that_still_run_count_as_far_as_they_have_come() -> None:
    """Half of the class ends at 2 levels, half goes on to 20: before any long one has ended they are not all short."""
    levels = Levels()
    for _ in range(20):
        levels.went_on(1, "step", "step")
        levels.ended(2, "step")
        for depth in range(1, 12):
            levels.went_on(depth, "step", "step")
    assert levels.further(8, "step") >= 3
    assert levels.further(2, "step") >= 1


def test_chances_are_of_what_follows() -> None:
    levels = Levels()
    for depth in (1, 2, 4) * 100:
        for level in range(1, depth):
            levels.went_on(level, "step", "step")
        levels.ended(depth, "step")
    chances = levels.chances(1, "step") / 10**9
    assert chances[:4] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.05)
    assert chances.sum() == pytest.approx(1, abs=1e-4)


def test_a_workflow_between_two_levels_has_come_beyond_the_first() -> None:
    """Every second one ends at once, the others wait long before they go on."""
    work = RemainingWork()
    waiting = [Trail("agent", Hints(), "") for _ in range(40)]
    for trail in waiting:
        run(work, 1)
        work.deepened(trail, ["step"], CALL_US, 1)
        work.set_between(trail, True)
    new = Trail("agent", Hints(), "")
    work.deepened(new, ["step"], CALL_US, 1)
    first, *_ = ahead(work, new)
    assert first == pytest.approx(0.5, abs=0.05)
    for trail in waiting:
        work.set_between(trail, False)
    for _ in range(20):
        run(work, 1)
    assert ahead(work, new)[0] > 0.9


def test_workflows_of_the_same_breadth_tell_how_deep_one_gets() -> None:
    """Chains of 12 levels and searches of 3, eight calls side by side."""
    work = RemainingWork()
    for _ in range(20):
        for levels, calls in ((12, 1), (3, 8)):
            trail = Trail("agent", Hints(), "")
            for depth in range(1, levels + 1):
                trail.settle((depth - 1) * CALL_US)
                work.deepened(trail, ["step"], depth * CALL_US, depth * calls)
            work.completed(trail, levels * CALL_US)
    for calls, further, least in ((1, 11, 0.6), (8, 2, 0.6), (2, 2, 0.3)):  # nobody has been 2 broad: all tell
        first = Trail("agent", Hints(), "")
        work.deepened(first, ["step"], CALL_US, calls)
        chances = ahead(work, first)
        assert max(chances) == chances[further] > least


def ahead(work: RemainingWork, trail: Trail) -> list[float]:
    """Chances of 0, 1, 2, ... further levels."""
    known = work.levels_ahead(trail, CALL_US)
    assert known is not None
    return [chance / 10**9 for chance in known[0].tolist()]


@pytest.mark.parametrize(("log_error", "least", "most"), [(0.1, 0.9, 0.96), (0.3, 0.55, 0.8), (0.6, 0.1, 0.4)])
def test_a_hint_counts_by_its_record(log_error: float, least: float, most: float) -> None:
    rng = random.Random(2)
    work = RemainingWork()
    calls, hint_us = 0, 0
    answers: list[Remaining] = []
    for _ in range(200):
        calls = rng.choice((1, 2, 4, 8, 16, 32))
        hint_us = round(calls * CALL_US * rng.lognormvariate(0, log_error))
        answers = run(work, calls, Hints(hint_us))
    record = next(error for error in work.errors() if error.predictor == "solo")
    assert record.log_error_milli <= 1_000 * log_error * 1.2
    assert least < record.counted_ppm / 1e6 < most
    assert answers[0].unrevealed_us == max(hint_us - CALL_US, 0)
    assert answers[0].counted_us <= answers[0].unrevealed_us


def test_a_tenant_s_poor_hints_spoil_its_own() -> None:
    rng = random.Random(4)
    work = RemainingWork()
    for tenant, log_error in (("good", 0.1), ("poor", 1.0)) * 100:
        calls = rng.choice((1, 2, 4, 8, 16, 32))
        run(work, calls, Hints(round(calls * CALL_US * rng.lognormvariate(0, log_error))), tenant=tenant)
    good, poor, new = (run(work, 16, Hints(16 * CALL_US), tenant=name)[0] for name in ("good", "poor", "new"))
    assert good.counted_us > 13 * CALL_US
    assert poor.counted_us == 0
    assert new.counted_us < good.counted_us // 2


def test_a_tenant_too_many_is_judged_by_its_class_and_none_by_another_class() -> None:
    rng = random.Random(5)
    work = RemainingWork()
    good = [f"t{number:02}" for number in range(TENANTS_MAX - 1)]
    for tenant in [*good, "poor", "surplus"] * 3:
        for name in ("agent", "other"):
            calls = rng.choice((1, 2, 4, 8, 16, 32))
            factor = 10 if tenant in ("poor", "surplus") or name == "other" else 1
            run(work, calls, Hints(factor * calls * CALL_US), name, tenant)
    last, poor, surplus, new = (
        run(work, 16, Hints(16 * CALL_US), tenant=name)[0].counted_us for name in (good[-1], "poor", "surplus", "new")
    )
    assert last > 11 * CALL_US > surplus > poor == 0
    assert surplus == pytest.approx(new, rel=0.05)


def test_a_hint_of_a_class_that_is_not_known_counts_little() -> None:
    first = run(RemainingWork(), 16, Hints(16 * CALL_US))[0]
    assert first.unrevealed_us == 15 * CALL_US
    assert 6 * CALL_US < first.counted_us < 7 * CALL_US


def test_the_number_of_calls_is_a_hint_too() -> None:
    rng = random.Random(3)
    work = RemainingWork()
    for _ in range(200):
        calls = rng.choice((1, 2, 4, 8, 16, 32))
        run(work, calls, Hints(total_calls=calls))
    predicted = run(work, 5, Hints(total_calls=5))
    assert [remaining.unrevealed_us for remaining in predicted] == [(5 - depth) * CALL_US for depth in range(1, 6)]
    assert predicted[0].counted_us == pytest.approx(4 * CALL_US, rel=0.05)


def test_without_a_hint_a_workflow_of_a_hinting_class_is_not_counted_on() -> None:
    work = RemainingWork()
    for calls in (1, 30) * 20:
        run(work, calls, Hints(calls * CALL_US))
    hinted, silent = run(work, 30, Hints(30 * CALL_US))[0], run(work, 30)[0]
    assert hinted.unrevealed_us == 29 * CALL_US
    assert hinted.counted_us > 25 * CALL_US
    assert not silent.counted_us


def test_a_workflow_that_failed_tells_nothing() -> None:
    work = RemainingWork()
    trail = Trail("agent", Hints(CALL_US), "")
    work.deepened(trail, ["step"], CALL_US, 1)
    assert not work.errors()


def test_classes_are_bounded() -> None:
    work = RemainingWork()
    for number in range(200):
        run(work, 2, Hints(2 * CALL_US), f"class {number:03}")
    assert len(work.errors()) == 64


def test_log_ratio() -> None:
    for a, b in ((1, 1), (100, 130), (400, 100), (1, 4), (10**9, 10**9 + 10**7)):
        assert log_ratio_milli(a, b) == pytest.approx(1_000 * math.log(a / b), rel=0.01, abs=2)
    assert log_ratio_milli(10**12, 1) < 3_100
