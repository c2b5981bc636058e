"""The order in which waiting calls are placed: one small class a policy, scores as integer arrays."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hexagent.core.scheduling.calls import Call

IntArray = npt.NDArray[np.int64]


class Waiting(NamedTuple):
    """Waiting calls of one model as arrays of shape (calls,), in first-come order; times in microseconds."""

    calls: list[Call]
    ready_us: IntArray
    arrival_us: IntArray  # of the workflow
    horizon_us: IntArray  # of the workflow, at least 1


class Order(Protocol):
    """Smaller scores first; equal scores in first-come order."""

    projected: bool  # scores depend on the finish projected in the simulated state

    def scores(self, waiting: Waiting, now_us: int, finish_us: IntArray) -> IntArray:
        """Scores of shape (calls,). `finish_us` is the projected finish of each call, zeros unless `projected`."""
        ...


def waiting_arrays(calls: list[Call]) -> Waiting:
    rows = [(c.ready_us, c.workflow.arrival_us, max(c.workflow.horizon_us, 1)) for c in calls]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Waiting(calls, columns[:, 0], columns[:, 1], columns[:, 2])
