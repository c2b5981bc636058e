"""Exact quantiles of the latest samples."""

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

from hexagent.core.units import PPM, ceil_div

WINDOW: Final = 1_024  # samples remembered: enough for a 99 % quantile, recent enough to follow a change


class RunningQuantiles:
    """Exact quantiles of the last `WINDOW` samples, at most 16 KiB."""

    __slots__ = ("_recent", "_sorted", "count", "total")

    def __init__(self) -> None:
        self._recent = array("q")  # a ring once it is full
        self._sorted = array("q")
        self.count = 0  # ever seen
        self.total = 0  # sum over the window

    def add(self, value: int) -> None:
        if len(self._recent) < WINDOW:
            self._recent.append(value)
        else:
            place = self.count % WINDOW
            del self._sorted[bisect_left(self._sorted, self._recent[place])]
            self.total -= self._recent[place]
            self._recent[place] = value
        insort(self._sorted, value)
        self.total += value
        self.count += 1

    def quantile(self, percent: int) -> int:
        """The ceil((n + 1) * percent / 100)-th smallest of n samples, the largest if there are fewer; n > 0.

        The next sample, if it is exchangeable with these, is at or below it with a probability of at least `percent` %
        (split conformal prediction), short of the cases in which there are fewer.
        """
        return self.at_ppm(percent * (PPM // 100))

    def quantiles(self, percents: Sequence[int]) -> list[int]:
        """`quantile` of each of `percents`, 1 to 99."""
        values, count = self._sorted, len(self._sorted)
        return [values[min(-(-(count + 1) * percent // 100), count) - 1] for percent in percents]

    def at_ppm(self, level_ppm: int) -> int:
        """The same for a level in parts per million, 0 to PPM and beyond."""
        rank = ceil_div((len(self._sorted) + 1) * level_ppm, PPM)
        return self._sorted[min(max(rank, 1), len(self._sorted)) - 1]

    @property
    def mean(self) -> int:
        return self.total // len(self._sorted)
