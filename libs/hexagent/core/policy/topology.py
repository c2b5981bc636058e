"""The usable instances of a model, the links between them, and the books a plan begins with."""

from collections.abc import Iterable

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.links import described
from hexagent.core.instance.spec import LinkSpec, Role
from hexagent.core.policy.books import Books
from hexagent.core.policy.order import IntArray
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import US_PER_S


def ints(values: Iterable[int]) -> IntArray:
    return np.array(list(values), dtype=np.int64)


class Topology:
    """Usable instances of one model: P for prefill, D for decode, and (P, D) arrays of their links.

    `pairs` says where KV can move: an instance that is not disaggregated, or a decode instance that prefills, only
    hands over to itself, and two instances need the same KV precision. `setup_us` and `rate` (bytes/s) are what the
    estimator says of each link. They and `books` change between plans.
    """

    def __init__(self, prefill: list[Instance], decode: list[Instance], estimator: Estimator) -> None:
        self.prefill, self.decode = prefill, decode
        kinds = {(p.spec.gpu_type, p.spec.tp, p.spec.precision): estimator.table(p.spec) for p in prefill}
        self.kinds = list(kinds.values())
        places = {kind: place for place, kind in enumerate(kinds)}
        self.kind_of = ints(places[p.spec.gpu_type, p.spec.tp, p.spec.precision] for p in prefill)
        self.kv_bytes_per_token = self.kinds[0].kv_bytes_per_token if prefill else 0
        self.floor_us = ints(estimator.table(p.spec).prefill_us(1) for p in prefill)
        self.caches = any(p.cache is not None for p in prefill)
        self.step_tokens = ints(p.spec.max_step_tokens for p in prefill)
        self.never_evicts = [int(d.profile.never_evicts) for d in decode]
        shape = (len(prefill), len(decode))
        self.local, self.pairs = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for i, p in enumerate(prefill):
            for j, d in enumerate(decode):
                self.local[i, j] = p is d
                stays = p.spec.role is not Role.PREFILL or d.spec.role is Role.BOTH
                self.pairs[i, j] = (p is d) if stays else p.spec.kv_precision == d.spec.kv_precision
        links = {described(p.spec, d.spec) for p in prefill for d in decode}
        # Any pair, links described alike: how far they really differ matters little to when a call can be done.
        self.uniform = bool(len(links) == 1 and self.pairs.all() and not self.local.any())
        self.books = Books(prefill, decode, self.floor_us, self.kind_of, estimator)
        self._estimator, self._learned = estimator, -1
        self.setup_us, self.rate = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=np.int64)
        self._usual = LinkSpec(1, 0)  # medians of the two
        self._links: list[list[LinkSpec]] = []  # by (P, D)

    def update(self, changed: Iterable[Instance]) -> None:
        """Take in what the ledger says of the instances it changed, and the estimator's latest parameters."""
        self.books.update(changed)
        if self._learned != self._estimator.changes:
            self._learned = self._estimator.changes
            self._links = [[self._estimator.link(p.spec, d.spec) for d in self.decode] for p in self.prefill]
            if self.pairs.size:
                self.rate, self.setup_us = np.moveaxis(np.array(self._links, dtype=np.int64), 2, 0)
                self._usual = LinkSpec(int(np.median(self.rate)), int(np.median(self.setup_us)))

    def nominal_prefill_us(self, prompt_tokens: int) -> list[int]:
        """Table time of a prompt alone on each of `kinds`."""
        return [table.prefill_us(max(prompt_tokens, 1)) for table in self.kinds]

    def transfer_us(self, prompt_tokens: IntArray) -> IntArray:
        """Time of each transfer between free ends: (P, D, calls), or (calls,) by the median link if `uniform`."""
        kv_bytes = prompt_tokens * self.kv_bytes_per_token
        if self.uniform:
            return kv_bytes * US_PER_S // self._usual.bytes_per_s + self._usual.setup_us
        moved_us = kv_bytes * US_PER_S // self.rate[:, :, None] + self.setup_us[:, :, None]
        return np.where(self.local[:, :, None], 0, moved_us)

    def pair_us(self, i: IntArray, prompt_tokens: int) -> IntArray:
        """Time of one transfer from each of the prefill instances `i` to each decode instance if `uniform`."""
        moved_us: IntArray = prompt_tokens * self.kv_bytes_per_token * US_PER_S // self.rate[i] + self.setup_us[i]
        return moved_us

    def move_us(self, i: int, j: int, prompt_tokens: int) -> int:
        """Time of one transfer, 0 where none is needed."""
        if self.local[i, j]:
            return 0
        link = self._links[i][j]
        return prompt_tokens * self.kv_bytes_per_token * US_PER_S // link.bytes_per_s + link.setup_us
