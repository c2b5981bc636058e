"""What the ledger and the estimator say of a topology's instances, as arrays a plan begins with."""

from bisect import bisect_left, insort
from collections.abc import Iterable

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.order import IntArray
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import PPM

FREE, EGRESS, EGRESS_BUSY, PREFILL_ROOM, IDLE = range(5)
INGRESS, INGRESS_BUSY, LOCAL, DECODE_ROOM, SLOTS, STEP = range(6)


class Books:
    """One column an instance, brought up to date only where the ledger has changed it.

    `prefill` has shape (5, P): when the prefill dispatched there ends (0 = there is none), the `Backlog` of its
    transfers, microseconds; free KV tokens; whether nothing is in prefill. `decode` has shape (6, D): the `Backlog` of
    transfers to it, time of prefills of its own and of its next step, microseconds; free KV tokens; free seats.
    `prefill_of` and `decode_of` are the same as lists. `by_free` has (FREE, i) by kind, `by_step` (STEP, j) by link
    sort, ascending.
    """

    def __init__(
        self,
        prefill: list[Instance],
        decode: list[Instance],
        floor_us: IntArray,
        kind_of: IntArray,
        link_sort_of: IntArray,
        estimator: Estimator,
    ) -> None:
        self._prefill, self._decode, self._estimator = prefill, decode, estimator
        self._nominal_floor_us = floor_us
        self.kinds: list[int] = kind_of.tolist()
        self._prefill_at = {p.spec.instance_id: i for i, p in enumerate(prefill)}
        self._decode_at = {d.spec.instance_id: j for j, d in enumerate(decode)}
        self.prefill = np.zeros((5, len(prefill)), dtype=np.int64)
        self.decode = np.zeros((6, len(decode)), dtype=np.int64)
        self.prefill_of: list[list[int]] = self.prefill.tolist()
        self.decode_of: list[list[int]] = self.decode.tolist()
        self.by_free: list[list[tuple[int, int]]] = [[] for _ in set(self.kinds)]
        for i, kind in enumerate(self.kinds):
            self.by_free[kind].append((0, i))
        self.link_sorts: list[int] = link_sort_of.tolist()  # of D
        self.by_step: list[list[tuple[int, int]]] = [[] for _ in set(self.link_sorts)]
        for j, sort in enumerate(self.link_sorts):
            self.by_step[sort].append((0, j))
        self.learned = -1  # the estimator's `changes` that speeds are of
        # Until the first `update`:
        self.speed_ppm = self.fastest_ppm = self.floor_us = kind_of
        self.speeds: list[int] = []  # the same three as lists, and of the slowest of each kind
        self.fastest: list[int] = []
        self.slowest: list[int] = []
        self.floors: list[int] = []
        self.by_speed: list[list[tuple[int, int]]] = [[] for _ in self.by_free]  # (speed, i) by kind, ascending

    def update(self, changed: Iterable[Instance]) -> None:
        """Take in what the ledger says of the instances it changed, and the estimator's latest speeds."""
        if self.learned != self._estimator.changes:
            self.learned = self._estimator.changes
            self._learn_speeds()
            changed = (*self._prefill, *self._decode)
        for instance in changed:
            i = self._prefill_at.get(instance.spec.instance_id)
            if i is not None:
                busy = bool(instance.prefilling)
                free_us = instance.prefill_free_us if busy else 0
                _move(self.by_free[self.kinds[i]], self.prefill_of[FREE][i], free_us, i)
                backlog, idle = instance.sender.backlog, int(not busy)
                _set(self.prefill, self.prefill_of, i, (free_us, *backlog, instance.kv_free_tokens, idle))
            j = self._decode_at.get(instance.spec.instance_id)
            if j is not None:
                seats = instance.spec.max_batch - len(instance.decoding)
                step_us = instance.next_step_us(self._estimator)
                backlog, local_us = instance.receiver.backlog, instance.local_us
                _move(self.by_step[self.link_sorts[j]], self.decode_of[STEP][j], step_us, j)
                column = *backlog, local_us, instance.kv_free_tokens, seats, step_us
                _set(self.decode, self.decode_of, j, column)

    def _learn_speeds(self) -> None:
        """Time factors of prefill instances and of the fastest of each kind, and the least time of a prefill."""
        self.speeds = [self._estimator.speed_ppm(p.spec.instance_id)[0] for p in self._prefill]
        self.speed_ppm = np.array(self.speeds, dtype=np.int64)
        self.by_speed = [sorted([(self.speeds[i], i) for _, i in entries]) for entries in self.by_free]
        self.fastest = [entries[0][0] for entries in self.by_speed]
        self.slowest = [entries[-1][0] for entries in self.by_speed]
        self.fastest_ppm = np.array(self.fastest, dtype=np.int64)
        self.floor_us = self._nominal_floor_us * self.speed_ppm // PPM
        self.floors = self.floor_us.tolist()


def _set(array: IntArray, rows: list[list[int]], place: int, column: tuple[int, ...]) -> None:
    array[:, place] = column
    for row, value in zip(rows, column, strict=True):
        row[place] = value


def _move(entries: list[tuple[int, int]], was: int, value: int, place: int) -> None:
    """Of ascending (value, place) the one of `place`."""
    if was != value:
        del entries[bisect_left(entries, (was, place))]
        insort(entries, (value, place))
