"""How many more levels workflows of one class go on for, from how those before went on from level to level.

A level is one call deeper on the longest chain of a workflow's calls: a turn of a conversation, a round of a loop, one
of the steps of a round in a tree search. At each depth it is counted which role the next level had, or that there was
none. Workflows still running count as far as they have come, as in Kaplan and Meier's estimator, so that what ends
early does not make the others look short; one that is between two levels, its calls ended and it not, has come beyond
the first of them, though nobody has seen the second. Where few have been, the counts from half to twice the depth help
out. All of it is integer arithmetic: the same counts give the same answer everywhere.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from hexagent.core.units import PPM

DEPTH_MAX: Final = 128  # deeper levels count as this one
ROLES_MAX: Final = 8  # told apart; the last one stands for all others
BEYOND: Final = 4  # levels; what is deeper than twice the deepest level seen and these does not count
PRIOR: Final = 4  # workflows that counts of other depths weigh as at each single one
STALE: Final = 8  # the answer is computed again when one in so many of the counts is new
FORGET: Final = 1 << 16  # counts of a class are halved when there are more: some thousands of workflows
_ONE: Final = 10**9  # probability, so that a product with PPM fits 64 bits

Ints = npt.NDArray[np.int64]


class Levels:
    """Transition counts of one class, and how many further levels they say."""

    def __init__(self) -> None:
        self.completed = 0  # workflows
        self._roles: dict[str, int] = {}
        # [depth, role, role of the next level]; the last column counts workflows that ended here.
        self._counts: Ints = np.zeros((DEPTH_MAX + 1, ROLES_MAX, ROLES_MAX + 1), dtype=np.int64)
        self._between: Ints = np.zeros((DEPTH_MAX + 1, ROLES_MAX), dtype=np.int64)
        self._total = 0
        self._new = 0  # counts since the answer was computed
        self._medians: list[list[int]] = []  # [depth][role], once they were asked for
        self._new_chances = 0  # counts since these were computed
        self._chances: list[Ints] = []  # [depth][role, further levels]

    def went_on(self, depth: int, role: str, next_role: str) -> None:
        """From the level `depth`, 1 and up, there was a next one."""
        self._count(depth, role, self._place(next_role))

    def ended(self, depth: int, role: str) -> None:
        """The workflow was complete with `depth` levels."""
        self.completed += 1
        self._count(depth, role, ROLES_MAX)

    def between(self, depth: int, role: str, workflows: int) -> None:
        """So many workflows more, or less, are behind this level and not at the next one."""
        self._between[min(depth, DEPTH_MAX), self._place(role)] += workflows

    def further(self, depth: int, role: str) -> int:
        """The median of the levels after this one, never deeper than anyone has been."""
        if not self._medians or self._new * STALE > self._total:
            self._medians = self._computed()
            self._new = 0
        return self._medians[min(depth, len(self._medians)) - 1][self._place(role)]

    def chances(self, depth: int, role: str) -> Ints:
        """Of 0, 1, 2, ... levels after this one, in parts of a thousand million less what rounding loses."""
        if not self._chances or self._new_chances * STALE > self._total:
            self._chances = [further.copy() for _, further in self._backwards()][::-1]
            self._new_chances = 0
        chances: Ints = self._chances[min(depth, len(self._chances)) - 1][self._place(role)]
        return chances

    def _count(self, depth: int, role: str, target: int) -> None:
        self._counts[min(depth, DEPTH_MAX), self._place(role), target] += 1
        self._total += 1
        self._new += 1
        self._new_chances += 1
        if self._total > FORGET:
            self._counts //= 2
            self._total = int(self._counts.sum())

    def _place(self, role: str) -> int:
        """The role's place; one that comes when all are taken shares the last."""
        if role not in self._roles and len(self._roles) < ROLES_MAX - 1:
            self._roles[role] = len(self._roles)
        return self._roles.get(role, ROLES_MAX - 1)

    def _computed(self) -> list[list[int]]:
        """The medians of what follows each level."""
        deepest, medians = self._deepest(), []
        for depth, further in self._backwards():
            cumulative = further.cumsum(axis=1)
            short = 2 * cumulative < cumulative[:, -1:]  # half of what is there, as rounding loses a little
            medians.append(np.minimum(short.sum(axis=1), max(deepest - depth, 0)).tolist())
        return medians[::-1]

    def _backwards(self) -> Iterator[tuple[int, Ints]]:
        """From beyond the deepest level seen up to the first, each with the chances [role, n] of n levels after it;
        the array is the same one every time."""
        depths = 2 * self._deepest() + BEYOND
        weights = self._weights()
        pooled = _probabilities(weights.sum(axis=0), np.zeros((ROLES_MAX, ROLES_MAX + 1), dtype=np.int64))
        sums = weights.cumsum(axis=0)
        further = np.zeros((ROLES_MAX, depths + 1), dtype=np.int64)  # of _ONE
        further[:, 0] = _ONE
        for depth in range(depths, 0, -1):
            around = sums[min(2 * depth, DEPTH_MAX)] - sums[min((depth - 1) // 2, DEPTH_MAX)]
            moves = _probabilities(weights[min(depth, DEPTH_MAX)], _probabilities(around, pooled))
            after = moves[:, :ROLES_MAX] @ further // PPM
            further[:, 1:] = after[:, :-1]
            further[:, 0] = moves[:, ROLES_MAX] * (_ONE // PPM)
            yield depth, further

    def _weights(self) -> Ints:
        """Counts, in ppm; what is between two levels goes on as others did from there, or from the role, or with it."""
        went_on = self._counts[:, :, :ROLES_MAX]
        usual = _shares(went_on.sum(axis=0), PPM * np.eye(ROLES_MAX, dtype=np.int64))
        weights = self._counts * PPM
        weights[:, :, :ROLES_MAX] += self._between[:, :, None] * _shares(went_on, usual)
        return weights

    def _deepest(self) -> int:
        """One more than the deepest level seen."""
        return int(np.flatnonzero(self._counts.sum(axis=(1, 2))).max(initial=0)) + 1


def _shares(counts: Ints, otherwise: Ints) -> Ints:
    """Of each row, in ppm; rows of `otherwise` where there are no counts."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.where(total > 0, counts * PPM // np.maximum(total, 1), otherwise)


def _probabilities(weights: Ints, prior: Ints) -> Ints:
    """Rows of `weights`, in ppm, with `PRIOR` times the rows of `prior`, over their sum, in ppm; ends where all is
    zero."""
    weights = weights + prior * PRIOR
    weights[weights.sum(axis=1) == 0, ROLES_MAX] = 1
    probabilities: Ints = weights * PPM // weights.sum(axis=1)[:, None]
    return probabilities
