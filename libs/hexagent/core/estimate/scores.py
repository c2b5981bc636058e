"""Conformal scores: what was measured over what was predicted, by group, from a GPU type to a role to a class to all.

A quantile of the scores times a prediction is a quantile of what will be measured, as far as what comes is like what
was: stated coverage is coverage, whatever the prediction is worth. Where it is not quite, since load has changed or
short things are measured before long ones, the level of the quantile follows the misses (adaptive conformal inference,
Gibbs and Candes 2021): up at a miss, down otherwise, balanced where the stated share is covered. It stays below
the largest scores: those of a heavy tail cost more than the misses they would save. Scores have no unit, so those of
wider groups stand in for those of a group that has few.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from hexagent.core.estimate.lengths import PERCENTS
from hexagent.core.estimate.quantiles import RunningQuantiles
from hexagent.core.units import PPM, ceil_div

GROUPS_MAX: Final = 256  # remembered; later ones fall back to wider groups
TRUSTED: Final = 100  # scores a group needs to answer, so that it has a 99 % quantile
TRUSTED_WIDEST: Final = 20  # the same where nothing wider could answer
PRIOR_PPM: Final = {50: PPM, 90: 2 * PPM, 99: 4 * PPM}  # before anything was measured
STEP_PPM: Final = 10  # of a level, for each per cent of what a miss or a hit was unlikely by
HIGHEST_PPM: Final = 992_500  # level: seven of a thousand scores are above it

FORGET: Final = 1_024  # a loss counts 1/e after so many later ones

Group = tuple[str, str, str]  # class, role and GPU type, "" = all
EVERYTHING: Final[Group] = ("", "", "")


def score_ppm(measured: int, predicted: int) -> int:
    """Rounded up, so that the score times its own prediction, rounded down, is not below what was measured."""
    return ceil_div(measured * PPM, max(predicted, 1))


class Scores:
    """The latest scores of each group, of predictions at one of `PERCENTS`."""

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._groups: defaultdict[Group, RunningQuantiles] = defaultdict(RunningQuantiles)
        self._levels_ppm: dict[Group, int] = {}  # of the narrowest groups

    def observe(self, group: Group, ppm: int, missed: bool) -> None:
        """A measurement with its score, and whether it was above its prediction."""
        for wider in _widening(group):
            if wider in self._groups or len(self._groups) < GROUPS_MAX:
                self._groups[wider].add(ppm)
        if group in self._groups:
            level_ppm = self.level_ppm(group) + STEP_PPM * (self._percent if missed else self._percent - 100)
            self._levels_ppm[group] = min(max(level_ppm, 0), HIGHEST_PPM)

    def level_ppm(self, group: Group) -> int:
        return self._levels_ppm.get(group, self._percent * (PPM // 100))

    def knows(self, group: Group) -> bool:
        """Whether there are enough of the group's class."""
        own = self._groups.get((group[0], "", ""))
        return own is not None and own.count >= TRUSTED

    def quantile_ppm(self, group: Group) -> int:
        """Of the narrowest group that has enough."""
        for wider in _widening(group):
            scores = self._groups.get(wider)
            if scores is not None and scores.count >= (TRUSTED if wider != EVERYTHING else TRUSTED_WIDEST):
                return scores.at_ppm(self.level_ppm(group))
        return PRIOR_PPM[self._percent]


class _Quantile:
    """One of `PERCENTS` of a quantity, composed or alone: the quantile of what was measured, whatever is composed.

    A composition that tells nothing scatters, and that costs most at the highest quantile. So that answers which has
    cost least, in pinball loss, the error that a quantile minimises.
    """

    def __init__(self, percent: int) -> None:
        self._percent = percent
        self._composed, self._alone = Scores(percent), Scores(percent)
        self._losses: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])  # by class, lately

    def answer(self, group: Group, composed: int) -> int:
        by_composition, alone = self._told(group, composed)
        cost, cost_alone = self._losses[group[0]]
        return alone if alone and cost_alone < cost else by_composition

    def observe(self, group: Group, composed: int, measured: int) -> None:
        """Predict, pay, learn."""
        losses, answers = self._losses[group[0]], self._told(group, composed)
        for place, told in enumerate(answers if all(answers) else ()):
            loss = (self._percent if measured > told else self._percent - 100) * (measured - told)
            losses[place] += loss - losses[place] // FORGET
        self._composed.observe(group, score_ppm(measured, composed), measured > answers[0])
        self._alone.observe(group, measured * PPM, measured > answers[1])

    def _told(self, group: Group, composed: int) -> tuple[int, int]:
        """By the composition, and without it; 0 while too little is known of the class."""
        by_composition = composed * self._composed.quantile_ppm(group) // PPM
        return by_composition, self._alone.quantile_ppm(group) // PPM if self._alone.knows(group) else 0


class Calibrated:
    """Quantiles of a quantity that is composed of others: compositions at `PERCENTS`, each times a quantile of its own
    scores. Parts at their 90 % quantiles make a whole whose 90 % quantile is another: the scores say by how much."""

    def __init__(self) -> None:
        self._quantiles = [_Quantile(percent) for percent in PERCENTS]

    def quantiles(self, group: Group, composed: Sequence[int]) -> tuple[int, ...]:
        """Ascending; `composed` has one value for each of `PERCENTS`."""
        answers = [of.answer(group, value) for value, of in zip(composed, self._quantiles, strict=True)]
        return tuple(accumulate(answers, max))

    def observe(self, group: Group, composed: Sequence[int], measured: int) -> None:
        """What came of a prediction: the composition, and the measurement."""
        for value, of in zip(composed, self._quantiles, strict=True):
            of.observe(group, value, measured)


def _widening(group: Group) -> tuple[Group, ...]:
    """Each group once, the narrowest first."""
    name, role, _ = group
    return tuple(dict.fromkeys((group, (name, role, ""), (name, "", ""), EVERYTHING)))
