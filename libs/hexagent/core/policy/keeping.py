"""Prefill instances that keep calls: they decode what they have prefilled, without a hand-off, where that is better.

Where decode is the bottleneck prefill instances become decode instances as far as it pays, call by call and back again,
with nothing to restart or drain; and a workflow's next call finds its KV, output included, where it is prefilled.
"""

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.dispatch import PredictedFinish
from hexagent.core.policy.order import Ages, IntArray
from hexagent.core.policy.placement import NEVER_US, OTHERS_MAX, SimulatedState, begins_us, smallest
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.ledger import Mixing
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import MILLI, PPM

BURST = 8  # one prefill instance in so many is counted besides: the first calls of a burst find none busy
BUSY_MAX_MILLI = 750  # share of busy prefill instances that decode there is slowed down by, at most
STALLED_MAX = 30  # calls; more are not held up in full, since some of them end in the meantime


class Keeping(PredictedFinish):
    """`PredictedFinish`, aware of caches, with pairs of a prefill instance and itself.

    A placement costs its predicted finish and a share of the time by which its prefill holds up calls that decode on
    the prefill instance (`stall_milli`). The cheapest one is taken; whose turn it is still goes by finishes.
    """

    mixing = Mixing.PREFILL

    def __init__(self, estimator: Estimator, profile: Profile) -> None:
        super().__init__(estimator, profile, aware=True)

    def _ages(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> Ages:
        """With what is left to prefill, where more of it waits for each instance than counts as little."""
        ages, hits = waiting.ages(now_us), waiting.hits(topology)
        if hits is None:
            return ages
        left_us = np.minimum.reduce(hits[1] * topology.books.speed_ppm // PPM, axis=1)
        queue = left_us.sum() > self._profile.cheap_prefill_us * len(topology.prefill)
        return ages._replace(prefill_us=left_us) if queue else ages

    def _state(self, topology: Topology, waiting: WaitingCalls, rows: IntArray, now_us: int) -> SimulatedState:
        if not topology.uniform or topology.remote == len(topology.decode):
            return super()._state(topology, waiting, rows, now_us)
        return KeepingState(topology, self._estimator, waiting, rows, now_us, self._profile)


class KeepingState(SimulatedState):
    """Decode instances from `Topology.remote` on are prefill instances, as columns in the same order as their rows.

    While a share u of the prefill instances is busy, one in `BURST` counted besides, a decode step on one is expected
    to take 1 / (1 - u) times as long.
    """

    def __init__(
        self,
        topology: Topology,
        estimator: Estimator,
        waiting: WaitingCalls,
        rows: IntArray,
        now_us: int,
        profile: Profile,
    ) -> None:
        super().__init__(topology, estimator, waiting, rows, now_us, profile.batch_us_max, aware=True)
        self._stall_milli, remote = profile.stall_milli, topology.remote
        self._column_of = np.where(topology.local.any(axis=1), topology.local.argmax(axis=1), -1)
        self._keepers = np.flatnonzero(self._column_of >= 0)
        self._undisturbed_us = list(self._step_us)
        self._full = self._decode_us[remote:] >= NEVER_US
        self._slow_down()
        self._stall_us = np.zeros_like(self._alone_us)  # what a prefill on P costs those that decode there, (P, calls)
        for i in self._keepers.tolist():
            self._weigh(i)

    def finish_us(self) -> IntArray:
        remote = self._topology.remote
        begin_us = begins_us(np.minimum.reduce(self._leave_us), *self._ingress[:, :remote, None])
        moved_us = np.minimum.reduce(begin_us + self._decode_us[:remote]) + self._transfer_us
        kept_us = self._end_us[self._keepers] + self._decode_us[self._column_of[self._keepers]]
        finish_us: IntArray = np.minimum(moved_us, np.minimum.reduce(kept_us))
        return finish_us

    def none_starts(self, rows: IntArray, before: IntArray) -> bool:
        """Never sure: what a call looks at is not only which instances its KV could leave first."""
        return False

    def feasible(self, r: int) -> bool:
        if self._roomy:
            return True
        moved = self._leave_us[:, r].min() < NEVER_US and self._decode_us[: self._topology.remote, r].min() < NEVER_US
        return bool(moved or self._decode_us[self._topology.remote :, r].min() < NEVER_US)

    def _near(self, r: int) -> tuple[list[int], IntArray]:
        """As ever, with what the placement costs others."""
        remote, keepers = self._topology.remote, self._keepers
        kept_us = self._end_us[keepers, r] + self._decode_us[self._column_of[keepers], r] + self._stall_us[keepers, r]
        moved = smallest(self._leave_us[:, r] + self._stall_us[:, r], OTHERS_MAX + 1).tolist()
        near_i = list(dict.fromkeys(moved + keepers[smallest(kept_us, OTHERS_MAX + 1)].tolist()))
        near = np.array(near_i)
        cost_us = np.full((len(near), len(self._slots)), NEVER_US)
        begin_us = begins_us(self._leave_us[near, r, None], *self._ingress[:, :remote])
        transfer_us = self._topology.pair_us(near, int(self._prompt[r]))[:, :remote]
        cost_us[:, :remote] = begin_us + self._decode_us[:remote, r] + transfer_us + self._stall_us[near, r, None]
        for place, i in enumerate(near_i):
            j = self._column_of[i]
            if j >= 0:
                cost_us[place, j] = self._end_us[i, r] + self._decode_us[j, r] + self._stall_us[i, r]
        return near_i, np.minimum(cost_us, NEVER_US)

    def _candidate(self, r: int, i: int, j: int, finish_us: int) -> Candidate:
        return super()._candidate(r, i, j, finish_us - int(self._stall_us[i, r]))

    def _apply(self, r: int, i: int, j: int) -> None:
        own = int(self._column_of[i])
        if own >= 0 and own != j:
            self._decode_room[own] -= int(self._prompt[r])  # pinned until it is pulled
        super()._apply(r, i, j)

    def _next_step_us(self, j: int) -> int:
        self._undisturbed_us[j] = super()._next_step_us(j)
        return self._undisturbed_us[j]

    def _look_again(self, i: int, j: int) -> None:
        super()._look_again(i, j)
        own = int(self._column_of[i])
        if own >= 0:
            self._weigh(i)
            full = self._kv_tokens[self._topology.never_evicts[own]] > self._decode_room[own]
            self._full[own - self._topology.remote] = full | (self._slots[own] <= 0)
        self._slow_down()

    def _slow_down(self) -> None:
        """What decode on prefill instances takes, as busy as they are."""
        remote, instances = self._topology.remote, len(self._idle)
        busy = instances - sum(self._idle)
        idle_milli = MILLI - min((BURST * busy + instances) * MILLI // ((BURST + 1) * instances), BUSY_MAX_MILLI)
        self._step_us[remote:] = [step_us * MILLI // idle_milli for step_us in self._undisturbed_us[remote:]]
        kept_us = self._steps * np.array(self._step_us[remote:])[:, None]
        self._decode_us[remote:] = np.where(self._full, NEVER_US, kept_us)

    def _weigh(self, i: int) -> None:
        j = int(self._column_of[i])
        stalled = min(len(self._topology.decode[j].decoding) + self._added[j][0], STALLED_MAX)
        self._stall_us[i] = self._alone_us[i] * (stalled * self._stall_milli) // MILLI
