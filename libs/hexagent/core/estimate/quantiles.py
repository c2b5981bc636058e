"""Exact quantiles of the latest samples."""

from array import array
from bisect import bisect_left, insort
from typing import Final

from hexagent.core.units import PPM, ceil_div

WINDOW: Final = 1_024  # samples remembered: enough for a 99 % quantile, recent enough to follow a change


class RunningQuantiles:
    """Exact quantiles of the last `WINDOW` samples, at most 16 KiB."""

    __slots__ = ("_recent", "ascending", "count", "total")

    def __init__(self) -> None:
        self._recent = array("q")  # a ring once it is full
        self.ascending = array("q")
        self.count = 0  # ever seen
        self.total = 0  # sum over the window

    def add(self, value: int) -> None:
        recent, ascending = self._recent, self.ascending
        if len(recent) < WINDOW:
            recent.append(value)
        else:
            place = self.count % WINDOW
            oldest = recent[place]
            del ascending[bisect_left(ascending, oldest)]
            self.total -= oldest
            recent[place] = value
        insort(ascending, value)
        self.total += value
        self.count += 1

    def quantile(self, percent: int) -> int:
        """The ceil((n + 1) * percent / 100)-th smallest of n samples, the largest if there are fewer; n > 0.

        The next sample, if it is exchangeable with these, is at or below it with a probability of at least `percent` %
        (split conformal prediction), short of the cases in which there are fewer.
        """
        return self.at_ppm(percent * (PPM // 100))

    def at_ppm(self, level_ppm: int) -> int:
        """The same for a level in parts per million, 0 to PPM and beyond."""
        rank = ceil_div((len(self.ascending) + 1) * level_ppm, PPM)
        return self.ascending[min(max(rank, 1), len(self.ascending)) - 1]

    @property
    def mean(self) -> int:
        return self.total // len(self.ascending)
