"""The hidden truth: integers, equal everywhere, centred on the table."""

import math
from statistics import fmean, stdev

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.noise import Truth, exp_ppm, hash64
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.instance.times import TrueTimes
from hexagent.core.units import PPM
from tests.property.test_instance_world import LinearTimes

TICKET = Ticket(CallId("w", "n"), 1, 1)


def test_values_are_fixed() -> None:
    truth = Truth(7, noise_ppm=80_000)
    key = truth.call_key("i0", TICKET)
    assert hash64("a", 1) == 14809425904682091265
    assert [truth.noise(key, n) for n in range(4)] == [920553, 939277, 1118919, 1045972]


def test_exponential_is_exact_to_a_ppm() -> None:
    for x in range(-1_500_000, 1_500_001, 37_501):
        assert abs(exp_ppm(x) - math.exp(x / PPM) * PPM) <= 1


def test_noise_is_log_normal_of_the_given_deviation() -> None:
    truth = Truth(1, noise_ppm=100_000)
    logs = [math.log(truth.noise(truth.call_key("i", TICKET), n) / PPM) for n in range(20_000)]
    assert abs(fmean(logs)) < 0.003
    assert abs(stdev(logs) - 0.1) < 0.003


def test_noise_hangs_on_instance_and_attempt_but_not_on_the_epoch() -> None:
    truth = Truth(1, noise_ppm=100_000)
    key = truth.call_key("i0", TICKET)
    assert truth.call_key("i0", TICKET._replace(epoch=9)) == key
    assert len({key, truth.call_key("i1", TICKET), truth.call_key("i0", TICKET._replace(attempt=2))}) == 3


def test_hidden_factors_fill_their_range() -> None:
    cluster = ClusterSpec("c", (), (), 3, 50_000, (800_000, 1_300_000))
    factors = [Truth.drawn(cluster, f"i{n}").hidden_factor_ppm for n in range(400)]
    assert 800_000 <= min(factors) < 820_000
    assert 1_280_000 < max(factors) <= 1_300_000
    assert Truth.drawn(cluster, "i3") == Truth(3, factors[3], 50_000, link_factor_ppm=cluster.hidden_factor_ppm)


def test_prefill_and_decode_scale_apart_also_in_a_mixed_step() -> None:
    times = LinearTimes()
    true = TrueTimes(times, Truth(0, prefill_factor_ppm=3 * PPM, decode_factor_ppm=2 * PPM))
    chunks = [(100, 0)]
    decode = times.decode_us(4, 500)
    assert true.decode_us(4, 500, 1, 1) == 2 * decode
    assert true.prefill_us(chunks, 0, 0, 1, 1) == 3 * times.batch_prefill_us(chunks)
    assert true.prefill_us(chunks, 4, 500, 1, 1) == 2 * decode + 3 * (times.mixed_us(chunks, 4, 500) - decode)
