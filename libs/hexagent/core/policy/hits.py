"""What waiting calls are believed to find in prefix caches, kept up to date without asking for each call again."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from hexagent.core.ids import CallId
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call
from hexagent.core.units import NEVER_US, PPM

_FIRST_ROWS = 64


class Found:
    """Of one prompt: most instances hold as much of it, such as the opening of its class of workflow; few hold more."""

    __slots__ = ("changes", "nominal_us", "others", "tokens")

    def __init__(self, tokens: int, nominal_us: list[int]) -> None:
        self.tokens = tokens  # held by all instances but `others`
        self.nominal_us = nominal_us  # table time of the rest, by kind of instance
        self.others: dict[int, tuple[int, int]] = {}  # the same two by instance
        self.changes = 0  # of what instances hold, since they were counted

    def tokens_on(self, i: int) -> int:
        return self.others[i][0] if i in self.others else self.tokens


class Hits:
    """Rows are those of the waiting calls; instances are the prefill instances of one topology.

    A call's hit on an instance changes only with blocks of segments that its prompt has, so of each belief just the
    calls with a segment that changed are looked up again.
    """

    def __init__(self, topology: Topology, calls: Iterable[Call]) -> None:
        self.topology = topology
        self.found: list[Found] = []  # by row
        self._caches = [p.cache for p in topology.prefill]
        self._kind_of: list[int] = topology.kind_of.tolist()
        self._calls_with: dict[str, dict[CallId, Call]] = {}  # by digest of a segment
        # By row: the least time of what is left, and the most of it by the tables of each kind.
        self._least_us = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._most_us = np.zeros((len(topology.kinds), _FIRST_ROWS), dtype=np.int64)
        self._speeds = -1  # those `_least_us` is made with, as `Books.learned`
        for cache in self._caches:
            if cache is not None:
                cache.watch()
        for row, call in enumerate(calls):
            self.insert(row, call)

    def update(self, row_of: Callable[[Call], int]) -> None:
        """Take in what has changed in caches."""
        rows: set[int] = set()
        for i, cache in enumerate(self._caches):
            if cache is not None:
                changed: dict[CallId, Call] = {}
                for segment in cache.changes():
                    changed |= self._calls_with.get(segment.digest, {})
                for call in changed.values():
                    row, tokens = row_of(call), cache.match(call.chain, call.prompt_tokens)
                    if tokens != self.found[row].tokens_on(i):
                        self._set(row, i, call, tokens)
                        rows.add(row)
        for row in sorted(rows):
            self._bound(row)

    @property
    def least_us(self) -> IntArray:
        """Time of what is left of each prompt, alone where that is least, shape (calls,)."""
        books, count = self.topology.books, len(self.found)
        if self._speeds != books.learned:
            self._speeds = books.learned
            self._least_us[:count] = [self._least_of(found) for found in self.found]
        return self._least_us[:count]

    @property
    def most_us(self) -> IntArray:
        """Table time of what is left of each prompt where that is most, shape (kinds, calls)."""
        return self._most_us[:, : len(self.found)]

    def insert(self, row: int, call: Call) -> None:
        """`call` becomes row `row`."""
        count = len(self.found)
        if count == len(self._least_us):
            self._least_us = np.concatenate([self._least_us, np.zeros_like(self._least_us)])
            self._most_us = np.concatenate([self._most_us, np.zeros_like(self._most_us)], axis=1)
        self._least_us[row + 1 : count + 1] = self._least_us[row:count]
        self._most_us[:, row + 1 : count + 1] = self._most_us[:, row:count]
        for link in call.chain:
            self._calls_with.setdefault(link.digest, {})[call.call_id] = call
        chain, prompt_tokens = call.chain, call.prompt_tokens
        tokens = [0 if cache is None else cache.match(chain, prompt_tokens) for cache in self._caches]
        self.found.insert(row, self._counted(prompt_tokens, tokens))
        self._bound(row)

    def remove(self, row: int, call: Call) -> None:
        """`call` was row `row`."""
        count = len(self.found)
        self._least_us[row : count - 1] = self._least_us[row + 1 : count]
        self._most_us[:, row : count - 1] = self._most_us[:, row + 1 : count]
        del self.found[row]
        for link in call.chain:
            calls = self._calls_with.get(link.digest, {})
            calls.pop(call.call_id, None)
            if not calls:
                self._calls_with.pop(link.digest, None)

    def _counted(self, prompt_tokens: int, tokens: list[int]) -> Found:
        """What instances hold, told by what most of them do."""
        [(usual, _)] = Counter(tokens).most_common(1)
        found = Found(usual, [table.prefill_us(max(prompt_tokens - usual, 1), usual) for table in self.topology.kinds])
        found.others = {i: self._other(i, prompt_tokens, held) for i, held in enumerate(tokens) if held != usual}
        return found

    def _other(self, i: int, prompt_tokens: int, tokens: int) -> tuple[int, int]:
        table = self.topology.kinds[self._kind_of[i]]
        return tokens, table.prefill_us(max(prompt_tokens - tokens, 1), tokens)

    def _set(self, row: int, i: int, call: Call, tokens: int) -> None:
        found = self.found[row]
        if tokens == found.tokens:
            del found.others[i]
        else:
            found.others[i] = self._other(i, call.prompt_tokens, tokens)
        found.changes += 1
        if found.changes > len(self._caches) // 2:
            held = [found.tokens_on(p) for p in range(len(self._caches))]
            self.found[row] = self._counted(call.prompt_tokens, held)

    def _bound(self, row: int) -> None:
        found = self.found[row]
        self._least_us[row] = self._least_of(found)
        most_us = found.nominal_us.copy()
        for i, (_, nominal_us) in found.others.items():
            if nominal_us > most_us[self._kind_of[i]]:
                most_us[self._kind_of[i]] = nominal_us
        self._most_us[:, row] = most_us

    def _least_of(self, found: Found) -> int:
        """Time of what is left of a prompt, alone where that is least."""
        books, others = self.topology.books, found.others
        least_us = min([us * books.speeds[i] // PPM for i, (_, us) in others.items()], default=NEVER_US)
        for kind, nominal_us in enumerate(found.nominal_us):
            for speed_ppm, i in books.by_speed[kind]:
                if i not in others:
                    least_us = min(least_us, nominal_us * speed_ppm // PPM)
                    break
        return least_us
