"""The simulated state of a plan: where calls would finish and are placed, in plain numbers.

Few instances are looked at for each call: prefill instances of a kind in order of when they are free, decode instances
in order of their step times, until none further on can be better. What is learned of single instances makes the bounds
looser, never wrong.
"""

from bisect import insort
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.booked import BookedInstances
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import PROMPT, WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import MILLI, NEVER_US, PPM, US_PER_S

OTHERS_MAX: Final = 3  # runners-up a record keeps
FEW: Final = 4  # earliest instances remembered of a call, so that all are looked at again once these are taken

Near = list[tuple[int, int]]  # (when KV could leave P, P), best first
Pairs = list[tuple[int, int, int]]  # (finish, place in `Near`, D), ascending


class Placed(NamedTuple):
    """Where a call that starts now goes."""

    call: Call
    prefill: Instance
    decode: Instance
    chosen: Candidate
    others: tuple[Candidate, ...]  # best first
    transfer_us: int  # of its KV between free ends; where there is none, of its prefill if that keeps others waiting
    beside_us: int = 0  # by which it delays the prompts that it is computed beside; 0 = there are none


class SimulatedState(BookedInstances):
    """Where waiting calls finish and go on instances that are booked call by call."""

    def __init__(
        self,
        topology: Topology,
        estimator: Estimator,
        waiting: WaitingCalls,
        rows: Sequence[int],
        now_us: int,
        batch_us: int,
        aware: bool = False,
    ) -> None:
        super().__init__(topology, estimator, waiting, rows, now_us, batch_us, aware)
        self._finish_us = [0] * len(self.calls)
        self._usual_us: list[int] = []  # by call, as `Topology.transfer_us` says, once a finish is asked for
        # By call what its finish is made of, and after how many placements: each makes two instances later.
        self._told_at = [-1] * len(self.calls)
        self._leaves: list[Near] = [[]] * len(self.calls)
        self._moved = [(NEVER_US, -1)] * len(self.calls)

    def finish_us(self, left: Sequence[int]) -> IntArray:
        """Where each of the calls `left` would finish if it were placed next, of others what was said last.

        Shape (calls,); `NEVER_US` = nowhere. If links are described alike, with the median of what is learned of them.
        """
        if not self._usual_us and self._topology.uniform:
            prompt = self._waiting.columns[list(self._rows), PROMPT]
            self._usual_us = self._topology.transfer_us(prompt).tolist()
        for r in left:
            self._finish_us[r] = self._finish_of(r)
        return np.array(self._finish_us, dtype=np.int64)

    def feasible(self, r: int) -> bool:
        """Whether some pair has room for call r."""
        return self._roomy or bool(self._pairs(r, self._near(r, 1), 1))

    def place(self, r: int, last: bool) -> Placed | None:
        """Put call r where it finishes first; a `Placed` if it starts now. The `last` one of a plan is not booked.

        The call must be feasible somewhere.
        """
        # Of equal links the best pair is one of the prefill instance that KV can leave first.
        near = self._near(r, 1 if self._topology.equal else OTHERS_MAX + 1)
        _, place, j = self._pairs(r, near, 1)[0]
        i = near[place][1]
        placed = self._placed(r) if self._idle[i] or self._joins(r, i) else None
        if not last:
            self._apply(r, i, j)
        return placed

    def none_starts(self, rs: Sequence[int], before: Sequence[int]) -> bool:
        """Whether surely none of these calls, before each of which so many others may be placed, will start any more.

        Each placement makes one instance later, and a call starts only on the instance that its KV could leave first,
        of unequal links on one of the first few: so not where more than were placed before it and those are earlier
        than all that could start it. `before` ascends.
        """
        spare = 0 if self._topology.equal else OTHERS_MAX
        if not self._roomy or not self._topology.uniform or len(self._idle) - 1 <= spare + before[-1]:
            return False
        # The last one first: it is the least sure.
        for r, late in zip(reversed(rs), reversed(before), strict=True):
            if not self._surely_elsewhere(r, spare + late):
                return False
        return True

    # --- one call ---------------------------------------------------------------------------------------------
    def _near(self, r: int, count: int) -> Near:
        """Prefill instances among which the best `count` pairs of call r are."""
        return self._soonest(r, count if self._topology.uniform else len(self._idle))

    def _soonest(
        self, r: int, count: int, weights_milli: Sequence[int] = (), lightest_milli: Sequence[int] = ()
    ) -> Near:
        """The `count` prefill instances with room that call r's KV could leave first, equal ones in order of place.

        With weights of instances, and the least ones by kind, as much of its time alone is added.
        """
        books, found, others, roomy = self._books, self._found[r], self._found[r].others, self._roomy
        free_us, busy_us, weighed = self._egress_free_us, self._egress_busy_us, bool(weights_milli)
        near: Near = []
        last_us, last = NEVER_US, 0
        for kind in self._kinds:
            nominal_us, fastest_ppm, slowest_ppm = found.nominal_us[kind], books.fastest[kind], books.slowest[kind]
            alone_us = least_us = nominal_us * fastest_ppm // PPM
            if weighed:
                least_us += least_us * lightest_milli[kind] // MILLI
            for start_us, i in self._by_free[kind]:
                leave_us = start_us + least_us
                if leave_us >= last_us and (leave_us > last_us or i > last):
                    break
                if fastest_ppm != slowest_ppm:
                    alone_us = nominal_us * books.speeds[i] // PPM
                leave_us = start_us + alone_us
                if free_us[i] > leave_us:
                    leave_us = min(leave_us + busy_us[i], free_us[i])
                if weighed:
                    leave_us += alone_us * weights_milli[i] // MILLI
                if leave_us >= last_us and (leave_us > last_us or i > last):
                    continue
                if (roomy or self._may_prefill(r, i)) and i not in others:
                    near = nearest(near, (leave_us, i), count)
                    if len(near) == count:
                        last_us, last = near[-1]
        for i, end_us in self._told(r):
            if end_us <= last_us and (roomy or self._may_prefill(r, i)):
                leave_us = self._leave_us(end_us, i)
                if weighed:
                    leave_us += self._alone_us(r, i) * weights_milli[i] // MILLI
                near = nearest(near, (leave_us, i), count)
                if len(near) == count:
                    last_us = near[-1][0]
        return near

    def _told(self, r: int) -> list[tuple[int, int]]:
        """(P, end of prefill) for senders that take calls into a batch or hold other parts of the prompt than most."""
        free_us, batches, senders = self._free_us, self._batches, self._topology.senders
        told = [(i, free_us[i] + self._added_us(r, i)) for i in batches if i < senders]
        if others_us := self._found[r].others_us:
            speeds = self._books.speeds
            told += [
                (i, free_us[i] + us * speeds[i] // PPM)
                for i, us in others_us.items()
                if i < senders and i not in batches
            ]
        return told

    def _finish_of(self, r: int) -> int:
        """Where call r would finish if it were placed next."""
        if not self._topology.uniform:
            pairs = self._pairs(r, self._near(r, 1), 1)
            return pairs[0][0] if pairs else NEVER_US
        # Wherever a call decodes, it is there first from where it can leave first.
        leaves, moved = self._leaves[r], self._moved[r]
        if self._told_at[r] != len(self._applied) - 1 or not leaves:
            leaves = self._first_to_leave(r)
            moved = self._first_moved(r, leaves[0][0])
        else:
            i, j = self._applied[-1]
            was_us = leaves[0][0]
            if among(leaves, i):
                leaves = after(leaves, self._leaves_us(r, i), i) or self._first_to_leave(r)
            if leaves[0][0] != was_us or moved[1] == j:
                moved = self._first_moved(r, leaves[0][0])
        self._told_at[r], self._leaves[r], self._moved[r] = len(self._applied), leaves, moved
        return min(moved[0] + self._usual_us[r], NEVER_US)

    def _first_to_leave(self, r: int) -> Near:
        """(When, P) call r's KV could leave the first few."""
        return self._soonest(r, FEW) or [(NEVER_US, -1)]

    def _leaves_us(self, r: int, i: int) -> int:
        """When call r's KV could leave P; `NEVER_US` where it has no room."""
        if not self._may_prefill(r, i):
            return NEVER_US
        return self._leave_us(self._free_us[i] + self._added_us(r, i), i)

    def _first_moved(self, r: int, leave_us: int) -> tuple[int, int]:
        """(Finish but for the transfer, D) where that is first if call r's KV leaves then."""
        steps, first_us, first, roomy = self.calls[r].output_q50 - 1, NEVER_US, -1, self._roomy
        free_us, busy_us, local_us = self._ingress_free_us, self._ingress_busy_us, self._local_us
        for sort in self._sorts:
            for step_us, j in self._by_step[sort]:
                finish_us = leave_us + steps * step_us
                if finish_us >= first_us:
                    break
                if free_us[j] > leave_us:
                    finish_us += min(free_us[j] - leave_us, busy_us[j])
                finish_us += local_us[j]
                if finish_us < first_us and (roomy or self._may_decode(r, j)):
                    first_us, first = finish_us, j
        return first_us, first

    def _pairs(self, r: int, near: Near, count: int) -> Pairs:
        """The `count` pairs of these prefill instances with the earliest finishes, equal ones in order of place."""
        call, topology = self.calls[r], self._topology
        steps, roomy = call.output_q50 - 1, self._roomy
        free_us, busy_us, local_us = self._ingress_free_us, self._ingress_busy_us, self._local_us
        pairs: Pairs = []
        last_us = NEVER_US - 1
        numbers: list[int] = []  # of links
        for place, (leave_us, i) in enumerate(near):
            stall_us, own = self._stall_us(r, i), topology.homes[i]
            if own >= 0 and self._may_decode(r, own):
                finish_us = self._own_us(r, i) + stall_us
                if finish_us <= last_us:
                    last_us = first_pairs(pairs, finish_us, place, own, count)
            if leave_us >= NEVER_US:
                continue
            links = topology.links_from(i)
            if count == 1 and own < 0 and topology.uniform:
                # Over equal links the best pair is one of the instance that KV can leave first.
                if links.number in numbers:
                    continue
                numbers.append(links.number)
            takes = None if topology.uniform else topology.takes[i]
            moving = call.prompt_tokens * links.kv_bytes * US_PER_S
            for sort in self._sorts:
                least_us = moving // links.fastest[sort] + links.least_setups_us[sort]
                for step_us, j in self._by_step[sort]:
                    finish_us = leave_us + stall_us + least_us + steps * step_us
                    if finish_us > last_us:
                        break
                    if takes is not None and not takes[j]:
                        continue
                    if not links.alike:
                        finish_us += moving // links.rates[j] + links.setups_us[j] - least_us
                    if free_us[j] > leave_us:
                        finish_us += min(free_us[j] - leave_us, busy_us[j])
                    finish_us += local_us[j]
                    if finish_us <= last_us and (roomy or self._may_decode(r, j)):
                        last_us = first_pairs(pairs, finish_us, place, j, count)
        return pairs

    def _own_us(self, r: int, i: int) -> int:
        """Finish of call r that P decodes itself."""
        return self._free_us[i] + self._added_us(r, i) + self._decode_us(r, self._topology.homes[i])

    def _stall_us(self, r: int, i: int) -> int:
        """What the prefill of call r on P costs calls that decode there."""
        return 0

    def _decode_us(self, r: int, j: int) -> int:
        """Time of call r on D from when its KV is there."""
        return (self.calls[r].output_q50 - 1) * self._step_of(j) + self._local_us[j]

    def _placed(self, r: int) -> Placed:
        """The record of call r, which starts now, with the best other pairs."""
        near = self._near(r, OTHERS_MAX + 1)
        pairs = self._pairs(r, near, OTHERS_MAX + 1)
        chosen, *others = [self._candidate(r, near[place][1], j, finish_us) for finish_us, place, j in pairs]
        i, j = near[pairs[0][1]][1], pairs[0][2]
        call, topology = self.calls[r], self._topology
        return Placed(call, topology.prefill[i], topology.decode[j], chosen, tuple(others), self._move_us(r, i, j))

    def _candidate(self, r: int, i: int, j: int, cost_us: int) -> Candidate:
        start_us, finish_us = self._free_us[i], cost_us - self._stall_us(r, i)
        return Candidate(
            self._topology.prefill[i].spec.instance_id,
            self._topology.decode[j].spec.instance_id,
            start_us,
            start_us + self._added_us(r, i),
            finish_us - (self.calls[r].output_q50 - 1) * self._step_of(j),
            finish_us,
        )

    def _surely_elsewhere(self, r: int, late: int) -> bool:
        """Whether call r's KV could leave more than `late` instances before all those that could start it."""
        books, others, nominal_us = self._books, self._found[r].others, self._found[r].nominal_us
        start_us = NEVER_US
        for i in self._batches:
            start_us = min(start_us, self._free_us[i] + self._alone_us(r, i) - self._floor_us[i])
        for kind, idle in enumerate(self._idle_of):
            if idle:
                start_us = min(start_us, self._now_us + nominal_us[kind] * books.fastest[kind] // PPM)
        for i in others:
            if self._idle[i]:
                start_us = min(start_us, self._free_us[i] + self._alone_us(r, i))
        for kind, entries in enumerate(self._by_free):
            before_us = start_us - nominal_us[kind] * books.slowest[kind] // PPM
            for place in range(self._idle_of[kind], len(entries)):
                free_us, i = entries[place]
                if free_us >= before_us:
                    break
                if self._egress_free_us[i] < start_us and not self._idle[i] and i not in others:
                    late -= 1
                    if late < 0:
                        return True
        return False


def nearest(near: Near, entry: tuple[int, int], count: int) -> Near:
    """The first `count` of these and one more."""
    if count == 1:
        return near if near and near[0] < entry else [entry]
    insort(near, entry)
    del near[count:]
    return near


def first_pairs(pairs: Pairs, finish_us: int, place: int, j: int, count: int) -> int:
    """Make the first `count` pairs of these and one more. Returns the finish behind which none is among them."""
    if count == 1 and not pairs:
        pairs.append((finish_us, place, j))
    elif count == 1:
        first_us, first_place, first_j = pairs[0]
        if finish_us < first_us or (finish_us == first_us and place == first_place and j < first_j):
            pairs[0] = finish_us, place, j
    else:
        insort(pairs, (finish_us, place, j))
        del pairs[count:]
    return pairs[-1][0] if len(pairs) == count else NEVER_US - 1


def among(first: Near, place: int) -> bool:
    """Whether this place is one of those."""
    return place in [one for _, one in first]


def after(first: Near, us: int, place: int) -> Near:
    """The least few (time, place) of several once that of `place` has become `us`; none if that is for all to tell."""
    left = [entry for entry in first if entry[1] != place]
    if left and us <= left[-1][0]:  # none that was left out is less
        insort(left, (us, place))
    return left
