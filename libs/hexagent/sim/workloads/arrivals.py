"""Arrival processes: fixed rate, Poisson, and bursty (gaps of a Gamma distribution)."""

import random
from decimal import Decimal
from typing import NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.units import MILLI, US_PER_S
from hexagent.sim.workloads.draws import DECIMAL, EXPONENTIAL_BITS, exponential, stream

KINDS = ("fixed", "poisson", "gamma")
CV_DEFAULT_MILLI = 2_000  # the milder of the two bursty settings the benchmark asks for
CV_RANGE_MILLI = (100, 20_000)
RATE_RANGE_MILLI = (1, 100_000_000)  # one workflow in 1,000 s to 100,000 a second
_ONE = Decimal(1 << EXPONENTIAL_BITS)


class Arrivals(NamedTuple):
    kind: str = "fixed"  # one of KINDS
    cv_milli: int = 0  # of the gaps, in thousandths; only with gamma


def parse_arrivals(text: str) -> Arrivals:
    """`fixed`, `poisson`, `gamma` (coefficient of variation 2) or `gamma:CV`."""
    kind, colon, cv = text.partition(":")
    if kind not in KINDS or (colon and kind != "gamma"):
        raise _bad("arrivals", f"{text!r} is none of fixed, poisson, gamma, gamma:CV")
    if kind != "gamma":
        return Arrivals(kind)
    cv_milli = milli(cv, "arrivals", *CV_RANGE_MILLI) if colon else CV_DEFAULT_MILLI
    return Arrivals(kind, cv_milli)


def milli(value: float | str, field: str, low: int, high: int) -> int:
    """`value` in thousandths, or `InvalidArgument` unless it lies between `low` and `high` thousandths."""
    try:
        number = float(value)
    except ValueError:
        raise _bad(field, f"{value!r} is not a number") from None
    if not low / MILLI <= number <= high / MILLI:
        raise _bad(field, f"{value} is not between {low / MILLI:g} and {high / MILLI:g}")
    return round(number * MILLI)


def arrival_times(count: int, rate_milli: int, arrivals: Arrivals, seed: int) -> list[int]:
    """`count` ascending arrival times in microseconds, the first at 0, at `rate_milli` / 1000 workflows a second."""
    if arrivals.kind == "fixed":
        return [i * US_PER_S * MILLI // rate_milli for i in range(count)]
    rng = stream("arrivals", seed, arrivals.kind, arrivals.cv_milli)
    shape = Decimal(1) if arrivals.kind == "poisson" else Decimal(MILLI**2) / arrivals.cv_milli**2
    mean_us = Decimal(US_PER_S * MILLI) / rate_milli
    times = [0] if count else []
    at = Decimal(0)
    for _ in range(count - 1):
        at += _gamma(rng, shape) / shape * mean_us
        times.append(int(at))
    return times


def _gamma(rng: random.Random, shape: Decimal) -> Decimal:
    """Gamma(shape, 1): unit exponentials for the whole part of the shape, Johnk's method for the rest."""
    whole = int(shape)
    total = sum((_exponential(rng) for _ in range(whole)), Decimal(0))
    rest = shape - whole
    if not rest:
        return total
    while True:
        x = DECIMAL.exp(-_exponential(rng) / rest)
        y = DECIMAL.exp(-_exponential(rng) / (1 - rest))
        if 0 < x + y <= 1:
            return total + _exponential(rng) * x / (x + y)


def _exponential(rng: random.Random) -> Decimal:
    return exponential(rng) / _ONE


def _bad(field: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {what}", reason="BAD_OPTION", field=field)
