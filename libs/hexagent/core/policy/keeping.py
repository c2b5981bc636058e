"""Calls that decode where they are prefilled, without a hand-off, where that is better: on an instance of either role.

Where decode is the bottleneck prefill instances keep calls, so that they become decode instances as far as it pays,
call by call and back again, with nothing to restart or drain; and a workflow's next call finds its KV, output included,
where it is prefilled. Where a prompt has little that its decode instance does not hold already, that is appended there,
in a step of the batch that decodes.
"""

from bisect import insort
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.books import IDLE, LOCAL, STEP
from hexagent.core.policy.dispatch import Plan, PredictedFinish
from hexagent.core.policy.earliest import Outlook, unbeaten
from hexagent.core.policy.hits import Found
from hexagent.core.policy.order import Ages, IntArray, Order
from hexagent.core.policy.placement import FEW, OTHERS_MAX, Near, SimulatedState, after, among
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology, ints
from hexagent.core.policy.waiting import OUTPUT, PROMPT, WaitingCalls
from hexagent.core.scheduling.ledger import Mixing
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
        idle, hits = topology.books.prefill_of[IDLE], waiting.hits(topology)
        if hits is None or any(idle[: topology.senders]):
            return True
        tokens_max = self._profile.local_prefill_tokens_max
        return any(
            any(idle[i] for i in appended(found, call.prompt_tokens, tokens_max, topology))
            for found, call in zip(hits.found, waiting.calls, strict=True)
        )

    def _ages(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> Ages:
        """With what is left to prefill, where more of it waits for each instance than counts as little."""
        ages, hits = waiting.ages(now_us), waiting.hits(topology)
        least_us = waiting.least_us(topology) if hits is None else hits.least_us
        queue = least_us.sum() > self._profile.cheap_prefill_us * topology.senders
        return ages._replace(prefill_us=least_us, cached=hits is not None) if queue else ages

    def _outlook(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> Outlook:
        if topology.mixes:
            return KeepingOutlook(topology, waiting, now_us, self._profile.local_prefill_tokens_max)
        return super()._outlook(topology, waiting, now_us)

    def _state(self, topology: Topology, waiting: WaitingCalls, rows: Sequence[int], now_us: int) -> SimulatedState:
        if topology.mixes:
            return KeepingState(topology, self._estimator, waiting, rows, now_us, self._profile)
        return super()._state(topology, waiting, rows, now_us)


def appended(found: Found, prompt_tokens: int, tokens_max: int, topology: Topology) -> list[int]:
    """Decode instances that append a prompt: they hold at least as much of it as is new, which is not much."""
    least_tokens = max(prompt_tokens - tokens_max, -(-prompt_tokens // 2))
    senders, others = topology.senders, found.others
    places = [i for i, held in others.items() if held >= least_tokens and i >= senders]
    if found.tokens >= least_tokens:
        places += [i for i in range(senders, len(topology.prefill)) if i not in others]
    return places


def idle_milli(busy: int, instances: int) -> int:
    """Part of its time that a prefill instance has for decode, of so many, as busy as they are."""
    return MILLI - min((BURST * busy + instances) * MILLI // ((BURST + 1) * instances), BUSY_MAX_MILLI)


class Appending(NamedTuple):
    """What a prompt adds to a step of the batch on a decode instance, for which the one under way must end."""

    free_us: int  # later than it has nothing to prefill
    saved_us: int  # of the prompt's time alone
    floor_us: int  # part of a prompt's time that is saved in another's batch

    @classmethod
    def on(cls, topology: Topology, i: int) -> "Appending":
        j, floor_us = topology.homes[i], topology.books.floors[i]
        if not topology.decode[j].decoding:
            return cls(0, 0, floor_us)
        return cls(topology.books.decode_of[STEP][j] * 3 // 2, floor_us, 0)


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
        rows: Sequence[int],
        now_us: int,
        profile: Profile,
    ) -> None:
        super().__init__(topology, estimator, waiting, rows, now_us, profile.batch_us_max, aware=True)
        senders, receivers = topology.senders, topology.receivers
        self._stall_milli = profile.stall_milli
        self._floor_us = self._floor_us.copy()
        tokens_max = profile.local_prefill_tokens_max
        # Decode instances of P that append each call.
        self._appended = [
            appended(found, call.prompt_tokens, tokens_max, topology)
            for found, call in zip(self._found, self.calls, strict=True)
        ]
        able = set(chain.from_iterable(self._appended))
        for i in range(senders, len(self._idle)):
            later_us, self._saved_us[i], self._floor_us[i] = Appending.on(topology, i)
            self._free_us[i] += later_us
            self._idle[i] &= i in able
        self._startable = sum(self._idle)
        self._by_free = [[entry for entry in entries if entry[1] < senders] for entries in self._by_free]
        self._list_of = [*self._list_of[:senders], *[len(self._by_free)] * (len(self._idle) - senders)]
        self._by_free.append(sorted([(self._free_us[i], i) for i in range(senders, len(self._idle))]))
        self._by_kept = sorted([entry for entries in self._by_step for entry in entries if entry[1] >= receivers])
        self._by_step = [[entry for entry in entries if entry[1] < receivers] for entries in self._by_step]
        self._home_of = {j: i for i, j in enumerate(topology.homes)}  # P that is D
        for j in range(receivers, len(self._local_us)):
            self._local_us[j] = 0
        # By call the few instances where it would finish first without a hand-off, and the `_idle_milli` of these.
        self._first_own: list[tuple[Near, int]] = [([], 0)] * len(self.calls)
        self._told_of, self._told_ends = (-1, 0), list[tuple[int, int]]()  # what `_told` said last, after so many
        self._busy = senders - sum(self._idle[:senders])
        self._idle_milli = idle_milli(self._busy, senders)
        # How much of a prefill on P each microsecond costs those that decode there, in thousandths.
        self._weightless = [0] * len(self._idle)
        self._weights_milli = [self._weight_milli(i) for i in range(len(self._idle))]
        self._lightest_milli = [
            min([self._weights_milli[i] for _, i in entries], default=0) for entries in self._by_free
        ]

    def none_starts(self, rs: Sequence[int], before: Sequence[int]) -> bool:
        """Sure only where no prefill instance could take a call and none of these can be appended."""
        senders = self._topology.senders
        if any(self._idle[:senders]) or any(i < senders for i in self._batches):
            return False
        return not any(self._idle[i] or i in self._batches for r in rs for i in self._appended[r])

    # --- one call ---------------------------------------------------------------------------------------------
    def _stall_us(self, r: int, i: int) -> int:
        return self._alone_us(r, i) * self._weights_milli[i] // MILLI

    def _finish_of(self, r: int) -> int:
        first, idle_milli_then = self._first_own[r]
        if self._told_at[r] != len(self._applied) - 1 or idle_milli_then != self._idle_milli:
            first = []
        if first:
            i, j = self._applied[-1]
            for place in (i, self._home_of.get(j, -1)):
                if place >= 0 and among(first, place):
                    room = self._may_decode(r, self._topology.homes[place])
                    first = after(first, self._own_us(r, place) if room else NEVER_US, place)
        first = first or self._own(r, FEW, self._weightless) or [(NEVER_US, -1)]
        self._first_own[r] = first, self._idle_milli
        finish_us = super()._finish_of(r)
        self._told_at[r] = len(self._applied)
        return min(finish_us, first[0][0])

    def _own_us(self, r: int, i: int) -> int:
        return super()._own_us(r, i) if i < self._topology.senders or i in self._appended[r] else NEVER_US

    def _step_of(self, j: int) -> int:
        step_us = self._step_us[j]
        return step_us if j < self._topology.receivers else step_us * MILLI // self._idle_milli

    def _decode_us(self, r: int, j: int) -> int:
        decode_us = super()._decode_us(r, j)
        if j < self._topology.receivers:
            return decode_us
        return decode_us + self._alone_us(r, self._home_of[j]) * (MILLI - self._idle_milli) // self._idle_milli

    def _told(self, r: int) -> list[tuple[int, int]]:
        """Once for both ways on from there."""
        if self._told_of != (r, len(self._applied)):
            self._told_of, self._told_ends = (r, len(self._applied)), super()._told(r)
        return self._told_ends

    def _near(self, r: int, count: int) -> Near:
        """Of instances that differ in what a prefill there costs others as many with and without a hand-off."""
        most, places = OTHERS_MAX + 1, list(range(len(self._idle)))
        if self._topology.uniform:
            moved = [i for _, i in self._soonest(r, most, self._weights_milli, self._lightest_milli)]
            kept = [i for _, i in self._own(r, most, self._weights_milli)]
            if len(moved) < most or len(kept) < most:
                moved, kept = self._moved_of_all(r, most), self._kept_of_all(r, most)
            places = list(dict.fromkeys(moved + kept))
        return [(self._leaves_us(r, i), i) for i in places]

    def _moved_of_all(self, r: int, count: int) -> list[int]:
        """Where some have no room, all are compared."""
        costs = [(self._leaves_us(r, i) + self._stall_us(r, i), i) for i in range(len(self._idle))]
        return [i for _, i in sorted(costs)[:count]]

    def _kept_of_all(self, r: int, count: int) -> list[int]:
        topology, costs = self._topology, []
        for i, j in enumerate(topology.homes):
            if j >= 0:
                decode_us = self._decode_us(r, j) if self._may_decode(r, j) else NEVER_US
                appends = i < topology.senders or i in self._appended[r]
                end_us = self._free_us[i] + self._added_us(r, i) if appends else NEVER_US
                costs.append((end_us + decode_us + self._stall_us(r, i), i))
        return [i for _, i in sorted(costs)[:count]]

    def _leaves_us(self, r: int, i: int) -> int:
        """Never a decode instance."""
        return super()._leaves_us(r, i) if i < self._topology.senders else NEVER_US

    def _own(self, r: int, count: int, weights_milli: list[int]) -> Near:
        """The `count` instances on which call r would be done first without a hand-off: (finish and cost to others, P).

        Those that keep calls are looked at in order of their steps.
        """
        homes, found, books = self._topology.homes, self._found[r], self._books
        steps = self.calls[r].output_q50 - 1
        near: Near = []
        last = NEVER_US, 0
        firsts = [(kind, self._by_free[kind][0][0]) for kind in self._kinds if self._by_free[kind]]
        ends_us = [free_us + found.nominal_us[kind] * books.fastest[kind] // PPM for kind, free_us in firsts]
        end_us, idle, busy = min(ends_us, default=NEVER_US), self._idle_milli, MILLI - self._idle_milli
        for step_us, j in self._by_kept:
            decode_us = steps * (step_us * MILLI // idle)
            if end_us + decode_us > last[0]:
                break
            i = self._home_of[j]
            alone_us = found.nominal_us[books.kinds[i]] * books.speeds[i] // PPM
            decode_us += alone_us * busy // idle
            cost_us = self._free_us[i] + alone_us + decode_us + alone_us * weights_milli[i] // MILLI
            told_of = i in found.others or i in self._batches
            if (cost_us, i) < last and not told_of and self._may_decode(r, j):
                insort(near, (cost_us, i))
                del near[count:]
                if len(near) == count:
                    last = near[-1]
        told = self._told(r) + [(i, self._free_us[i] + self._added_us(r, i)) for i in self._appended[r]]
        for i, end_us in told:
            j = homes[i]
            if j >= 0 and end_us + steps * self._step_of(j) <= last[0] and self._may_decode(r, j):
                decode_us = self._decode_us(r, j)
                insort(near, (end_us + decode_us + self._alone_us(r, i) * weights_milli[i] // MILLI, i))
                del near[count:]
                if len(near) == count:
                    last = near[-1]
        return near

    # --- the state --------------------------------------------------------------------------------------------
    def _apply(self, r: int, i: int, j: int) -> None:
        home, idle = self._topology.homes[i], self._idle[i]
        if home >= 0 and home != j:
            self._decode_room[home] -= self.calls[r].prompt_tokens  # pinned until it is pulled
        super()._apply(r, i, j)
        self._weights_milli[i] = self._weight_milli(i)
        if idle and i < self._topology.senders:
            self._busy += 1
            self._idle_milli = idle_milli(self._busy, self._topology.senders)

    def _step_on(self, j: int, entries: list[tuple[int, int]]) -> None:
        super()._step_on(j, entries if j < self._topology.receivers else self._by_kept)

    def _weight_milli(self, i: int) -> int:
        """What a microsecond of prefill on P costs the calls that decode there, in thousandths."""
        j = self._topology.homes[i]
        if j < 0:
            return 0
        stalled = min(len(self._topology.decode[j].decoding) + self._added.get(j, (0, 0))[0], STALLED_MAX)
        return stalled * (self._stall_milli if i < self._topology.senders else MILLI)


class KeepingOutlook(Outlook):
    """The same for the arrays of a long queue."""

    def __init__(self, topology: Topology, waiting: WaitingCalls, now_us: int, tokens_max: int) -> None:
        super().__init__(topology, waiting, now_us, aware=True)
        self._tokens_max, senders, books = tokens_max, topology.senders, topology.books
        appending = [Appending.on(topology, i) for i in range(senders, len(topology.prefill))]
        self._free_us[senders:] += ints(each.free_us for each in appending)
        self._saved_us[senders:] = ints(each.saved_us for each in appending)
        self._pairs = topology.pairs & ~topology.local
        self._both = np.flatnonzero(topology.own >= 0)  # of P
        self._homes = topology.own[self._both]  # of D
        step_us, local_us = books.decode[STEP, self._homes], books.decode[LOCAL, self._homes]
        self._idle_milli = idle_milli(senders - sum(books.prefill_of[IDLE][:senders]), senders)
        slow_us = step_us * MILLI // self._idle_milli
        self._keeps = self._homes >= topology.receivers
        self._own_step_us = np.where(self._keeps, slow_us, step_us)
        self._own_local_us = np.where(self._keeps, 0, local_us)

    def _bounds_us(self) -> tuple[IntArray, IntArray]:
        least_us, latest_us = super()._bounds_us()
        assert self._hits is not None
        steps, both, kinds = self.waiting.columns[:, OUTPUT] - 1, self._both, self.topology.kind_of
        ready_us = self._free_us[both] - self._saved_us[both]
        few = unbeaten(self._own_step_us, ready_us)
        own_us = np.minimum.reduce(ready_us[few, None] + steps * self._own_step_us[few, None])
        keeps = np.flatnonzero(self._keeps)
        for usual in (int(steps.mean()), int(steps.mean()) // 4):
            if len(keeps):
                place = keeps[(ready_us[keeps] + usual * self._own_step_us[keeps]).argmin()]
                i = both[place]
                alone_us = self._hits.most_us[kinds[i]] * self.topology.books.speed_ppm[i] // PPM
                decode_us = steps * self._own_step_us[place] + self._waits_us(alone_us)
                np.minimum(latest_us, self._free_us[i] + alone_us + decode_us, out=latest_us)
        return np.minimum(least_us, self._hits.least_us + own_us), latest_us

    def _by_all(self, rows: IntArray) -> IntArray:
        senders = self.topology.senders
        assert self._hits is not None
        alone_us = np.maximum(self._alone_us(rows) - self._saved_us[:, None], 0)
        end_us = self._free_us[:, None] + alone_us
        leave_us = self._leave_us(rows, end_us)
        leave_us[senders:] = NEVER_US
        prompt, steps = self.waiting.columns[rows].T[[PROMPT, OUTPUT]]
        held = self._hits.arrays(rows)[0, senders:]
        end_us[senders:][held < np.maximum(prompt - self._tokens_max, -(-prompt // 2))] = NEVER_US
        steps -= 1
        own_us = end_us[self._both] + steps * self._own_step_us[:, None] + self._own_local_us[:, None]
        own_us[self._keeps] += self._waits_us(alone_us[self._both[self._keeps]])
        own_us[self._full(rows)[self._homes]] = NEVER_US
        return np.minimum(self._over_pairs(rows, leave_us), np.minimum.reduce(own_us))

    def _waits_us(self, alone_us: IntArray) -> IntArray:
        """Time for which the output of a kept call waits for work that comes while its prompt is computed."""
        waits_us: IntArray = alone_us * (MILLI - self._idle_milli) // self._idle_milli
        return waits_us
