"""When each call of a long queue would finish first, without a matrix of all calls and all instances.

Of instances that are alike only those matter that no other one equals or beats in everything, and they are few.
"""

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
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.placement import begins_us
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import OUTPUT, PROMPT, RESERVE_MAX, WaitingCalls
from hexagent.core.units import PPM


def earliest_finish_us(topology: Topology, waiting: WaitingCalls, now_us: int) -> IntArray | None:
    """What `SimulatedState.finish_us` says of all waiting calls before any is placed, if no cache is looked at.

    None where that depends on the pair or on room: where links differ, or some instance is too full for some call.
    """
    books, columns = topology.books, waiting.columns.T
    prompt = columns[PROMPT]
    if not (
        topology.uniform
        and prompt.max() <= books.prefill[PREFILL_ROOM].min()
        and (prompt + columns[RESERVE_MAX]).max() <= books.decode[DECODE_ROOM].min()
        and books.decode[SLOTS].min() > 0
    ):
        return None
    free_us = np.maximum(books.prefill[FREE], now_us)
    egress, ingress = books.prefill[EGRESS : EGRESS_BUSY + 1], books.decode[INGRESS : INGRESS_BUSY + 1]
    leave_us = np.full(len(waiting), np.iinfo(np.int64).max)
    for kind, nominal_us in enumerate(waiting.nominal_us(topology).T):
        alike = np.flatnonzero(topology.kind_of == kind)
        for i in alike[unbeaten(books.speed_ppm[alike], free_us[alike], *egress[:, alike])].tolist():
            end_us = nominal_us * books.speed_ppm[i] // PPM + free_us[i]
            np.minimum(leave_us, begins_us(end_us, *egress[:, i]), out=leave_us)
    decode_us = np.full(len(waiting), np.iinfo(np.int64).max)
    step_us, local_us = books.decode[STEP], books.decode[LOCAL]
    for j in unbeaten(step_us, local_us, *ingress).tolist():
        alone_us = (columns[OUTPUT] - 1) * step_us[j] + local_us[j]
        np.minimum(decode_us, begins_us(leave_us, *ingress[:, j]) + alone_us, out=decode_us)
    finish_us: IntArray = decode_us + topology.transfer_us(prompt)
    return finish_us


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
