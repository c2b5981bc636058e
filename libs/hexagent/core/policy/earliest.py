"""The foremost calls of a long queue, with a matrix of calls and instances only for those that may be among them.

Scores need to be known only of calls that may be among the first ones, which bounds of their finish tell. Of instances
that are alike only those matter that no other one equals or beats in everything, and they are few.
"""

from itertools import chain
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

_ALL_MAX: Final = 20_000  # calls times instances
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
        topology, books, columns = self.topology, self.topology.books, self.waiting.columns
        steps, free_us = columns[:, OUTPUT] - 1, self._free_us
        early_us, late_us = [], []  # when KV could leave, by kind
        most_us = self.waiting.nominal_us(topology).T if self._hits is None else self._hits.most_us
        for kind, nominal_us in enumerate(most_us):
            alike = np.flatnonzero(topology.kind_of[: topology.senders] == kind)
            if len(alike):
                early_us.append(nominal_us * books.fastest[kind] // PPM + free_us[alike].min())
                i = alike[(free_us[alike] + books.prefill[EGRESS_BUSY, alike]).argmin()]
                end_us = nominal_us * books.speed_ppm[i] // PPM + free_us[i]
                late_us.append(begins_us(end_us, *books.prefill[EGRESS : EGRESS_BUSY + 1, i]))
        if self._hits is not None:
            early_us = [self._hits.least_us + (free_us - self._saved_us).min()]
        moved_us, leave_us = topology.transfer_us(columns[:, PROMPT]), np.minimum.reduce(late_us)
        least_us: IntArray = (
            np.minimum.reduce(early_us) + steps * books.decode[STEP, : topology.receivers].min() + moved_us
        )
        latest_us: IntArray = self._latest_us(leave_us, steps) + moved_us
        return least_us, latest_us

    def _latest_us(self, leave_us: IntArray, steps: IntArray) -> IntArray:
        """A finish each call can have whose KV leaves then, but for the transfer."""
        decode = self.topology.books.decode[:, : self.topology.receivers]
        most_us = []
        for usual in (int(steps.mean()), int(steps.mean()) // 4):
            j = (np.maximum(decode[INGRESS], self._now_us) + decode[LOCAL] + usual * decode[STEP]).argmin()
            begin_us = begins_us(leave_us, *decode[INGRESS : INGRESS_BUSY + 1, j])
            most_us.append(begin_us + steps * decode[STEP, j] + decode[LOCAL, j])
        latest_us: IntArray = np.minimum.reduce(most_us)
        return latest_us

    def _by_few(self, rows: IntArray) -> IntArray:
        """Where there is room for each call on each instance, and nothing is cached: by the instances worth a look."""
        topology, books, free_us = self.topology, self.topology.books, self._free_us
        egress, leave_us = books.prefill[EGRESS : EGRESS_BUSY + 1], np.full(len(rows), NEVER_US)
        for kind, nominal_us in enumerate(self.waiting.nominal_us(topology)[rows].T):
            alike = np.flatnonzero(topology.kind_of == kind)
            few = alike[_worth(len(rows), books.speed_ppm[alike], free_us[alike], *egress[:, alike])]
            end_us = nominal_us * books.speed_ppm[few, None] // PPM + free_us[few, None]
            np.minimum(leave_us, np.minimum.reduce(begins_us(end_us, *egress[:, few, None])), out=leave_us)
        return self._moved_us(rows, leave_us)

    def _moved_us(self, rows: IntArray, leave_us: IntArray) -> IntArray:
        """The earliest finish of calls whose KV leaves then, over equal links."""
        decode, columns = self.topology.books.decode[:, : self.topology.receivers], self.waiting.columns[rows].T
        ingress, step_us, local_us = decode[INGRESS : INGRESS_BUSY + 1], decode[STEP], decode[LOCAL]
        few = np.arange(len(step_us))
        if self._room:
            few = _worth(len(rows), step_us, local_us, *ingress)
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
            found = [self._hits.found[row] for row in rows.tolist()]
            nominal_us = np.array([each.nominal_us for each in found], dtype=np.int64).T[topology.kind_of]
            put(nominal_us, [each.others_us for each in found])
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


def _worth(calls: int, first: IntArray, *others: IntArray) -> IntArray:
    """`unbeaten`, or all places where looking at all of them for so few calls is cheaper than finding those."""
    return unbeaten(first, *others) if calls * len(first) > _ALL_MAX else np.arange(len(first))


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


def put(values: IntArray, others: list[dict[int, int]]) -> None:
    """Other values, by instance, of each call in an array of shape (instances, calls)."""
    calls = np.arange(len(others)).repeat([len(each) for each in others])
    places = np.fromiter(chain.from_iterable(others), np.int64, len(calls))
    values[places, calls] = np.fromiter(chain.from_iterable([each.values() for each in others]), np.int64, len(calls))


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
