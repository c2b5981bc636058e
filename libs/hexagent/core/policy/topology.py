"""What does not change between plans: the usable instances of a model and the links between them."""

from collections.abc import Iterable

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import Role
from hexagent.core.policy.order import IntArray
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance


def ints(values: Iterable[int]) -> IntArray:
    return np.fromiter(values, dtype=np.int64)


class Topology:
    """Usable instances of one model: P for prefill, D for decode, and (P, D) arrays of their links.

    `pairs` says where KV can move: an instance that is not disaggregated only hands over to itself, and two
    instances need the same KV precision. `setup_us` and `rate` (bytes/s) are those of the slower end.
    """

    def __init__(self, prefill: list[Instance], decode: list[Instance], estimator: Estimator) -> None:
        self.prefill, self.decode = prefill, decode
        self.kinds = [(p.spec.gpu_type, p.spec.tp, p.spec.precision) for p in prefill]
        self.kv_bytes_per_token = estimator.table(prefill[0].spec).kv_bytes_per_token if prefill else 0
        self.floor_us = ints(estimator.table(p.spec).prefill_us(1) for p in prefill)
        self.step_tokens = ints(p.spec.max_step_tokens for p in prefill)
        self.never_evicts = np.array([d.profile.never_evicts for d in decode], dtype=bool)
        shape = (len(prefill), len(decode))
        self.setup_us, self.rate = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=np.int64)
        self.local, self.pairs = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for i, p in enumerate(prefill):
            for j, d in enumerate(decode):
                self.setup_us[i, j] = max(p.spec.link.setup_us, d.spec.link.setup_us)
                self.rate[i, j] = min(p.spec.link.bytes_per_s, d.spec.link.bytes_per_s)
                self.local[i, j] = p is d
                mixed = Role.BOTH in (p.spec.role, d.spec.role)
                self.pairs[i, j] = (p is d) if mixed else p.spec.kv_precision == d.spec.kv_precision
        self._estimator = estimator

    def nominal_prefill_us(self, calls: list[Call]) -> IntArray:
        """Table time of each call alone, shape (calls, P); kept on the call once looked up."""
        rows = [[self._prefill_us(call, i) for i in range(len(self.kinds))] for call in calls]
        return np.array(rows, dtype=np.int64).reshape(len(calls), len(self.kinds))

    def _prefill_us(self, call: Call, i: int) -> int:
        known = call.prefill_us.get(self.kinds[i])
        if known is None:
            table = self._estimator.table(self.prefill[i].spec)
            known = call.prefill_us[self.kinds[i]] = table.prefill_us(max(call.prompt_tokens, 1))
        return known
