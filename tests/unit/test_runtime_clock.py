"""Model time."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.errors import InvalidArgument
from hexagent.runtime.clock import ModelClock, VirtualClock

ORIGIN_NS = 1_700_000_000_000_000_000


def test_model_time_runs_at_its_scale() -> None:
    clock = ModelClock(time.time_ns(), 50.0)
    before_us, before_ns = clock.now_us(), time.monotonic_ns()
    time.sleep(0.02)
    after_us, after_ns = clock.now_us(), time.monotonic_ns()
    wall_us = (after_ns - before_ns) / 1000
    assert 0.9 * 50 * wall_us < after_us - before_us < 1.1 * 50 * wall_us


def test_two_clocks_of_one_stack_agree() -> None:
    origin_ns = time.time_ns() - 3_600 * 10**9
    first, second = ModelClock(origin_ns, 20.0), ModelClock(origin_ns, 20.0)
    assert abs(first.now_us() - second.now_us()) < 20 * 2_000


@given(st.integers(0, 10**13), st.sampled_from([0.25, 1.0, 3.0, 20.0, 1000.0, 0.000001]))
def test_wall_instants_and_model_instants_match(model_us: int, scale: float) -> None:
    clock = ModelClock(ORIGIN_NS, scale)
    wall_ns = clock.wall_ns_of(model_us)
    assert clock.model_us_of(wall_ns) >= model_us
    assert clock.model_us_of(wall_ns - 1) < model_us


def test_durations_convert() -> None:
    clock = ModelClock(ORIGIN_NS, 20.0)
    assert clock.to_wall_s(20_000_000) == 1.0
    assert clock.from_wall_s(0.5) == 10_000_000


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-9, 1001.0, float("nan"), float("inf")])
def test_senseless_scales_are_refused(scale: float) -> None:
    with pytest.raises(InvalidArgument) as refused:
        ModelClock(ORIGIN_NS, scale)
    assert refused.value.field == "time_scale"


async def test_a_sleep_is_never_short() -> None:
    clock = ModelClock(time.time_ns(), 100.0)
    for target_us in range(clock.now_us() - 1000, clock.now_us() + 2_000_000, 150_003):
        await clock.sleep_until(target_us)
        assert clock.now_us() >= target_us


async def test_virtual_time_wakes_sleepers_in_order() -> None:
    clock = VirtualClock()
    woken: list[tuple[str, int]] = []

    async def sleep(name: str, *instants_us: int) -> None:
        for instant_us in instants_us:
            await clock.sleep_until(instant_us)
            woken.append((name, clock.now_us()))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleep("a", 30, 35))
        tasks.create_task(sleep("b", 10, 35))
        cancelled = tasks.create_task(sleep("c", 20))
        await asyncio.sleep(0)
        cancelled.cancel()
        await clock.advance(9)
        assert woken == []
        await clock.advance_to(100)

    assert woken == [("b", 10), ("a", 30), ("b", 35), ("a", 35)]
    assert clock.now_us() == 100
