"""The foremost calls of a long queue, without a matrix of all calls and all instances.

Scores need to be known only of calls that may be among the first ones, which bounds of their finish tell. Of instances
that are alike only those matter that no other one equals or beats in everything, and they are few.
"""

from typing import NamedTuple

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
from hexagent.core.policy.order import Ages, IntArray, Order
from hexagent.core.policy.placement import begins_us, smallest
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import OUTPUT, PROMPT, RESERVE_MAX, WaitingCalls
from hexagent.core.units import PPM

_ALL_MAX = 20_000  # calls times instances


class Foremost(NamedTuple):
    """The calls whose turn is first."""

    rows: IntArray
    scores: IntArray  # ascending


def foremost(
    order: Order, ages: Ages, topology: Topology, waiting: WaitingCalls, now_us: int, count: int
) -> Foremost | None:
    """The `count` calls with the smallest scores before any is placed, if no cache is looked at.

    None where their finish depends on the pair or on room: where links differ, or some instance does not serve, or is
    too full for, some call.
    """
    books, prompt = topology.books, waiting.columns[:, PROMPT]
    if not (
        topology.uniform
        and not waiting.demanding
        and prompt.max() <= books.prefill[PREFILL_ROOM].min()
        and (prompt + waiting.columns[:, RESERVE_MAX]).max() <= books.decode[DECODE_ROOM].min()
        and books.decode[SLOTS].min() > 0
    ):
        return None
    rows = np.arange(len(waiting))
    finish_us, latest_us = _bounds_us(topology, waiting, now_us)
    if len(waiting) > count:
        last = np.partition(order.scores(ages, finish_us), count - 1)[count - 1]
        rows = np.flatnonzero(order.scores(ages, latest_us) <= last)
    finish_us[rows] = earliest_finish_us(topology, waiting, rows, now_us)
    scores = order.scores(ages, finish_us)[rows]
    first = smallest(scores, count)
    return Foremost(rows[first], scores[first])


def _bounds_us(topology: Topology, waiting: WaitingCalls, now_us: int) -> tuple[IntArray, IntArray]:
    """Times before and behind which no call finishes if it is placed next."""
    books, steps = topology.books, waiting.columns[:, OUTPUT] - 1
    free_us = np.maximum(books.prefill[FREE], now_us)
    early_us, late_us = [], []  # when KV could leave, by kind
    for kind, nominal_us in enumerate(waiting.nominal_us(topology).T):
        alike = np.flatnonzero(topology.kind_of == kind)
        early_us.append(nominal_us * books.fastest[kind] // PPM + free_us[alike].min())
        i = alike[(free_us[alike] + books.prefill[EGRESS_BUSY, alike]).argmin()]
        end_us = nominal_us * books.speed_ppm[i] // PPM + free_us[i]
        late_us.append(begins_us(end_us, *books.prefill[EGRESS : EGRESS_BUSY + 1, i]))
    moved_us, leave_us = topology.transfer_us(waiting.columns[:, PROMPT]), np.minimum.reduce(late_us)
    step_us, local_us, ready_us = books.decode[STEP], books.decode[LOCAL], books.decode[INGRESS]
    least_us = np.minimum.reduce(early_us) + steps * step_us.min() + moved_us
    most_us = []
    for usual in (int(steps.mean()), int(steps.mean()) // 4):
        j = (np.maximum(ready_us, now_us) + local_us + usual * step_us).argmin()
        begin_us = begins_us(leave_us, *books.decode[INGRESS : INGRESS_BUSY + 1, j])
        most_us.append(begin_us + steps * step_us[j] + local_us[j] + moved_us)
    return least_us, np.minimum.reduce(most_us)


def earliest_finish_us(topology: Topology, waiting: WaitingCalls, rows: IntArray, now_us: int) -> IntArray:
    """What `SimulatedState.finish_us` says of calls before any is placed, where each instance has room for each."""
    books, columns = topology.books, waiting.columns[rows].T
    free_us = np.maximum(books.prefill[FREE], now_us)
    egress, ingress = books.prefill[EGRESS : EGRESS_BUSY + 1], books.decode[INGRESS : INGRESS_BUSY + 1]
    leave_us = np.full(len(rows), np.iinfo(np.int64).max)
    for kind, nominal_us in enumerate(waiting.nominal_us(topology)[rows].T):
        alike = np.flatnonzero(topology.kind_of == kind)
        few = alike[_worth(len(rows), books.speed_ppm[alike], free_us[alike], *egress[:, alike])]
        end_us = nominal_us * books.speed_ppm[few, None] // PPM + free_us[few, None]
        np.minimum(leave_us, np.minimum.reduce(begins_us(end_us, *egress[:, few, None])), out=leave_us)
    step_us, local_us = books.decode[STEP], books.decode[LOCAL]
    few = _worth(len(rows), step_us, local_us, *ingress)
    alone_us = (columns[OUTPUT] - 1) * step_us[few, None] + local_us[few, None]
    decode_us = np.minimum.reduce(begins_us(leave_us, *ingress[:, few, None]) + alone_us)
    finish_us: IntArray = decode_us + topology.transfer_us(columns[PROMPT])
    return finish_us


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
