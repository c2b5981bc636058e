"""Arrival processes have the rate and the burstiness asked for."""

from itertools import pairwise
from statistics import mean, pstdev

import pytest

from hexagent.sim.workloads.arrivals import Arrivals, arrival_times, parse_arrivals


@pytest.mark.parametrize(
    ("text", "cv"), [("fixed", 0.0), ("poisson", 1.0), ("gamma:0.4", 0.4), ("gamma", 2.0), ("gamma:4", 4.0)]
)
def test_rate_and_spread_of_gaps(text: str, cv: float) -> None:
    times = arrival_times(8_000, 20_000, parse_arrivals(text), 5)
    assert times[0] == 0
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) >= 0
    assert mean(gaps) == pytest.approx(50_000, rel=0.05)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.1, abs=0.001)


def test_fixed_rate_does_not_drift() -> None:
    assert arrival_times(4, 3_000, Arrivals(), 1) == [0, 333_333, 666_666, 1_000_000]


def test_no_workflow_no_arrival() -> None:
    assert arrival_times(0, 1_000, Arrivals("poisson"), 1) == []
