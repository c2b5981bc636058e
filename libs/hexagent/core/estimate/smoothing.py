"""Measured times made monotone: more work never takes less time, on the grid and beyond it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SPIKE: Final = 1.15  # what is further above the least of all with more work is a bad measurement

Floats = NDArray[np.float64]


def monotone(times: Floats) -> Floats:
    """The geometric mean of the least non-decreasing majorant, spikes held down, and the greatest minorant.

    It is non-decreasing along both axes, and nearest to `times` in ratio.
    """
    reverse = times[::-1, ::-1]
    minor = np.minimum.accumulate(np.minimum.accumulate(reverse, axis=0), axis=1)[::-1, ::-1]
    held = np.minimum(times, SPIKE * minor)
    major = np.maximum.accumulate(np.maximum.accumulate(held, axis=0), axis=1)
    mean: Floats = np.sqrt(major * minor)
    return mean


def extendable(times: Floats) -> Floats:
    """The same with growth over the last row, then over the last column, non-decreasing: extrapolation never falls."""
    extended = times.copy()
    for view in (extended, extended.T):
        growth = view[-1] - view[-2]
        major = np.maximum.accumulate(growth)
        minor = np.minimum.accumulate(growth[::-1])[::-1]
        view[-1] = view[-2] + np.rint((major + minor) / 2)
    return extended
