"""Calls that decode where they are prefilled, without a hand-off, where that is better: on an instance of either role.

Where decode is the bottleneck prefill instances keep calls, so that they become decode instances as far as it pays,
call by call and back again, with nothing to restart or drain; and a workflow's next call finds its KV, output included,
where it is prefilled. Where a prompt has little that its decode instance does not hold already, that is appended there,
in a step of the batch that decodes.
"""

import numpy as np
import numpy.typing as npt

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.books import IDLE
from hexagent.core.policy.dispatch import Plan, PredictedFinish
from hexagent.core.policy.order import Ages, IntArray, Order
from hexagent.core.policy.placement import OTHERS_MAX, SimulatedState, begins_us, smallest
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology, ints
from hexagent.core.policy.waiting import PROMPT, WaitingCalls
from hexagent.core.scheduling.ledger import Mixing
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import MILLI, NEVER_US, PPM

BURST = 8  # one prefill instance in so many is counted besides: the first calls of a burst find none busy
BUSY_MAX_MILLI = 750  # share of busy prefill instances that decode there is slowed down by, at most
STALLED_MAX = 30  # calls; more are not held up in full, since some of them end in the meantime


class Keeping(PredictedFinish):
    """`PredictedFinish`, aware of caches, with pairs of an instance and itself.

    A placement costs its predicted finish and a share of the time by which its prefill holds up calls that decode on
    the instance it is prefilled on: all of it on a decode instance, the part `stall_milli` on a prefill instance, whose
    work that is. The cheapest one is taken; whose turn it is still goes by finishes.
    """

    mixing = Mixing.EITHER

    def __init__(self, estimator: Estimator, profile: Profile) -> None:
        super().__init__(estimator, profile, aware=True)

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        return super().plan(order, topology, waiting, now_us) if self._may_start(topology, waiting) else Plan()

    def _may_start(self, topology: Topology, waiting: WaitingCalls) -> bool:
        """Whether a prefill instance is idle, or a decode instance that appends one of the calls."""
        idle, hits = topology.books.prefill[IDLE] > 0, waiting.hits(topology)
        if hits is None or idle[: topology.senders].any():
            return True
        held = hits[0][:, topology.senders :][:, idle[topology.senders :]]
        new_tokens = waiting.columns[:, PROMPT, None] - held
        return bool(is_short(new_tokens, held, self._profile.local_prefill_tokens_max).any())

    def _ages(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> Ages:
        """With what is left to prefill, where more of it waits for each instance than counts as little."""
        ages, hits = waiting.ages(now_us), waiting.hits(topology)
        if hits is None:
            return ages
        left_us = np.minimum.reduce(hits[1] * topology.books.speed_ppm // PPM, axis=1)
        queue = left_us.sum() > self._profile.cheap_prefill_us * topology.senders
        return ages._replace(prefill_us=left_us) if queue else ages

    def _state(self, topology: Topology, waiting: WaitingCalls, rows: IntArray, now_us: int) -> SimulatedState:
        if topology.mixes:
            return KeepingState(topology, self._estimator, waiting, rows, now_us, self._profile)
        return super()._state(topology, waiting, rows, now_us)


def is_short(new_tokens: IntArray, held: IntArray, tokens_max: int) -> npt.NDArray[np.bool_]:
    """Whether a decode instance appends a prompt: it holds at least as much of it as is new, which is not much."""
    return new_tokens <= np.minimum(held, tokens_max)


class KeepingState(SimulatedState):
    """Of P those from `Topology.senders` on are decode instances, which append; of D those from `Topology.receivers`
    on are prefill instances, which keep.

    While a share u of the prefill instances is busy, one in `BURST` counted besides, work u T is expected to reach one
    while it computes a prompt for T, all of which goes before the decode of d that follows: this takes
    (d + u T) / (1 - u).
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
        self._stall_milli = profile.stall_milli
        self._both = np.flatnonzero(topology.own >= 0)  # of P
        self._append(profile.local_prefill_tokens_max)
        self._keepers = np.flatnonzero(topology.own >= topology.receivers)  # of P, in the order of D
        self._undisturbed_us = list(self._step_us)
        self._full = self._decode_us[topology.receivers :] >= NEVER_US
        self._slow_down()
        self._stall_us = np.zeros_like(self._alone_us)  # what a prefill on P costs those that decode there, (P, calls)
        for i in self._both.tolist():
            self._weigh(i)

    def finish_us(self) -> IntArray:
        moved_us = super().finish_us() if not self._topology.uniform else self._moved_us()
        own_us = self._end_us[self._both] + self._decode_us[self._topology.own[self._both]]
        finish_us: IntArray = np.minimum(moved_us, np.minimum.reduce(own_us))
        return finish_us

    def none_starts(self, rows: IntArray, before: IntArray) -> bool:
        """Sure only where no prefill instance could take a call and none of these can be appended."""
        senders = self._topology.senders
        able = [i for i in self._once_idle if self._idle[i] or self._headroom_us[i] >= 0]
        return able[0] >= senders and not self._short[np.array(able) - senders][:, rows].any()

    def feasible(self, r: int) -> bool:
        return self._roomy or bool(self._near(r)[1].min() < NEVER_US)

    def _moved_us(self) -> IntArray:
        """Where each call would finish with a hand-off, if links are alike."""
        receivers = self._topology.receivers
        begin_us = begins_us(np.minimum.reduce(self._leave_us), *self._ingress[:, :receivers, None])
        moved_us: IntArray = np.minimum.reduce(begin_us + self._decode_us[:receivers]) + self._transfer_us
        return moved_us

    def _near(self, r: int) -> tuple[list[int], IntArray]:
        """As ever, with what the placement costs others."""
        topology, both, stall_us = self._topology, self._both, self._stall_us[:, r]
        own_us = self._end_us[both, r] + self._decode_us[topology.own[both], r] + stall_us[both]
        if topology.uniform:
            moved = smallest(self._leave_us[:, r] + stall_us, OTHERS_MAX + 1).tolist()
            near = np.array(list(dict.fromkeys(moved + both[smallest(own_us, OTHERS_MAX + 1)].tolist())))
            receivers = topology.receivers
            cost_us = np.full((len(near), len(self._slots)), NEVER_US)
            begin_us = begins_us(self._leave_us[near, r, None], *self._ingress[:, :receivers])
            transfer_us = topology.pair_us(near, int(self._prompt[r]))[:, :receivers]
            cost_us[:, :receivers] = begin_us + self._decode_us[:receivers, r] + transfer_us
        else:
            near, cost_us = np.arange(len(stall_us)), self._pair_us(r)
        for place, i in enumerate(near.tolist()):
            j = topology.own[i]
            if j >= 0:
                cost_us[place, j] = self._end_us[i, r] + self._decode_us[j, r]
        return near.tolist(), np.minimum(cost_us + stall_us[near, None], NEVER_US)

    def _candidate(self, r: int, i: int, j: int, finish_us: int) -> Candidate:
        return super()._candidate(r, i, j, finish_us - int(self._stall_us[i, r]))

    def _apply(self, r: int, i: int, j: int) -> None:
        own = int(self._topology.own[i])
        if own >= 0 and own != j:
            self._decode_room[own] -= int(self._prompt[r])  # pinned until it is pulled
        super()._apply(r, i, j)

    def _next_step_us(self, j: int) -> int:
        self._undisturbed_us[j] = super()._next_step_us(j)
        return self._undisturbed_us[j]

    def _look_again(self, i: int, j: int) -> None:
        super()._look_again(i, j)
        own, senders, receivers = int(self._topology.own[i]), self._topology.senders, self._topology.receivers
        if own >= 0:
            self._weigh(i)
        if i >= senders:
            self._leave_us[i] = NEVER_US
            self._end_us[i, ~self._short[i - senders]] = NEVER_US
        if own >= receivers:
            full = self._kv_tokens[self._topology.decode_sort[own]] > self._decode_room[own]
            self._full[own - receivers] = full | (self._slots[own] <= 0)
        self._slow_down()

    def _append(self, tokens_max: int) -> None:
        """A prompt takes what it adds to a step of the batch, for which the one under way must end."""
        topology, there = self._topology, slice(self._topology.senders, None)
        assert self._cached is not None
        # Which prompts each decode instance appends, (decode instances of P, calls).
        self._short = is_short(self._new_tokens(there), self._cached[there], tokens_max)
        own = topology.own[there]
        decodes = ints(bool(topology.decode[j].decoding) for j in own.tolist())
        floor_us = ints(self._floor_us[there])
        free_us = ints(self._free_us[there]) + decodes * ints(self._step_us)[own] * 3 // 2
        self._alone_us[there] = np.maximum(self._alone_us[there] - (decodes * floor_us)[:, None], 0)
        self._floor_us[there] = ((1 - decodes) * floor_us).tolist()
        self._free_us[there] = free_us.tolist()
        self._end_us[there] = np.where(self._short, self._alone_us[there] + free_us[:, None], NEVER_US)
        self._leave_us[there] = NEVER_US
        self._idle[there] = (ints(self._idle[there]) * self._short.any(axis=1)).tolist()
        self._startable = sum(self._idle)

    def _slow_down(self) -> None:
        """What decode on prefill instances takes, as busy as they are."""
        receivers, instances = self._topology.receivers, self._topology.senders
        if receivers == len(self._slots):
            return
        busy = instances - sum(self._idle[:instances])
        idle_milli = MILLI - min((BURST * busy + instances) * MILLI // ((BURST + 1) * instances), BUSY_MAX_MILLI)
        self._step_us[receivers:] = [step_us * MILLI // idle_milli for step_us in self._undisturbed_us[receivers:]]
        kept_us = self._steps * np.array(self._step_us[receivers:])[:, None]
        kept_us += self._alone_us[self._keepers] * (MILLI - idle_milli) // idle_milli
        self._decode_us[receivers:] = np.where(self._full, NEVER_US, kept_us)

    def _weigh(self, i: int) -> None:
        j = int(self._topology.own[i])
        stalled = min(len(self._topology.decode[j].decoding) + self._added[j][0], STALLED_MAX)
        each_milli = self._stall_milli if i < self._topology.senders else MILLI
        self._stall_us[i] = self._alone_us[i] * (stalled * each_milli) // MILLI
