"""Residual time of workflows: quantiles of what a call and all that follows it take alone on the cluster.

How much follows is a number of levels, and what that much takes is another question. `Levels` gives the chance of n
further levels, workflows that still run counting as far as they have come. A *guess* at what n levels take is the
horizon and n times the time of a level. What they took over the guess is its score, measured when a workflow has ended
n levels further, as its last levels may be unlike others. Few levels scatter more than many, so each doubling of n + 1
has scores of its own. The residual time is the mixture by the chances of n of guesses for n levels times their scores.
What ends first in a burst is short, in levels and in what these take, and a search may be the less deep the more calls
it has that ask: so the mixture is not asked for the quantile itself but for the level that covers it (`Coverage`).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.estimate.coverage import ENDS_PPM, Coverage
from hexagent.core.estimate.levels import Ints
from hexagent.core.estimate.quantiles import RunningQuantiles
from hexagent.core.estimate.scores import score_ppm
from hexagent.core.units import PPM, US_PER_S

DOUBLINGS: Final = 6  # of n + 1 that are told apart; 31 and more levels are alike
GROUPS_MAX: Final = 512  # of scores, 8 MiB; later ones fall back to wider groups
TRUSTED: Final = 20  # scores a group needs to answer
EXPECTED_MAX: Final = 512  # guesses of one workflow that are learned from
STALE: Final = 16  # points are read again when one in so many of the scores is new
HIGHEST_PPM: Final = 100 * PPM  # of a score, and ...
LONGEST_US: Final = 86_400 * US_PER_S  # ... of a guess, so that a product of both fits 64 bits
LEAST_PPB: Final = 10_000  # numbers of levels with less chance do not count

_Group = tuple[str, str, int]  # class, role of the call, doublings of n + 1; "" and -1 = all

# Scores stand for themselves at these levels, in ppm, with these weights: 2 % apart, the last tenth 0.5 %.
_EDGES: Final = np.concatenate((np.arange(0, 900_000, 20_000), np.arange(900_000, PPM + 1, 5_000)))
_LEVELS_PPM: Final = tuple(((_EDGES[:-1] + _EDGES[1:]) // 2).tolist())
_WEIGHTS: Final = np.diff(_EDGES) // 5_000


class Guess(NamedTuple):
    """What n further levels take is said to be `horizon_us` and n times `level_us`, less `start_us`."""

    workflow_class: str
    role: str  # of the call
    gpus: tuple[str, ...]  # that prefill and decode it
    depth: int  # levels there are
    start_us: int  # of the call, after the workflow's
    horizon_us: int
    level_us: int

    def us(self, levels: Ints) -> Ints:
        return np.clip(self.horizon_us + levels * self.level_us - self.start_us, 1, LONGEST_US)


class Mixture(NamedTuple):
    """Equally many ascending residual times and sums of their weights up to each."""

    us: Ints
    weights: Ints

    def at_ppm(self, levels_ppm: Sequence[int]) -> list[int]:
        whole = int(self.weights[-1])
        places = np.searchsorted(self.weights, [whole * level_ppm // PPM for level_ppm in levels_ppm])
        ascending: list[int] = self.us[np.minimum(places, len(self.us) - 1)].tolist()
        return ascending


class _Expected:
    """A guess that waits for the end of its workflow."""

    __slots__ = ("ends_us", "guess", "part")

    def __init__(self, guess: Guess, ends_us: list[int]) -> None:
        self.guess = guess
        self.ends_us = ends_us  # of the parts of its ranks, but for the last one
        self.part = 0  # that it has come to

    def reach(self, horizon_us: int) -> int:
        """The part in which the time until this horizon lies, or the one it has come to."""
        return max(bisect_left(self.ends_us, horizon_us - self.guess.start_us), self.part)


class _Points:
    """Scores of a group, and those at `_LEVELS_PPM` as they were lately."""

    __slots__ = ("_ppm", "_read", "scores")

    def __init__(self) -> None:
        self.scores = RunningQuantiles()
        self._ppm: Ints = np.zeros(0, dtype=np.int64)
        self._read = 0  # scores there were

    def ppm(self) -> Ints:
        if (self.scores.count - self._read) * STALE > self._read:
            self._ppm = np.array([self.scores.at_ppm(level_ppm) for level_ppm in _LEVELS_PPM], dtype=np.int64)
            self._read = self.scores.count
        return self._ppm


class ResidualTimes:
    """Of workflows that are told from each other by their ids."""

    def __init__(self) -> None:
        self._groups: defaultdict[_Group, _Points] = defaultdict(_Points)
        self._coverage = Coverage()
        self._expected: defaultdict[str, list[_Expected]] = defaultdict(list)  # by workflow

    def mixture(self, guess: Guess, chances: Ints) -> Mixture:
        """`chances` of n further levels are those of `Levels.chances`."""
        levels = np.flatnonzero(chances >= LEAST_PPB)
        values, weights = [], []
        for doublings, of_it in _by_doublings(levels):
            points = self._points(guess, doublings)
            values.append((guess.us(of_it)[:, None] * points // PPM).ravel())
            weights.append((chances[of_it][:, None] * (_WEIGHTS if len(points) > 1 else _WEIGHTS.sum())).ravel())
        value, weight = np.concatenate(values), np.concatenate(weights)
        order = np.argsort(value, kind="stable")
        return Mixture(value[order], weight[order].cumsum())

    def quantiles(self, guess: Guess, mixture: Mixture) -> tuple[int, ...]:
        """At `PERCENTS`."""
        return tuple(mixture.at_ppm(self._coverage.levels_ppm(guess.workflow_class, guess.gpus)))

    def expect(self, workflow_id: str, guess: Guess, mixture: Mixture) -> None:
        """Learn from what will be known of the workflow."""
        expected = self._expected[workflow_id]
        if len(expected) < EXPECTED_MAX:
            expected.append(_Expected(guess, mixture.at_ppm(ENDS_PPM[:-1])))

    def goes_on(self, workflow_id: str, horizon_us: int) -> None:
        """The workflow had this horizon, and there is more to come."""
        for expected in self._expected.get(workflow_id, ()):
            part = min(expected.reach(horizon_us) + 1, len(expected.ends_us))
            self._coverage.passed(expected.guess.workflow_class, expected.guess.gpus, range(expected.part, part))
            expected.part = part

    def completed(self, workflow_id: str, depth: int, horizon_us: int) -> None:
        """The workflow has come so many levels deep and has this horizon."""
        told: set[tuple[str, int]] = set()
        for expected in self._expected.get(workflow_id, ()):
            guess, part = expected.guess, expected.reach(horizon_us)
            self._coverage.passed(guess.workflow_class, guess.gpus, range(expected.part, part))
            self._coverage.ended(guess.workflow_class, guess.gpus, part)
            # Of calls side by side the first is scored, so that wide workflows do not outvote others.
            if (guess.role, guess.depth) not in told:
                told.add((guess.role, guess.depth))
                self._score(guess, depth - guess.depth, horizon_us)

    def forget(self, workflow_id: str) -> None:
        """The workflow has ended."""
        self._expected.pop(workflow_id, None)

    def _score(self, guess: Guess, levels: int, horizon_us: int) -> None:
        """So many further levels have come, and that was all."""
        guessed_us = max(guess.horizon_us + levels * guess.level_us - guess.start_us, 1)
        ppm = min(score_ppm(max(horizon_us - guess.start_us, 1), guessed_us), HIGHEST_PPM)
        for group in _widening(guess, _doublings(levels)):
            if group in self._groups or len(self._groups) < GROUPS_MAX:
                self._groups[group].scores.add(ppm)

    def _points(self, guess: Guess, doublings: int) -> Ints:
        """Of the narrowest group that has enough; one as long as there is none."""
        for group in _widening(guess, doublings):
            points = self._groups.get(group)
            if points is not None and points.scores.count >= TRUSTED:
                return points.ppm()
        return np.array([PPM])


def _doublings(levels: int) -> int:
    """Of n + 1: 0 for 0, 1 for 1 and 2, 2 for 3 to 6, and so on."""
    return min((levels + 1).bit_length() - 1, DOUBLINGS - 1)


def _by_doublings(levels: Ints) -> list[tuple[int, Ints]]:
    """Ascending numbers of levels, parted."""
    edges = [(1 << doublings) - 1 for doublings in range(1, DOUBLINGS)]
    parts = np.split(levels, np.searchsorted(levels, edges))
    return [(doublings, part) for doublings, part in enumerate(parts) if len(part)]


def _widening(guess: Guess, doublings: int) -> tuple[_Group, ...]:
    """Each group once, the narrowest first."""
    name = guess.workflow_class
    return tuple(dict.fromkeys(((name, guess.role, doublings), (name, "", doublings), (name, "", -1))))
