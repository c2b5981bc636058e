"""Little work sooner: exact in integers, never against a cheaper call, and nobody waits for ever."""

from math import isqrt
from statistics import median

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.policy.hexagent_plus import DEAR, HexagentPlus, dearness_milli, length_milli
from hexagent.core.policy.order import Ages
from hexagent.core.policy.profile import _RANGES, DEFAULT
from hexagent.core.units import PPM
from tests.sim.cases import MODEL, Desk, decodes, prefills

TIMES_US = st.integers(0, 1_000_000_000)


@given(TIMES_US, TIMES_US, st.integers(*_RANGES["cheap_prefill_us"]))
def test_the_divisor_is_the_root_in_integers_and_grows_with_the_prefill(one: int, other: int, cheap_us: int) -> None:
    milli = dearness_milli(np.array([one, other]), cheap_us).tolist()
    assert milli == [isqrt((min(us, DEAR * cheap_us) + cheap_us) * PPM // cheap_us) for us in (one, other)]
    assert (milli[0] - milli[1]) * (one - other) >= 0


@given(st.lists(TIMES_US, min_size=1, max_size=9), st.integers(*_RANGES["cheap_prefill_us"]))
def test_without_caches_it_is_the_root_beyond_twice_the_median(times_us: list[int], cheap_us: int) -> None:
    usual_us = max(int(2 * median(times_us)), cheap_us)
    milli = length_milli(np.array(times_us), cheap_us).tolist()
    assert milli == [isqrt(max(us * PPM // usual_us, PPM)) for us in times_us]
    assert all(divisor == 1_000 for us, divisor in zip(times_us, milli, strict=True) if us <= usual_us)


def ages(horizons_us: tuple[int, int]) -> Ages:
    """Of two calls of workflows that arrived at 0."""
    d = Desk(prefills("h100") + decodes("h100"), start=False)
    for name in ("v", "w"):
        d.start(name)
        d.reveal(name, "n")
    return d.core.waiting[MODEL].ages(0)._replace(horizon_us=np.array(horizons_us))


@given(st.integers(10_000, 10**9), TIMES_US, TIMES_US, TIMES_US)
def test_of_equal_workflows_the_cheaper_call_goes_first_until_the_other_is_late_enough(
    horizon_us: int, cheap_us: int, dear_us: int, finish_us: int
) -> None:
    cheap_us, dear_us = sorted((cheap_us, dear_us))
    order, queue = HexagentPlus(DEFAULT), ages((horizon_us, horizon_us))
    queue = queue._replace(prefill_us=np.array([cheap_us, dear_us]), cached=True)
    cheap, dear = order.scores(queue, np.array([finish_us, finish_us])).tolist()
    assert cheap <= dear
    late_us = (finish_us + 1) * (1 + isqrt(1 + DEAR)) + horizon_us
    cheap, dear = order.scores(queue, np.array([finish_us, late_us])).tolist()
    assert dear <= cheap


@given(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)), st.tuples(TIMES_US, TIMES_US))
def test_where_little_waits_it_is_the_rule_without(horizons_us: tuple[int, int], finish_us: tuple[int, int]) -> None:
    scores = HexagentPlus(DEFAULT).scores(ages(horizons_us), np.array(finish_us)).tolist()
    assert scores == [-(late * PPM // horizon) for late, horizon in zip(finish_us, horizons_us, strict=True)]
