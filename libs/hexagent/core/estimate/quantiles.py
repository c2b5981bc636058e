"""Exact quantiles of the latest samples."""

from bisect import bisect_left, insort
from collections import deque

WINDOW = 512  # samples remembered: enough for a 99 % quantile, recent enough to follow a change


class RunningQuantiles:
    """Exact quantiles of the last `WINDOW` samples."""

    __slots__ = ("_recent", "_sorted", "count", "total")

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self.count = 0  # ever seen
        self.total = 0  # sum over the window

    def add(self, value: int) -> None:
        self.count += 1
        self._recent.append(value)
        insort(self._sorted, value)
        self.total += value
        if len(self._recent) > WINDOW:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self.total -= oldest

    def quantile(self, percent: int) -> int:
        """The smallest sample that is >= `percent` % of the window; the window must not be empty."""
        rank = -(-len(self._sorted) * percent // 100)
        return self._sorted[max(rank, 1) - 1]

    @property
    def mean(self) -> int:
        return self.total // len(self._sorted)
