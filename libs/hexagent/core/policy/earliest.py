"""The foremost calls of a long queue, with a matrix of calls and instances only for those that may be among them.

Scores need to be known only of calls that may be among the first ones, which bounds of their finish tell. Of instances
that are alike only those matter that no other one equals or beats in everything, and they are few.
"""

from typing import Final, NamedTuple

import numpy as np

from hexagent.core.policy.books import (
    DECODE_ROOM,
    EGRESS,
    EGRESS_BUSY,
    FREE,
    INGRESS,
    INGRESS_BUSY,
    LOCAL,
    PREFILL_ROOM,
    SLOTS,
    STEP,
)
from hexagent.core.policy.order import NOT_NOW, Ages, IntArray, Order
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import OUTPUT, PROMPT, RESERVE_MAX, WaitingCalls
from hexagent.core.units import NEVER_US, PPM

_SORTED_WHOLE: Final = 1_024  # values up to which sorting them all is the fastest way to the smallest ones


class Foremost(NamedTuple):
    """The calls whose turn is first."""

    rows: IntArray
    scores: IntArray  # ascending; `NOT_NOW` = it has no turn
    starved: bool = False  # some call has room nowhere


class Outlook:
    """Where waiting calls would finish before any is placed: what `SimulatedState.finish_us` says then, by arrays."""

    def __init__(self, topology: Topology, waiting: WaitingCalls, now_us: int, aware: bool) -> None:
        self.topology, self.waiting, self._now_us = topology, waiting, now_us
        self._hits = waiting.hits(topology) if aware else None
        books, columns = topology.books, waiting.columns
        self._free_us = np.maximum(books.prefill[FREE], now_us)
        self._saved_us = np.zeros_like(self._free_us)  # of a prompt's time alone
        self._pairs = topology.pairs
        prompt, kv_tokens = columns[:, PROMPT], columns[:, PROMPT] + columns[:, RESERVE_MAX]
        # Whether each instance serves each call and has room for it.
        self._room = bool(
            not waiting.demanding
            and prompt.max() <= books.prefill[PREFILL_ROOM].min()
            and kv_tokens.max() <= books.decode[DECODE_ROOM].min()
            and books.decode[SLOTS].min() > 0
        )

    def bounds_us(self) -> tuple[IntArray, IntArray] | None:
        """Times before and behind which no call finishes; None where that depends on the pair or on room."""
        if not (self.topology.uniform and self._room):
            return None
        return self._bounds_us()

    def finish_us(self, rows: IntArray) -> IntArray:
        """Finish of these calls; at `NEVER_US` or later = nowhere."""
        if self.topology.uniform and self._room and self._hits is None:
            return self._by_few(rows)
        return self._by_all(rows)

    def _bounds_us(self) -> tuple[IntArray, IntArray]:
        topology, books, free_us = self.topology, self.topology.books, self._free_us
        most_us = self.waiting.nominal_us(topology).T if self._hits is None else self._hits.most_us
        first = self._first_free()
        end_us = most_us[topology.kind_of[first]] * books.speed_ppm[first, None] // PPM + free_us[first, None]
        late_us = np.minimum.reduce(begins_us(end_us, *books.prefill[EGRESS : EGRESS_BUSY + 1, first, None]))
        if self._hits is None:
            early_us = np.minimum.reduce(most_us * books.fastest_ppm[:, None] // PPM + free_us[first, None])
        else:
            early_us = self._hits.least_us + (free_us - self._saved_us).min()
        columns = self.waiting.columns
        steps, moved_us = columns[:, OUTPUT] - 1, topology.transfer_us(columns[:, PROMPT])
        decode = books.decode[:, : topology.receivers]
        least_us: IntArray = early_us + steps * decode[STEP].min() + moved_us
        # The shortest step of those that take in at once what leaves.
        _, j = min([(books.decode_of[STEP][few[-1]], few[-1]) for few in self._worth_decode(int(early_us.min()))])
        begin_us = begins_us(late_us, *decode[INGRESS : INGRESS_BUSY + 1, j])
        latest_us: IntArray = begin_us + steps * decode[STEP, j] + (decode[LOCAL, j] + moved_us)
        return least_us, latest_us

    def _first_free(self) -> list[int]:
        """The sender of each kind that is free first."""
        first: list[int] = []
        for entries in self.topology.books.by_free:
            for _, i in entries:
                if i < self.topology.senders:
                    first.append(i)
                    break
        return first

    def _by_few(self, rows: IntArray) -> IntArray:
        """Where there is room for each call on each instance, and nothing is cached: by the instances worth a look."""
        books, nominal_us = self.topology.books, self.waiting.nominal_us(self.topology)[rows]
        few = self._worth_prefill(np.minimum.reduce(nominal_us).tolist())
        end_us = nominal_us.T[self.topology.kind_of[few]] * books.speed_ppm[few, None] // PPM + self._free_us[few, None]
        leave_us = np.minimum.reduce(begins_us(end_us, *books.prefill[EGRESS : EGRESS_BUSY + 1, few, None]))
        return self._moved_us(rows, leave_us)

    def _worth_prefill(self, nominal_us: list[int]) -> list[int]:
        """P without those behind one of their kind that is no slower, is free as early and sends at once what takes at
        least so much time, by kind."""
        books, few = self.topology.books, list[int]()
        for least_us, entries, fastest_ppm in zip(nominal_us, books.by_free, books.fastest, strict=True):
            least_ppm = NEVER_US
            for free_us, i in entries:
                speed_ppm = books.speeds[i]
                if speed_ppm < least_ppm:
                    few.append(i)
                    if books.prefill_of[EGRESS][i] <= max(free_us, self._now_us) + least_us * speed_ppm // PPM:
                        least_ppm = speed_ppm
                        if least_ppm == fastest_ppm:
                            break
        return few

    def _worth_decode(self, leave_us: int) -> list[list[int]]:
        """D, by link sort, up to the first one that takes in at once what leaves then or later; those behind it have
        no shorter steps."""
        books, worth = self.topology.books, list[list[int]]()
        for entries in books.by_step:
            few: list[int] = []
            for _, j in entries:
                if j < self.topology.receivers:
                    few.append(j)
                    if books.decode_of[INGRESS][j] <= leave_us and not books.decode_of[LOCAL][j]:
                        break
            if few:
                worth.append(few)
        return worth

    def _moved_us(self, rows: IntArray, leave_us: IntArray) -> IntArray:
        """The earliest finish of calls whose KV leaves then, over equal links."""
        decode, columns = self.topology.books.decode[:, : self.topology.receivers], self.waiting.columns[rows].T
        ingress, step_us, local_us = decode[INGRESS : INGRESS_BUSY + 1], decode[STEP], decode[LOCAL]
        few = list(range(len(step_us)))
        if self._room:
            few = [j for worth in self._worth_decode(int(leave_us.min())) for j in worth]
        alone_us = (columns[OUTPUT] - 1) * step_us[few, None] + local_us[few, None]
        if not self._room:
            alone_us[self._full(rows)[: len(few)]] = NEVER_US
        decode_us = np.minimum.reduce(begins_us(leave_us, *ingress[:, few, None]) + alone_us)
        finish_us: IntArray = decode_us + self.topology.transfer_us(columns[PROMPT])
        return finish_us

    def _full(self, rows: IntArray) -> IntArray:
        """Whether each of D does not serve each call or lacks room for it."""
        decode, columns = self.topology.books.decode, self.waiting.columns[rows].T
        kv_tokens = self.waiting.kv_needed(self.topology, columns).decode[self.topology.decode_sort]
        lacking: IntArray = kv_tokens > decode[DECODE_ROOM][:, None]
        full: IntArray = lacking | (decode[SLOTS] <= 0)[:, None]
        return full

    def _alone_us(self, rows: IntArray) -> IntArray:
        """Prefill time of calls on each of P, shape (P, calls)."""
        topology = self.topology
        if self._hits is None:
            nominal_us = self.waiting.nominal_us(topology)[rows].T[topology.kind_of]
        else:
            nominal_us = self._hits.arrays(rows)[1]
        alone_us: IntArray = nominal_us * topology.books.speed_ppm[:, None] // PPM
        return alone_us

    def _by_all(self, rows: IntArray) -> IntArray:
        end_us = self._free_us[:, None] + self._alone_us(rows)
        return self._over_pairs(rows, self._leave_us(rows, end_us))

    def _leave_us(self, rows: IntArray, end_us: IntArray) -> IntArray:
        """When KV could leave each of P where prompts are computed then, (P, calls)."""
        books = self.topology.books
        leave_us = begins_us(end_us, *books.prefill[EGRESS : EGRESS_BUSY + 1, :, None])
        leave_us[self._pinned(rows) > books.prefill[PREFILL_ROOM][:, None]] = NEVER_US
        return leave_us

    def _pinned(self, rows: IntArray) -> IntArray:
        """KV tokens that calls need on each of P, (P, calls)."""
        needed = self.waiting.kv_needed(self.topology, self.waiting.columns[rows].T)
        pinned: IntArray = needed.prefill[self.topology.prefill_sort]
        return pinned

    def _over_pairs(self, rows: IntArray, leave_us: IntArray) -> IntArray:
        """The earliest finish where KV leaves each of P then."""
        topology = self.topology
        if topology.uniform:
            return self._moved_us(rows, np.minimum.reduce(leave_us))
        decode, columns = topology.books.decode, self.waiting.columns[rows].T
        decode_us = (columns[OUTPUT] - 1) * decode[STEP][:, None] + decode[LOCAL][:, None]
        decode_us[self._full(rows)] = NEVER_US
        begin_us = begins_us(leave_us[:, None], *decode[INGRESS : INGRESS_BUSY + 1][:, :, None])
        begin_us = np.where(topology.local[:, :, None], leave_us[:, None], begin_us)
        pair_us = begin_us + decode_us + topology.transfer_us(columns[PROMPT])
        finish_us: IntArray = np.where(self._pairs[:, :, None], pair_us, NEVER_US).min(axis=(0, 1))
        return finish_us


def foremost(order: Order, ages: Ages, outlook: Outlook, count: int) -> Foremost:
    """The `count` calls with the smallest scores before any is placed."""
    rows, bounds_us = np.arange(len(ages.calls)), outlook.bounds_us()
    finish_us = np.zeros(len(rows), dtype=np.int64)
    if bounds_us is not None and len(rows) > count:
        finish_us, latest_us = bounds_us
        last = np.partition(order.scores(ages, finish_us), count - 1)[count - 1]
        rows = np.flatnonzero(order.scores(ages, latest_us) <= last)
    finish_us[rows] = outlook.finish_us(rows)
    nowhere = finish_us >= NEVER_US
    scores = order.scores(ages, np.where(nowhere, ages.now_us, finish_us))
    scores[nowhere] = NOT_NOW  # what follows is for calls that have room somewhere
    first = smallest(scores[rows], count)
    return Foremost(rows[first], scores[rows][first], bool(nowhere.any()))


def unbeaten(first: IntArray, *others: IntArray) -> IntArray:
    """Places of the tuples, without such as one with a smaller `first` equals or beats in all `others`.

    It must be a single one that does: one less in one of them and another in the next can both be worse for some call.
    Only those with the least of either so far are looked at, so a few more are kept than need be.
    """
    order = np.lexsort((*reversed(others), first))
    others = tuple([values[order] for values in others])
    beaten = np.zeros(len(order), dtype=bool)
    for values in others:
        least = np.where(values == np.minimum.accumulate(values), np.arange(len(order)), 0)
        before = np.maximum.accumulate(least)[:-1]  # place of the least one before each
        beaten[1:] |= np.logical_and.reduce([other[before] <= other[1:] for other in others])
    return order[~beaten]


def begins_us(ready_us: IntArray, free_us: IntArray | int, busy_us: IntArray | int) -> IntArray:
    """`Backlog.begins_us` of arrays."""
    begin_us: IntArray = np.maximum(ready_us, np.minimum(free_us, ready_us + busy_us))
    return begin_us


def smallest(values: IntArray, count: int) -> IntArray:
    """Places of the `count` smallest values, ascending, equal ones in order of place; all if there are fewer."""
    if len(values) <= max(_SORTED_WHOLE, count):
        return values.argsort(kind="stable")[:count]
    if (values[1:] >= values[:-1]).all():  # as they are first come first served
        return np.arange(count)
    near = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return near[values[near].argsort(kind="stable")[:count]]
