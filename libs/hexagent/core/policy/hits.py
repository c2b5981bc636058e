"""What waiting calls are believed to find in prefix caches, kept up to date without asking for each call again."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from hexagent.core.ids import CallId
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call
from hexagent.core.units import NEVER_US, PPM

_FIRST_ROWS = 64


class Found:
    """Of one prompt: most instances hold as much of it, such as the opening of its class of workflow; few hold more."""

    __slots__ = ("array", "changes", "least_us", "most_us", "nominal_us", "others", "others_us", "priced", "tokens")

    def __init__(self, tokens: int, nominal_us: list[int]) -> None:
        self.tokens = tokens  # held by all instances but `others`
        self.nominal_us = nominal_us  # table time of the rest, by kind of instance
        self.others: dict[int, int] = {}  # tokens, by instance
        self.others_us: dict[int, int] = {}  # table time of the rest there
        self.priced: dict[tuple[int, int], int] = {}  # that by kind and tokens, once looked up
        self.array: IntArray | None = None  # tokens, and table time, by instance, (2, P), once asked for
        self.least_us = 0  # alone, of the rest where that is least
        self.most_us = nominal_us  # table time of the rest where that is most, by kind, or more
        self.changes = 0  # of what instances hold, since they were counted

    def tokens_on(self, i: int) -> int:
        return self.others.get(i, self.tokens)


class Waiting(NamedTuple):
    """A call with a certain segment in its prompt."""

    call: Call
    found: Found
    before_tokens: int  # of its prompt, in front of that segment


class Hits:
    """Rows are those of the waiting calls; instances are the prefill instances of one topology.

    A call's hit on an instance changes only with blocks of a segment that its prompt has, where the instance has all
    that is before it. So just the calls with a segment that changed are looked at, and of these the ones that hit so
    far are looked up again.
    """

    def __init__(self, topology: Topology, calls: Iterable[Call]) -> None:
        self.topology = topology
        self.found: list[Found] = []  # by row
        self._caches = [p.cache for p in topology.prefill]
        self._kind_of: list[int] = topology.kind_of.tolist()
        self._calls_with: dict[str, dict[CallId, Waiting]] = {}  # by digest of a segment
        # By row, what `Found` says.
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
        for i, cache in enumerate(self._caches):
            if cache is not None:
                again: dict[CallId, Waiting] = {}
                for digest in dict.fromkeys([segment.digest for segment in cache.changes()]):
                    again |= {
                        call_id: waiting
                        for call_id, waiting in self._calls_with.get(digest, {}).items()
                        if waiting.found.tokens_on(i) > waiting.before_tokens - cache.block_tokens
                    }
                for call, found, _ in again.values():
                    tokens = cache.match(call.chain, call.prompt_tokens)
                    if tokens != found.tokens_on(i) and self._set(found, i, call, tokens):
                        self._tell(row_of(call))

    @property
    def least_us(self) -> IntArray:
        """Time of what is left of each prompt, alone where that is least, shape (calls,)."""
        books, count = self.topology.books, len(self.found)
        if self._speeds != books.learned:
            self._speeds = books.learned
            for found in self.found:
                found.least_us = self._least_of(found)
            self._least_us[:count] = [found.least_us for found in self.found]
        return self._least_us[:count]

    @property
    def most_us(self) -> IntArray:
        """Table time of what is left of each prompt where that is most, or more, shape (kinds, calls)."""
        return self._most_us[:, : len(self.found)]

    def arrays(self, rows: IntArray) -> IntArray:
        """What is found of these calls: tokens, and table time of the rest, shape (2, P, calls)."""
        return np.array([self._array(self.found[row]) for row in rows.tolist()], dtype=np.int64).transpose(1, 2, 0)

    def _array(self, found: Found) -> IntArray:
        if found.array is None:
            tokens, nominal_us = np.full(len(self._caches), found.tokens), np.array(found.nominal_us)[self._kind_of]
            places = list(found.others)
            tokens[places], nominal_us[places] = list(found.others.values()), list(found.others_us.values())
            found.array = np.array([tokens, nominal_us])
        return found.array

    def insert(self, row: int, call: Call) -> None:
        """`call` becomes row `row`."""
        count = len(self.found)
        if count == len(self._least_us):
            self._least_us = np.concatenate([self._least_us, np.zeros_like(self._least_us)])
            self._most_us = np.concatenate([self._most_us, np.zeros_like(self._most_us)], axis=1)
        self._least_us[row + 1 : count + 1] = self._least_us[row:count]
        self._most_us[:, row + 1 : count + 1] = self._most_us[:, row:count]
        chain, prompt_tokens = call.chain, call.prompt_tokens
        tokens = [0 if cache is None else cache.match(chain, prompt_tokens) for cache in self._caches]
        found = Found(0, [])
        self._count(found, prompt_tokens, tokens)
        self.found.insert(row, found)
        self._tell(row)
        before_tokens = 0
        for link in call.chain:
            here = self._calls_with.setdefault(link.digest, {})
            here.setdefault(call.call_id, Waiting(call, found, before_tokens))
            before_tokens += link.tokens

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

    def _count(self, found: Found, prompt_tokens: int, tokens: list[int]) -> None:
        """Tell what instances hold by what most of them do."""
        [(usual, _)] = Counter(tokens).most_common(1)
        found.tokens, found.changes = usual, 0
        found.nominal_us = [table.prefill_us(max(prompt_tokens - usual, 1), usual) for table in self.topology.kinds]
        found.others = {i: held for i, held in enumerate(tokens) if held != usual}
        found.others_us = {i: self._priced(found, i, prompt_tokens, held) for i, held in found.others.items()}
        found.least_us, found.most_us = self._least_of(found), found.nominal_us.copy()
        for i, nominal_us in found.others_us.items():
            if nominal_us > found.most_us[self._kind_of[i]]:
                found.most_us[self._kind_of[i]] = nominal_us

    def _priced(self, found: Found, i: int, prompt_tokens: int, tokens: int) -> int:
        """Table time on an instance that holds so much."""
        kind = self._kind_of[i]
        nominal_us = found.priced.get((kind, tokens))
        if nominal_us is None:
            nominal_us = self.topology.kinds[kind].prefill_us(max(prompt_tokens - tokens, 1), tokens)
            found.priced[kind, tokens] = nominal_us
        return nominal_us

    def _set(self, found: Found, i: int, call: Call, tokens: int) -> bool:
        """One instance holds so much of the prompt; whether that changes the least or the most."""
        kind, speed_ppm = self._kind_of[i], self.topology.books.speeds[i]
        nominal_us = found.nominal_us[kind]
        was_us = found.others_us.get(i, nominal_us) * speed_ppm // PPM
        if tokens == found.tokens:
            del found.others[i], found.others_us[i]
        else:
            nominal_us = self._priced(found, i, call.prompt_tokens, tokens)
            found.others[i], found.others_us[i] = tokens, nominal_us
        if found.array is not None:
            found.array[:, i] = tokens, nominal_us
        found.changes += 1
        if found.changes > len(self._caches) // 2:
            self._count(found, call.prompt_tokens, [found.tokens_on(p) for p in range(len(self._caches))])
            return True
        alone_us = nominal_us * speed_ppm // PPM
        more, least_us = nominal_us > found.most_us[kind], found.least_us
        if more:
            found.most_us[kind] = nominal_us
        if alone_us < least_us:
            found.least_us = alone_us
        elif was_us == least_us:
            found.least_us = self._least_of(found)
        return more or found.least_us != least_us

    def _tell(self, row: int) -> None:
        self._least_us[row], self._most_us[:, row] = self.found[row].least_us, self.found[row].most_us

    def _least_of(self, found: Found) -> int:
        """Time of what is left of a prompt, alone where that is least."""
        books, others = self.topology.books, found.others
        least_us = min([us * books.speeds[i] // PPM for i, us in found.others_us.items()], default=NEVER_US)
        for kind, nominal_us in enumerate(found.nominal_us):
            for speed_ppm, i in books.by_speed[kind]:
                if i not in others:
                    least_us = min(least_us, nominal_us * speed_ppm // PPM)
                    break
        return least_us
