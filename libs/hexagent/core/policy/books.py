"""What the ledger and the estimator say of a topology's instances, as arrays a plan begins with."""

from collections.abc import Iterable

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.order import IntArray
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import PPM

FREE, EGRESS, EGRESS_BUSY, PREFILL_ROOM, IDLE = range(5)
INGRESS, INGRESS_BUSY, LOCAL, DECODE_ROOM, SLOTS, STEP = range(6)


class Books:
    """One column an instance, brought up to date only where the ledger has changed it.

    `prefill` has shape (5, P): when the prefill dispatched there ends (0 = there is none), the `Backlog` of its
    transfers, microseconds; free KV tokens; whether nothing is in prefill. `decode` has shape (6, D): the `Backlog` of
    transfers to it, time of prefills of its own and of its next step, microseconds; free KV tokens; free seats.
    """

    def __init__(
        self,
        prefill: list[Instance],
        decode: list[Instance],
        floor_us: IntArray,
        kind_of: IntArray,
        estimator: Estimator,
    ) -> None:
        self._prefill, self._decode, self._estimator = prefill, decode, estimator
        self._kind_of, self._nominal_floor_us = kind_of, floor_us
        self._prefill_at = {p.spec.instance_id: i for i, p in enumerate(prefill)}
        self._decode_at = {d.spec.instance_id: j for j, d in enumerate(decode)}
        self.prefill = np.zeros((5, len(prefill)), dtype=np.int64)
        self.decode = np.zeros((6, len(decode)), dtype=np.int64)
        self._learned = -1
        self.speed_ppm = self.fastest_ppm = self.floor_us = kind_of  # until the first `update`

    def update(self, changed: Iterable[Instance]) -> None:
        """Take in what the ledger says of the instances it changed, and the estimator's latest speeds."""
        if self._learned != self._estimator.changes:
            self._learned = self._estimator.changes
            self._learn_speeds()
            changed = (*self._prefill, *self._decode)
        for instance in changed:
            i = self._prefill_at.get(instance.spec.instance_id)
            if i is not None:
                busy = bool(instance.prefilling)
                free_us = instance.prefill_free_us if busy else 0
                self.prefill[:, i] = (free_us, *instance.sender.backlog, instance.kv_free_tokens, not busy)
            j = self._decode_at.get(instance.spec.instance_id)
            if j is not None:
                seats = instance.spec.max_batch - len(instance.decoding)
                step_us = instance.next_step_us(self._estimator)
                backlog, local_us = instance.receiver.backlog, instance.local_us
                self.decode[:, j] = (*backlog, local_us, instance.kv_free_tokens, seats, step_us)

    def _learn_speeds(self) -> None:
        """Time factors of prefill instances and of the fastest of each kind, and the least time of a prefill."""
        speeds = [self._estimator.speed_ppm(p.spec.instance_id)[0] for p in self._prefill]
        self.speed_ppm = np.array(speeds, dtype=np.int64)
        self.fastest_ppm = np.array(
            [self.speed_ppm[self._kind_of == kind].min() for kind in range(int(self._kind_of.max(initial=-1)) + 1)],
            dtype=np.int64,
        )
        self.floor_us = self._nominal_floor_us * self.speed_ppm // PPM
