"""Random draws that give the same integers on every platform.

Mersenne Twister bits from a keyed seed go through integer inverse tables. The only transcendental functions are
`decimal`'s `exp` and `ln`, whose results are defined digit by digit, unlike those of a platform's libm.
"""

import hashlib
import random
from decimal import Context, Decimal
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

from hexagent.core.units import MILLI, PPM

DECIMAL = Context(prec=24)
EXPONENTIAL_BITS = 60
_DRAW_BITS = 32
_KNOT_BITS = 8  # tables of 2^8 intervals of equal probability
_KNOTS = 1 << _KNOT_BITS
_REST_BITS = _DRAW_BITS - _KNOT_BITS
_TAIL = 0.25 / _KNOTS  # probability at which the outermost knots stand, in place of 0 and 1


def stream(*key: str | int) -> random.Random:
    """A generator of its own for `key`: draws for one workflow never shift those for another."""
    name = "\x1f".join(str(part) for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"))


def below(rng: random.Random, n: int) -> int:
    """Uniform integer in [0, n) for n far below 2^32."""
    return rng.getrandbits(_DRAW_BITS) * n >> _DRAW_BITS


def between(rng: random.Random, low: int, high: int) -> int:
    """Uniform integer in [low, high]."""
    return low + below(rng, high - low + 1)


def shuffled(rng: random.Random, n: int) -> list[int]:
    """The integers below n in random order."""
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = below(rng, i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def exponential(rng: random.Random) -> int:
    """Exponential of mean 1, times 2^60: minus the logarithm of a uniform number of 53 bits."""
    uniform = rng.getrandbits(53) + 1
    whole = uniform.bit_length() - 1
    mantissa = uniform << EXPONENTIAL_BITS - whole  # in [1, 2), times 2^60
    head = mantissa >> EXPONENTIAL_BITS - _KNOT_BITS
    base = head << EXPONENTIAL_BITS - _KNOT_BITS
    rest = (mantissa - base << EXPONENTIAL_BITS) // base  # below 2^-8: five terms of its series are good to 2^-50
    term, series = rest, rest
    for power in range(2, 6):
        term = -(term * rest >> EXPONENTIAL_BITS)
        series += term // power
    return (53 - whole) * _logarithms()[_KNOTS] - _logarithms()[head - _KNOTS] - series


@cache
def _logarithms() -> tuple[int, ...]:
    """ln(1 + k / 256), times 2^60, for k from 0 to 256."""
    return tuple(int(DECIMAL.ln(Decimal(_KNOTS + k) / _KNOTS) * (1 << EXPONENTIAL_BITS)) for k in range(_KNOTS + 1))


class InverseTable(NamedTuple):
    """Inverse distribution function at quantiles k / 256, linear between; values in thousandths."""

    knots_milli: tuple[int, ...]

    def at(self, quantile: int) -> int:
        """The value at `quantile` / 2^32, rounded to an integer."""
        knot = quantile >> _REST_BITS
        low, high = self.knots_milli[knot], self.knots_milli[knot + 1]
        rest = quantile & (1 << _REST_BITS) - 1
        return (low + ((high - low) * rest >> _REST_BITS) + MILLI // 2) // MILLI

    def draw(self, rng: random.Random) -> int:
        return self.at(rng.getrandbits(_DRAW_BITS))

    def stratified(self, rng: random.Random, n: int) -> list[int]:
        """n values, one from each of n slices of equal probability, in random order.

        Spreads between seeds far less than independent draws, so that few workflows keep the stated mean.
        """
        return [self.at(((part << _DRAW_BITS) + rng.getrandbits(_DRAW_BITS)) // n) for part in shuffled(rng, n)]


@cache
def lognormal_by_median(median: int, sigma_milli: int, low: int, high: int) -> InverseTable:
    """Log-normal of `median` and log standard deviation `sigma_milli` / 1000, clipped to [low, high]."""
    return _clipped(median * MILLI, sigma_milli, low, high)


@cache
def lognormal_by_mean(mean_milli: int, sigma_milli: int, low: int, high: int) -> InverseTable:
    """Clipped log-normal whose mean *after* clipping is `mean_milli` / 1000, as near as the bounds let it."""
    lowest, highest = 1, high * MILLI  # of the median, in thousandths
    while lowest < highest:
        middle = (lowest + highest) // 2
        if _mean_milli(_clipped(middle, sigma_milli, low, high)) < mean_milli:
            lowest = middle + 1
        else:
            highest = middle
    return _clipped(lowest, sigma_milli, low, high)


def _clipped(median_milli: int, sigma_milli: int, low: int, high: int) -> InverseTable:
    scaled = (median_milli * factor // PPM for factor in _shape_ppm(sigma_milli))
    return InverseTable(tuple(min(max(value, low * MILLI), high * MILLI) for value in scaled))


def _mean_milli(table: InverseTable) -> int:
    knots = table.knots_milli
    return (2 * sum(knots) - knots[0] - knots[-1]) // (2 * _KNOTS)


@cache
def _shape_ppm(sigma_milli: int) -> tuple[int, ...]:
    """exp(sigma z) at each knot, in parts per million; 1 at the median."""
    exponents = (Decimal(z * sigma_milli) / (PPM * MILLI) for z in _normal_ppm())
    return tuple(int(DECIMAL.exp(exponent) * PPM) for exponent in exponents)


@cache
def _normal_ppm() -> tuple[int, ...]:
    """Standard normal quantiles at each knot, rounded to 10^-6: coarser by far than two libms differ."""
    quantiles = [_TAIL, *(knot / _KNOTS for knot in range(1, _KNOTS)), 1 - _TAIL]
    return tuple(round(NormalDist().inv_cdf(quantile) * PPM) for quantile in quantiles)
