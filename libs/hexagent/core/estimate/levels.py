"""How many more levels workflows of one class go on for, from how those before went on from level to level.

A level is one call deeper on the longest chain of a workflow's calls: a turn of a conversation, a round of a loop, one
of the steps of a round in a tree search. At each depth it is counted which role the next level had, or that there was
none. Workflows still running count as far as they have come, as in Kaplan and Meier's estimator, so that what ends
early does not make the others look short. At depths few have reached the counts of the role at all depths help out.
All of it is integer arithmetic: the same counts give the same answer everywhere.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

DEPTH_MAX: Final = 128  # deeper levels count as this one
ROLES_MAX: Final = 8  # told apart; the last one stands for all others
PRIOR: Final = 4  # workflows that the counts of all depths weigh as at each single one
STALE: Final = 8  # the answer is computed again when one in so many of the counts is new
FORGET: Final = 1 << 16  # counts of a class are halved when there are more: some thousands of workflows
_ONE: Final = 10**9  # probability, so that a product with PPM fits 64 bits
_PPM: Final = 10**6

_Ints = npt.NDArray[np.int64]


class Levels:
    """Transition counts of one class, and the median number of further levels they say."""

    def __init__(self) -> None:
        self._roles: dict[str, int] = {}
        # [depth, role, role of the next level]; the last column counts workflows that ended here.
        self._counts: _Ints = np.zeros((DEPTH_MAX + 1, ROLES_MAX, ROLES_MAX + 1), dtype=np.int64)
        self._total = 0
        self._new = 0  # counts since the answer was computed
        self._median: _Ints | None = None  # [depth, role]

    def went_on(self, depth: int, role: str, next_role: str) -> None:
        """From the level `depth`, 1 and up, there was a next one."""
        self._count(depth, role, self._place(next_role))

    def ended(self, depth: int, role: str) -> None:
        """The workflow was complete with `depth` levels."""
        self._count(depth, role, ROLES_MAX)

    def further(self, depth: int, role: str) -> int:
        """Median number of levels after this one."""
        if self._median is None or self._new * STALE > self._total:
            self._median = self._medians()
            self._new = 0
        return int(self._median[min(depth, len(self._median) - 1), self._place(role)])

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

    def _medians(self) -> _Ints:
        """Backwards from the deepest level seen: the distribution of what follows each, then its median."""
        depths = int(np.flatnonzero(self._counts.sum(axis=(1, 2))).max(initial=0)) + 1
        pooled = _probabilities(self._counts.sum(axis=0), np.zeros((ROLES_MAX, ROLES_MAX + 1), dtype=np.int64))
        further = np.zeros((ROLES_MAX, depths + 1), dtype=np.int64)  # probability of n levels more, of _ONE
        further[:, 0] = _ONE
        medians = np.zeros((depths + 1, ROLES_MAX), dtype=np.int64)
        for depth in range(depths, 0, -1):
            moves = _probabilities(self._counts[min(depth, DEPTH_MAX)], pooled)
            after = moves[:, :ROLES_MAX] @ further // _PPM
            further[:, 1:] = after[:, :-1]
            further[:, 0] = moves[:, ROLES_MAX] * (_ONE // _PPM)
            # What rounding lost is in no place, so half of what is there.
            cumulative = further.cumsum(axis=1)
            medians[depth] = (2 * cumulative < cumulative[:, -1:]).sum(axis=1)
        return medians


def _probabilities(counts: _Ints, prior: _Ints) -> _Ints:
    """Rows of `counts` with `PRIOR` times the rows of `prior`, both over their sum, in ppm; ends where all is zero."""
    weights = counts * _PPM + prior * PRIOR
    weights[weights.sum(axis=1) == 0, ROLES_MAX] = 1
    probabilities: _Ints = weights * _PPM // weights.sum(axis=1)[:, None]
    return probabilities
