"""Coverage: even ranks change nothing, uneven ones are corrected, also while much is under way."""

import random

from hexagent.core.estimate import coverage
from hexagent.core.estimate.coverage import ENDS_PPM, Coverage
from hexagent.core.units import PPM

STATED_PPM = [500_000, 900_000, 990_000]
GPUS = ("a100", "h200")


def measure(known: Coverage, gpus: tuple[str, ...], rank_ppm: int, until_ppm: int = PPM) -> None:
    """A measurement of this rank, of which no more than `until_ppm` is seen."""
    part = next(number for number, end_ppm in enumerate(ENDS_PPM) if min(rank_ppm, until_ppm) <= end_ppm)
    known.passed("agent", gpus, range(part))
    if rank_ppm <= until_ppm:
        known.ended("agent", gpus, part)


def test_unknown_and_even_ranks_change_nothing() -> None:
    known = Coverage()
    assert known.levels_ppm("agent", GPUS) == STATED_PPM
    for rank_ppm in range(0, PPM, 100):
        measure(known, GPUS, rank_ppm)
    for level_ppm, stated_ppm in zip(known.levels_ppm("agent", GPUS), STATED_PPM, strict=True):
        assert abs(level_ppm - stated_ppm) < 1_000


def test_levels_cover_what_is_stated_though_the_longest_are_not_seen_to_their_end() -> None:
    known, rng = Coverage(), random.Random(3)
    for _ in range(10_000):  # half the time is over before the measurement is
        measure(known, GPUS, int(PPM * rng.random() ** 2), int(PPM * rng.random()) if rng.random() < 0.5 else PPM)
    for level_ppm, stated_ppm in zip(known.levels_ppm("agent", GPUS), STATED_PPM, strict=True):
        assert abs((level_ppm / PPM) ** 0.5 - stated_ppm / PPM) < 0.03


def test_gpu_types_are_told_apart_and_drawn_to_their_class() -> None:
    known, rng = Coverage(), random.Random(3)
    for number in range(10_000):
        if number % 2:
            measure(known, GPUS, rng.randrange(PPM // 2))
        else:
            measure(known, ("h100", "h200"), rng.randrange(PPM))
    median_ppm = [known.levels_ppm("agent", gpus)[0] for gpus in (GPUS, ("h100", "h200"), ("other",))]
    assert 250_000 < median_ppm[0] < 290_000 < median_ppm[2] < 400_000 < 440_000 < median_ppm[1] < 500_000
    assert known.levels_ppm("stranger", GPUS) == STATED_PPM


def test_groups_are_bounded() -> None:
    known = Coverage()
    for number in range(2 * coverage.GROUPS_MAX):
        known.ended(f"class {number}", GPUS, 0)
    assert known.levels_ppm(f"class {coverage.GROUPS_MAX}", GPUS) == STATED_PPM
    assert known.levels_ppm("class 0", GPUS)[0] < STATED_PPM[0]
