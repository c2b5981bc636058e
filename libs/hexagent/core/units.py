"""Units: times are integer microseconds of model time unless a name says otherwise."""

from typing import Final

US_PER_MS: Final = 1_000
US_PER_S: Final = 1_000_000
PPM: Final = 1_000_000  # one as parts per million: factors, ratios and noise are integers in ppm
MILLI: Final = 1_000  # one as thousandths: SLO scales
NEVER_US: Final = 1 << 61  # later than any time
# About 11 days: workflows count as at most so long and so old, so that a sum of a few such times PPM fits 64 bits.
LONGEST_US: Final = 10**12


def ceil_div(a: int, b: int) -> int:
    """Smallest integer >= a / b, for b > 0."""
    return -(-a // b)


def scale_ppm(value: int, factor_ppm: int) -> int:
    """`value` times a factor in parts per million, rounded down."""
    return value * factor_ppm // PPM
