"""The usable instances of a model, the links between them, and the books a plan begins with."""

from collections.abc import Iterable

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import Role
from hexagent.core.policy.books import Books
from hexagent.core.policy.order import IntArray
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import US_PER_S


def ints(values: Iterable[int]) -> IntArray:
    return np.array(list(values), dtype=np.int64)


class Topology:
    """Usable instances of one model: P for prefill, D for decode, and (P, D) arrays of their links.

    `pairs` says where KV can move: an instance that is not disaggregated, or a decode instance that prefills, only
    hands over to itself, and two instances need the same KV precision. `setup_us` and `rate` (bytes/s) are those of
    the slower end. Only `books` change between plans.
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
        self.setup_us, self.rate = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=np.int64)
        self.local, self.pairs = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for i, p in enumerate(prefill):
            for j, d in enumerate(decode):
                self.setup_us[i, j] = max(p.spec.link.setup_us, d.spec.link.setup_us)
                self.rate[i, j] = min(p.spec.link.bytes_per_s, d.spec.link.bytes_per_s)
                self.local[i, j] = p is d
                stays = p.spec.role is not Role.PREFILL or d.spec.role is Role.BOTH
                self.pairs[i, j] = (p is d) if stays else p.spec.kv_precision == d.spec.kv_precision
        one_link = bool(prefill and decode) and self.rate.min() == self.rate.max()
        one_link = one_link and self.setup_us.min() == self.setup_us.max()
        # Any pair, one kind of link: the best decode instance of a call does not depend on where it is prefilled.
        self.uniform = bool(one_link and self.pairs.all() and not self.local.any())
        self.books = Books(prefill, decode, self.floor_us, self.kind_of, estimator)

    def nominal_prefill_us(self, prompt_tokens: int) -> list[int]:
        """Table time of a prompt alone on each of `kinds`."""
        return [table.prefill_us(max(prompt_tokens, 1)) for table in self.kinds]

    def transfer_us(self, prompt_tokens: IntArray) -> IntArray:
        """Time of each transfer between free ends: shape (calls,) if `uniform`, else (P, D, calls)."""
        kv_bytes = prompt_tokens * self.kv_bytes_per_token
        if self.uniform:
            return kv_bytes * US_PER_S // int(self.rate[0, 0]) + int(self.setup_us[0, 0])
        moved_us = kv_bytes * US_PER_S // self.rate[:, :, None] + self.setup_us[:, :, None]
        return np.where(self.local[:, :, None], 0, moved_us)
