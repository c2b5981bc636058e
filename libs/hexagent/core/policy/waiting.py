"""The ready calls of one model as arrays, kept up to date so that a plan need not build them."""

from bisect import bisect_left
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.instance.needs import ANYTHING
from hexagent.core.policy.hits import Found, Hits
from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call
from hexagent.core.units import PPM

READY, ARRIVAL, PROMPT, OUTPUT, RESERVE_PREDICTED, RESERVE_MAX, HORIZON, BELOW, NEEDS = range(9)
_FIRST_ROWS: Final = 64


_order = attrgetter("order")


class KvNeeded(NamedTuple):
    """KV tokens of calls by room sort of instance, shapes (sorts, calls); `EXCLUDED_TOKENS` at least where they may not
    run."""

    prefill: IntArray
    decode: IntArray


class WaitingCalls:
    """Calls in first-come order; row r of `columns` and `nominal_us` belongs to `calls[r]`.

    Both are kept a column after the other, as plans go through them. `nominal_us` has the table time of each call alone
    on each kind of prefill instance of the topology in use.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.demanding = 0  # calls that may not run everywhere
        self._needs = {ANYTHING: 0}  # and their numbers
        self._columns = np.zeros((9, _FIRST_ROWS), dtype=np.int64)
        self._nominal_us = np.zeros((0, _FIRST_ROWS), dtype=np.int64)
        self._topology: Topology | None = None
        self._nothing_found: list[Found] = []  # by row, once there is a topology
        self._hits: Hits | None = None  # once they were asked for

    def __len__(self) -> int:
        return len(self.calls)

    def __contains__(self, call: Call) -> bool:
        index = self._index(call)
        return index < len(self.calls) and self.calls[index] is call

    @property
    def columns(self) -> IntArray:
        """Shape (calls, 9): READY, ARRIVAL, PROMPT, ..., HORIZON, the place of the workflow's, BELOW, and NEEDS."""
        return self._columns[:, : len(self.calls)].T

    def nominal_us(self, topology: Topology) -> IntArray:
        """Shape (calls, kinds) for the kinds of `topology`."""
        self._price(topology)
        return self._nominal_us[:, : len(self.calls)].T

    def _price(self, topology: Topology) -> None:
        if topology is not self._topology:
            self._topology = topology
            self._nominal_us = np.zeros((len(topology.kinds), self._columns.shape[1]), dtype=np.int64)
            self._nothing_found = [Found(0, topology.nominal_prefill_us(call.prompt_tokens)) for call in self.calls]
            for row, found in enumerate(self._nothing_found):
                self._nominal_us[:, row] = found.nominal_us

    def least_us(self, topology: Topology) -> IntArray:
        """Time to prefill each whole prompt alone where that is least, shape (calls,)."""
        alone_us = self.nominal_us(topology) * topology.books.fastest_ppm // PPM
        least_us: IntArray = np.minimum.reduce(alone_us, axis=1)
        return least_us

    def kv_needed(self, topology: Topology, columns: IntArray) -> KvNeeded:
        """Of the calls of these of the `columns`, shape (9, calls)."""
        prompt, needs = columns[PROMPT], columns[NEEDS]
        prefill = np.broadcast_to(prompt, (topology.prefill_sorts, len(prompt)))
        decode = columns[RESERVE_PREDICTED + topology.never_evicts] + prompt
        if not self.demanding:
            return KvNeeded(prefill, decode)
        excluded = [topology.excluded_tokens(known) for known in self._needs]
        of_prefill, of_decode = (np.array(tokens).T[:, needs] for tokens in zip(*excluded, strict=True))
        return KvNeeded(prefill + of_prefill, decode + of_decode)

    def hits(self, topology: Topology) -> Hits | None:
        """What calls are believed to find in caches; None where no instance has one."""
        if not topology.caches:
            return None
        if self._hits is None or self._hits.topology is not topology:
            self._hits = Hits(topology, self.calls)
        self._hits.update(self._index)
        return self._hits

    def found(self, row: int, topology: Topology, hits: Hits | None) -> Found:
        """What the call finds in caches; nothing without `hits`."""
        if hits is not None:
            return hits.found[row]
        self._price(topology)
        return self._nothing_found[row]

    def ages(self, now_us: int) -> Ages:
        """What is kept, to be read until calls come or go."""
        kept = self.columns
        kept.flags.writeable = False
        ready_us, arrival_us, places, below_us = [kept[:, column] for column in (READY, ARRIVAL, HORIZON, BELOW)]
        if not self.calls:
            return Ages(ready_us, arrival_us, places, lambda: places, below_us, self.calls, now_us)
        horizons = self.calls[0].workflow.horizons
        horizon_us, unrevealed_us = np.maximum(horizons.us[places], 1), partial(horizons.unrevealed_us, places)
        return Ages(ready_us, arrival_us, horizon_us, unrevealed_us, below_us, self.calls, now_us)

    def add(self, call: Call) -> None:
        row, count = self._index(call), len(self.calls)
        if count == self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
            self._nominal_us = np.concatenate([self._nominal_us, np.zeros_like(self._nominal_us)], axis=1)
        if row < count:
            self._columns[:, row + 1 : count + 1] = self._columns[:, row:count]
            self._nominal_us[:, row + 1 : count + 1] = self._nominal_us[:, row:count]
        self.calls.insert(row, call)
        self._columns[:, row] = (
            call.ready_us,
            call.workflow.arrival_us,
            call.prompt_tokens,
            call.output_q50,
            call.output_q90,
            call.max_tokens,
            call.workflow.place,
            call.below_us,
            self._needs.setdefault(call.needs, len(self._needs)),
        )
        self.demanding += call.needs != ANYTHING
        if self._topology is not None:
            nominal_us = self._topology.nominal_prefill_us(call.prompt_tokens)
            self._nominal_us[:, row] = nominal_us
            self._nothing_found.insert(row, Found(0, nominal_us))
        if self._hits is not None:
            self._hits.insert(row, call)

    def remove(self, call: Call) -> bool:
        """False if the call does not wait."""
        row, count = self._index(call), len(self.calls)
        if row >= count or self.calls[row] is not call:
            return False
        del self.calls[row]
        self.demanding -= call.needs != ANYTHING
        self._columns[:, row : count - 1] = self._columns[:, row + 1 : count]
        self._nominal_us[:, row : count - 1] = self._nominal_us[:, row + 1 : count]
        del self._nothing_found[row : row + 1]
        if self._hits is not None:
            self._hits.remove(row, call)
        return True

    def _index(self, call: Call) -> int:
        order = call.order
        if not self.calls or self.calls[-1].order < order:
            return len(self.calls)
        if self.calls[0] is call:
            return 0
        return bisect_left(self.calls, order, key=_order)
