"""What predicted distributions cover, learned from what has been measured and from what is still under way.

The *rank* of a measurement is the share of its predicted distribution that lies below it. If ranks are not even,
predictions are wrong alike, and the level that covers p is the one that p of the ranks are below. Ranks are counted in
parts, and what is under way counts in those it has come through (Kaplan and Meier's estimator). In ranks, unlike in
times, the short and the long are on one scale: though the short are measured first, they do not make all look short.
"""

from bisect import bisect_left
from collections import defaultdict
from itertools import pairwise
from typing import Final

import numpy as np

from hexagent.core.estimate.lengths import PERCENTS
from hexagent.core.estimate.levels import Ints
from hexagent.core.units import PPM

# Parts end at these ranks, in ppm: 1 % apart, less in the last one.
ENDS_PPM: Final[tuple[int, ...]] = (*range(10_000, 1_000_000, 10_000), 995_000, 997_500, PPM)
PRIOR: Final = 1_000  # calls of even ranks that a class counts besides, and of its class's that GPU types count
GROUPS_MAX: Final = 512  # later GPU types are answered by their class, later classes have even ranks
FORGET: Final = 1 << 14  # counts of a group are halved when there are more

_EDGES_PPM: Final[tuple[int, ...]] = (0, *ENDS_PPM)
# Of what comes to a part, the share that ends in it if ranks are even.
_EVEN_PPM: Final = np.array([(end - start) * PPM // (PPM - start) for start, end in pairwise(_EDGES_PPM)])

_Group = tuple[str, tuple[str, ...]]  # class, and GPU types that prefill and decode; () = all


class _Counts:
    """Of a group, by part of the ranks."""

    __slots__ = ("came", "ended")

    def __init__(self) -> None:
        self.came: Ints = np.zeros(len(ENDS_PPM), dtype=np.int64)  # to the part, and it is known what came next
        self.ended: Ints = np.zeros(len(ENDS_PPM), dtype=np.int64)  # in it

    def shares_ppm(self, prior_ppm: Ints) -> Ints:
        """Of what comes to each part, what ends in it."""
        return (self.ended * PPM + PRIOR * prior_ppm) // (self.came + PRIOR)


class Coverage:
    """Of calls that are told apart by class and GPU types, since policies do not place calls by chance."""

    def __init__(self) -> None:
        self._groups: defaultdict[_Group, _Counts] = defaultdict(_Counts)

    def levels_ppm(self, workflow_class: str, gpus: tuple[str, ...]) -> list[int]:
        """Levels at which distributions cover `PERCENTS`."""
        shares_ppm = _EVEN_PPM
        for group in _narrowing(workflow_class, gpus):
            if group in self._groups:
                shares_ppm = self._groups[group].shares_ppm(shares_ppm)
        left_ppm = [PPM]  # of the ranks, beyond each part
        for share_ppm in shares_ppm.tolist():
            left_ppm.append(left_ppm[-1] * (PPM - share_ppm) // PPM)
        below_ppm = [PPM - left for left in left_ppm]
        return [_between(below_ppm, percent * (PPM // 100)) for percent in PERCENTS]

    def passed(self, workflow_class: str, gpus: tuple[str, ...], parts: range) -> None:
        """A measurement will lie beyond these parts."""
        for counts in self._counts(workflow_class, gpus):
            counts.came[parts.start : parts.stop] += 1

    def ended(self, workflow_class: str, gpus: tuple[str, ...], part: int) -> None:
        """It lies in this part, and was known to lie beyond those before."""
        for counts in self._counts(workflow_class, gpus):
            counts.came[part] += 1
            counts.ended[part] += 1
            if counts.came[0] > FORGET:
                counts.came //= 2
                counts.ended //= 2

    def _counts(self, workflow_class: str, gpus: tuple[str, ...]) -> list[_Counts]:
        groups = _narrowing(workflow_class, gpus)
        return [self._groups[group] for group in groups if group in self._groups or len(self._groups) < GROUPS_MAX]


def _narrowing(workflow_class: str, gpus: tuple[str, ...]) -> tuple[_Group, ...]:
    return (workflow_class, ()), (workflow_class, gpus)


def _between(below_ppm: list[int], share_ppm: int) -> int:
    """The rank that this share of the ranks is below, where `below_ppm` are below `_EDGES_PPM`."""
    place = min(max(bisect_left(below_ppm, share_ppm), 1), len(below_ppm) - 1)
    low, high = below_ppm[place - 1 : place + 1]
    start, end = _EDGES_PPM[place - 1 : place + 1]
    return start + (end - start) * max(share_ppm - low, 0) // max(high - low, 1)
