"""What waiting calls are believed to find in prefix caches, kept up to date without asking for each call again."""

from collections.abc import Callable, Iterable

import numpy as np

from hexagent.core.ids import CallId
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call


class Hits:
    """Rows are those of the waiting calls, columns the prefill instances of one topology.

    A call's hit on an instance changes only with blocks of segments that its prompt has, so of each belief just the
    calls with a segment that changed are looked up again.
    """

    def __init__(self, topology: Topology, calls: Iterable[Call], rows: int) -> None:
        self.topology = topology
        self._caches = [p.cache for p in topology.prefill]
        self._tables = [topology.kinds[kind] for kind in topology.kind_of]
        self._tokens = np.zeros((rows, len(self._caches)), dtype=np.int64)
        self._nominal_us = np.zeros_like(self._tokens)
        self._calls_with: dict[str, dict[CallId, Call]] = {}  # by digest of a segment
        for cache in self._caches:
            if cache is not None:
                cache.watch()
        for row, call in enumerate(calls):
            self.insert(row, row, call)

    def matrices(self, count: int, row_of: Callable[[Call], int]) -> tuple[IntArray, IntArray]:
        """Of `count` calls the tokens they find, and the table time of the rest of their prompts: (calls, P) each."""
        for i, cache in enumerate(self._caches):
            if cache is not None:
                changed: dict[CallId, Call] = {}
                for segment in cache.changes():
                    changed |= self._calls_with.get(segment.digest, {})
                for call in changed.values():
                    self._set(row_of(call), i, call, cache.match(call.chain, call.prompt_tokens))
        return self._tokens[:count], self._nominal_us[:count]

    def insert(self, row: int, count: int, call: Call) -> None:
        """`call` becomes row `row` of the `count` there were."""
        if count == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
            self._nominal_us = np.concatenate([self._nominal_us, np.zeros_like(self._nominal_us)])
        for array in (self._tokens, self._nominal_us):
            array[row + 1 : count + 1] = array[row:count]
        for link in call.chain:
            self._calls_with.setdefault(link.digest, {})[call.call_id] = call
        self._tokens[row] = 0
        self._nominal_us[row] = np.array(self.topology.nominal_prefill_us(call.prompt_tokens))[self.topology.kind_of]
        for i, cache in enumerate(self._caches):
            if cache is not None:
                self._set(row, i, call, cache.match(call.chain, call.prompt_tokens))

    def remove(self, row: int, count: int, call: Call) -> None:
        """`call` was row `row` of `count`."""
        for array in (self._tokens, self._nominal_us):
            array[row : count - 1] = array[row + 1 : count]
        for link in call.chain:
            calls = self._calls_with.get(link.digest, {})
            calls.pop(call.call_id, None)
            if not calls:
                self._calls_with.pop(link.digest, None)

    def _set(self, row: int, i: int, call: Call, found: int) -> None:
        if found != self._tokens[row, i]:
            self._tokens[row, i] = found
            self._nominal_us[row, i] = self._tables[i].prefill_us(max(call.prompt_tokens - found, 1), found)
