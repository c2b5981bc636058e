"""The order in which waiting calls are placed: one small class a policy, scores as integer arrays."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hexagent.core.scheduling.calls import Call

IntArray = npt.NDArray[np.int64]

NOT_NOW: Final = 1 << 62  # score of a call that does not start in this plan


class Ages(NamedTuple):
    """What orders look at, arrays of shape (calls,), in first-come order; times in microseconds.

    What only some orders look at they take from the calls themselves.
    """

    ready_us: IntArray
    arrival_us: IntArray  # of the workflow
    horizon_us: IntArray  # of the workflow, at least 1
    unrevealed_us: Callable[[], IntArray]  # what to count on of the horizon's growth to come; few orders ask
    below_us: IntArray  # longest path revealed behind the call
    calls: Sequence[Call]
    now_us: int
    prefill_us: IntArray | None = None  # alone, where least is left to compute; None = not looked at
    cached: bool = False  # that is less where a cache holds part of the prompt


class Order(Protocol):
    """Smaller scores first; equal scores in first-come order, and none at `NOT_NOW`."""

    projected: bool  # scores depend on the finish projected in the simulated state

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        """Scores of shape (calls,), which no later finish makes larger.

        `finish_us` is the projected finish of each call, zeros unless `projected`.
        """
        ...
