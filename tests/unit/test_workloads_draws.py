"""Draws follow their distributions and are the same integers everywhere."""

import math
from statistics import mean, median, quantiles

import pytest

from hexagent.sim.workloads.draws import (
    EXPONENTIAL_BITS,
    below,
    exponential,
    lognormal_by_mean,
    lognormal_by_median,
    shuffled,
    stream,
)
from hexagent.sim.workloads.model import output_cap


@pytest.mark.parametrize(("mean_milli", "sigma", "low", "high"), [(6_660, 1_200, 1, 80), (277_000, 800, 4, 1_536)])
def test_mean_holds_after_clipping(mean_milli: int, sigma: int, low: int, high: int) -> None:
    table = lognormal_by_mean(mean_milli, sigma, low, high)
    values = table.stratified(stream("test", 1), 20_000)
    assert mean(values) == pytest.approx(mean_milli / 1_000, rel=0.005)
    assert low <= min(values) <= max(values) <= high


def test_quantiles_are_those_of_a_log_normal() -> None:
    table = lognormal_by_median(300_000, 2_976, 0, 60_000_000)
    rng = stream("test", 2)
    values = [table.draw(rng) for _ in range(40_000)]
    assert median(values) == pytest.approx(300_000, rel=0.05)
    assert quantiles(values, n=10)[-1] == pytest.approx(13_600_000, rel=0.05)
    assert max(values) == 60_000_000


def test_streams_are_apart_and_repeatable() -> None:
    assert stream("a", 1).getrandbits(64) == stream("a", 1).getrandbits(64)
    keys: list[tuple[str | int, ...]] = [("a", 1), ("a", 11), ("a1", 1), ("a", "1", ""), ("a",)]
    assert len({stream(*key).getrandbits(64) for key in keys}) == len(keys)


def test_exponential_is_minus_the_logarithm() -> None:
    uniform, drawn = stream("test", 4), stream("test", 4)
    for _ in range(1_000):
        expected = -math.log((uniform.getrandbits(53) + 1) / 2**53)
        assert exponential(drawn) / 2**EXPONENTIAL_BITS == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_shuffle_and_below_cover_all() -> None:
    rng = stream("test", 3)
    assert sorted(shuffled(rng, 100)) == list(range(100))
    assert {below(rng, 3) for _ in range(100)} == {0, 1, 2}


@pytest.mark.parametrize(("largest", "cap"), [(1, 512), (512, 512), (513, 1_024), (4_096, 4_096), (4_097, 8_192)])
def test_caps(largest: int, cap: int) -> None:
    assert output_cap(largest) == cap
