"""How many more levels workflows of one class go on for, from how those before went on from level to level.

A level is one call deeper on the longest chain of a workflow's calls: a turn of a conversation, a round of a loop, one
of the steps of a round in a tree search. At each depth it is counted which role the next level had, or that there was
none. Workflows still running count as far as they have come, as in Kaplan and Meier's estimator, so that what ends
early does not make the others look short. Where few have been, the counts from half to twice the depth help out.
All of it is integer arithmetic: the same counts give the same answer everywhere.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

DEPTH_MAX: Final = 128  # deeper levels count as this one
ROLES_MAX: Final = 8  # told apart; the last one stands for all others
BEYOND: Final = 4  # levels; what is deeper than twice the deepest level seen and these does not count
PRIOR: Final = 4  # workflows that counts of other depths weigh as at each single one
STALE: Final = 8  # the answer is computed again when one in so many of the counts is new
FORGET: Final = 1 << 16  # counts of a class are halved when there are more: some thousands of workflows
PERCENTS: Final = (50, 90, 99)
_ONE: Final = 10**9  # probability, so that a product with PPM fits 64 bits
_PPM: Final = 10**6

_Ints = npt.NDArray[np.int64]


class Levels:
    """Transition counts of one class, and the quantiles of the number of further levels they say."""

    def __init__(self) -> None:
        self._roles: dict[str, int] = {}
        # [depth, role, role of the next level]; the last column counts workflows that ended here.
        self._counts: _Ints = np.zeros((DEPTH_MAX + 1, ROLES_MAX, ROLES_MAX + 1), dtype=np.int64)
        self._total = 0
        self._new = 0  # counts since the answer was computed
        self._quantiles: list[list[list[int]]] = []  # [depth][role][one of PERCENTS], once they were asked for

    def went_on(self, depth: int, role: str, next_role: str) -> None:
        """From the level `depth`, 1 and up, there was a next one."""
        self._count(depth, role, self._place(next_role))

    def ended(self, depth: int, role: str) -> None:
        """The workflow was complete with `depth` levels."""
        self._count(depth, role, ROLES_MAX)

    def further(self, depth: int, role: str) -> tuple[int, ...]:
        """Levels after this one, at `PERCENTS`; the median never goes deeper than anyone has been."""
        if not self._quantiles or self._new * STALE > self._total:
            self._quantiles = self._computed().tolist()
            self._new = 0
        return tuple(self._quantiles[min(depth, len(self._quantiles) - 1)][self._place(role)])

    def _count(self, depth: int, role: str, target: int) -> None:
        self._counts[min(depth, DEPTH_MAX), self._place(role), target] += 1
        self._total += 1
        self._new += 1
        if self._total > FORGET:
            self._counts //= 2
            self._total = int(self._counts.sum())

    def _place(self, role: str) -> int:
        """The role's place; one that comes when all are taken shares the last."""
        if role not in self._roles and len(self._roles) < ROLES_MAX - 1:
            self._roles[role] = len(self._roles)
        return self._roles.get(role, ROLES_MAX - 1)

    def _computed(self) -> _Ints:
        """Backwards from beyond the deepest level seen: the distribution of what follows each, then its quantiles."""
        deepest = int(np.flatnonzero(self._counts.sum(axis=(1, 2))).max(initial=0)) + 1
        depths = 2 * deepest + BEYOND
        pooled = _probabilities(self._counts.sum(axis=0), np.zeros((ROLES_MAX, ROLES_MAX + 1), dtype=np.int64))
        sums = self._counts.cumsum(axis=0)
        further = np.zeros((ROLES_MAX, depths + 1), dtype=np.int64)  # probability of n levels more, of _ONE
        further[:, 0] = _ONE
        quantiles = np.zeros((depths + 1, ROLES_MAX, len(PERCENTS)), dtype=np.int64)
        for depth in range(depths, 0, -1):
            around = sums[min(2 * depth, DEPTH_MAX)] - sums[min((depth - 1) // 2, DEPTH_MAX)]
            moves = _probabilities(self._counts[min(depth, DEPTH_MAX)], _probabilities(around, pooled))
            after = moves[:, :ROLES_MAX] @ further // _PPM
            further[:, 1:] = after[:, :-1]
            further[:, 0] = moves[:, ROLES_MAX] * (_ONE // _PPM)
            cumulative = further.cumsum(axis=1)
            for place, percent in enumerate(PERCENTS):
                # Rounding loses a little, so per cent of what is there.
                short = 100 * cumulative < percent * cumulative[:, -1:]
                quantiles[depth, :, place] = short.sum(axis=1)
            quantiles[depth, :, 0] = np.minimum(quantiles[depth, :, 0], max(deepest - depth, 0))
        return quantiles


def _probabilities(counts: _Ints, prior: _Ints) -> _Ints:
    """Rows of `counts` with `PRIOR` times the rows of `prior`, both over their sum, in ppm; ends where all is zero."""
    weights = counts * _PPM + prior * PRIOR
    weights[weights.sum(axis=1) == 0, ROLES_MAX] = 1
    probabilities: _Ints = weights * _PPM // weights.sum(axis=1)[:, None]
    return probabilities
