"""The simulated state of a plan whose order is settled: plain numbers, and few instances looked at for each call.

Prefill instances of a kind are walked in order of when they are free, decode instances in order of their step times,
until none further on can be better. What is learned of single instances makes the bounds looser, never wrong.
"""

from bisect import bisect_left, insort
from functools import cached_property

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.placement import OTHERS_MAX, Placed, batched_us
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import NEVER_US, PPM, US_PER_S

Near = list[tuple[int, int]]  # (when KV could leave P, P), ascending
Pairs = list[tuple[int, int, int]]  # (finish, place in `Near`, D), ascending


class Walk:
    """Finds the places that `SimulatedState` finds, equal finishes included, for calls placed one after the other.

    Instances do one phase each, over links described alike. Arguments are those of `SimulatedState`; call r below is
    the one of `rows[r]`.
    """

    def __init__(
        self,
        topology: Topology,
        estimator: Estimator,
        waiting: WaitingCalls,
        rows: IntArray,
        now_us: int,
        batch_us: int,
        aware: bool,
    ) -> None:
        self._topology, self._estimator, self._waiting = topology, estimator, waiting
        self._now_us, self._batch_us_max = now_us, batch_us
        self._rows: list[int] = rows.tolist()
        self._calls: list[Call] = [waiting.calls[row] for row in self._rows]
        self._hits = waiting.hits(topology) if aware else None
        self._nominal_us: list[list[int]] = waiting.nominal_us(topology)[rows].tolist()  # by kind
        self._found: dict[int, tuple[int, int]] = {}  # what `_look_up` said last, of `_found_by`
        self._found_by = -1
        self._books = books = topology.books
        free_us, *egress, self._prefill_room, idle = map(list.copy, books.prefill_of)
        self._free_us = [max(us, now_us) for us in free_us]
        self._egress_free_us, self._egress_busy_us = egress
        *ingress, self._local_us, self._decode_room, self._slots, self._step_us = map(list.copy, books.decode_of)
        self._ingress_free_us, self._ingress_busy_us = ingress
        self._by_free = [_from(now_us, entries) for entries in books.by_free]  # by kind, without those in `_batches`
        self._by_step = books.by_step.copy()
        # Whether every pair takes every call throughout the plan, as it is far from full.
        self._roomy = not waiting.demanding and (
            sum([call.prompt_tokens for call in self._calls]) <= min(self._prefill_room)
            and sum([call.prompt_tokens + call.max_tokens for call in self._calls]) <= min(self._decode_room)
            and len(self._calls) <= min(self._slots)
        )
        self._kinds = sorted(range(len(self._by_free)), key=self._nominal_us[0].__getitem__)  # the fastest ones first
        self._idle = idle
        self._idle_of = [0] * len(self._by_free)  # instances by kind
        for kind, one in zip(books.kinds, idle, strict=True):
            self._idle_of[kind] += one
        self._startable = sum(idle)  # instances that could take a call that starts now
        # What may still be added to the batch begun on P in this plan: (time, tokens).
        self._batches: dict[int, tuple[int, int]] = {}
        self._added: dict[int, tuple[int, int]] = {}  # (calls, context tokens) placed in this plan, by D

    @property
    def any_startable(self) -> bool:
        """Whether some instance could take a call that starts now."""
        return self._startable > 0

    def feasible(self, r: int) -> bool:
        """Whether some pair has room for call r."""
        if self._roomy:
            return True
        return any(self._may_prefill(r, i) for i in range(len(self._idle))) and any(
            self._may_decode(r, j) for j in range(len(self._slots))
        )

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

    def none_starts_from(self, first: int) -> bool:
        """Whether surely none of the calls from `first` on will start any more.

        Each placement makes one instance later, and a call starts only on the instance that its KV could leave first,
        of unequal links on one of the first few: so not where more than were placed before it and those are earlier
        than all that could start it.
        """
        spare = 0 if self._topology.equal else OTHERS_MAX
        return self._roomy and all(self._surely_elsewhere(r, spare + r - first) for r in range(first, len(self._rows)))

    # --- one call ---------------------------------------------------------------------------------------------
    def _look_up(self, r: int) -> dict[int, tuple[int, int]]:
        """Tokens of the prompt found on P and the time of the rest alone there, of those where any are."""
        if self._hits is not None and self._found_by != r:
            tokens, nominal_us = self._hits[0][self._rows[r]], self._hits[1][self._rows[r]]
            places: list[int] = np.flatnonzero(tokens).tolist()
            self._found_by = r
            self._found = {i: (int(tokens[i]), int(nominal_us[i]) * self._books.speeds[i] // PPM) for i in places}
        return self._found

    def _alone_us(self, r: int, i: int) -> int:
        """Prefill time of call r on P in a step of its own."""
        found = self._look_up(r)
        if i in found:
            return found[i][1]
        return self._nominal_us[r][self._books.kinds[i]] * self._books.speeds[i] // PPM

    def _new_tokens(self, r: int, i: int) -> int:
        """Tokens of the prompt to be computed on P."""
        found = self._look_up(r)
        return self._calls[r].prompt_tokens - (found[i][0] if i in found else 0)

    @cached_property
    def _kv_needed(self) -> tuple[list[list[int]], list[list[int]]]:
        """What `WaitingCalls.kv_needed` says, by call."""
        prefill, decode = self._waiting.kv_needed(self._topology, self._waiting.columns[self._rows].T)
        return prefill.T.tolist(), decode.T.tolist()

    def _may_prefill(self, r: int, i: int) -> bool:
        """Whether P serves call r and has room for it."""
        return self._kv_needed[0][r][self._topology.prefill_sort[i]] <= self._prefill_room[i]

    def _may_decode(self, r: int, j: int) -> bool:
        """Whether D serves call r and has room for it."""
        return self._slots[j] > 0 and self._kv_needed[1][r][self._topology.decode_sort[j]] <= self._decode_room[j]

    def _joins(self, r: int, i: int) -> bool:
        """Whether call r would ride in the batch begun on P in this plan."""
        if i not in self._batches:
            return False
        headroom_us, room = self._batches[i]
        return self._alone_us(r, i) - self._books.floors[i] <= headroom_us and self._new_tokens(r, i) <= room

    def _added_us(self, r: int, i: int) -> int:
        """Prefill time call r adds to P."""
        added_us = self._alone_us(r, i)
        return added_us - self._books.floors[i] if self._joins(r, i) else added_us

    def _leave_us(self, end_us: int, i: int) -> int:
        """When KV could leave P whose prompt is computed then, as `Backlog.begins_us` says."""
        free_us = self._egress_free_us[i]
        return end_us if free_us <= end_us else min(free_us, end_us + self._egress_busy_us[i])

    def _near(self, r: int, count: int) -> Near:
        """The `count` prefill instances with room that call r's KV could leave first, equal ones in order of place."""
        books, found, roomy = self._books, self._look_up(r), self._roomy
        free_us, busy_us = self._egress_free_us, self._egress_busy_us
        told = [*self._batches, *[i for i in found if i not in self._batches]] if found else self._batches
        near = [
            (self._leave_us(self._free_us[i] + self._added_us(r, i), i), i)
            for i in told
            if roomy or self._may_prefill(r, i)
        ]
        near.sort()
        del near[count:]
        last_us, last = near[-1] if len(near) == count else (NEVER_US, 0)
        for kind in self._kinds:
            nominal_us, fastest_ppm, slowest_ppm = self._nominal_us[r][kind], books.fastest[kind], books.slowest[kind]
            least_us = nominal_us * fastest_ppm // PPM
            for start_us, i in self._by_free[kind]:
                leave_us = start_us + least_us
                if leave_us >= last_us and (leave_us > last_us or i > last):
                    break
                if fastest_ppm != slowest_ppm:
                    leave_us = start_us + nominal_us * books.speeds[i] // PPM
                if free_us[i] > leave_us:
                    leave_us = min(leave_us + busy_us[i], free_us[i])
                if leave_us >= last_us and (leave_us > last_us or i > last):
                    continue
                if (roomy or self._may_prefill(r, i)) and i not in found:
                    insort(near, (leave_us, i))
                    del near[count:]
                    if len(near) == count:
                        last_us, last = near[-1]
        return near

    def _pairs(self, r: int, near: Near, count: int) -> Pairs:
        """The `count` pairs of these prefill instances with the earliest finishes, equal ones in order of place."""
        call = self._calls[r]
        steps, roomy = call.output_q50 - 1, self._roomy
        free_us, busy_us, local_us = self._ingress_free_us, self._ingress_busy_us, self._local_us
        pairs: Pairs = []
        last_us = NEVER_US - 1
        for place, (leave_us, i) in enumerate(near):
            links = self._topology.links_from(i)
            unequal, moving = bool(links.rates), call.prompt_tokens * links.kv_bytes * US_PER_S
            moved_us = leave_us + moving // links.fastest + links.least_setup_us
            for step_us, j in self._by_step:
                finish_us = moved_us + steps * step_us
                if finish_us > last_us:
                    break
                if unequal:
                    finish_us += moving // links.rates[j] - moving // links.fastest
                    finish_us += links.setups_us[j] - links.least_setup_us
                if free_us[j] > leave_us:
                    finish_us += min(free_us[j] - leave_us, busy_us[j])
                finish_us += local_us[j]
                if finish_us <= last_us and (roomy or self._may_decode(r, j)):
                    insort(pairs, (finish_us, place, j))
                    del pairs[count:]
                    if len(pairs) == count:
                        last_us = pairs[-1][0]
        return pairs

    def _placed(self, r: int) -> Placed:
        """The record of call r, which starts now, with the best other pairs."""
        near = self._near(r, OTHERS_MAX + 1)
        pairs = self._pairs(r, near, OTHERS_MAX + 1)
        chosen, *others = [self._candidate(r, near[place][1], j, finish_us) for finish_us, place, j in pairs]
        i, j = near[pairs[0][1]][1], pairs[0][2]
        call, topology = self._calls[r], self._topology
        move_us = topology.links_from(i).move_us(call.prompt_tokens, j)
        return Placed(call, topology.prefill[i], topology.decode[j], chosen, tuple(others), move_us)

    def _candidate(self, r: int, i: int, j: int, finish_us: int) -> Candidate:
        start_us, steps = self._free_us[i], self._calls[r].output_q50 - 1
        return Candidate(
            self._topology.prefill[i].spec.instance_id,
            self._topology.decode[j].spec.instance_id,
            start_us,
            start_us + self._added_us(r, i),
            finish_us - steps * self._step_us[j],
            finish_us,
        )

    def _surely_elsewhere(self, r: int, late: int) -> bool:
        """Whether call r's KV could leave more than `late` instances before all those that could start it."""
        books, found, kinds = self._books, self._look_up(r), range(len(self._by_free))
        nominal_us = self._nominal_us[r]
        able = [self._free_us[i] + self._alone_us(r, i) - books.floors[i] for i in self._batches]
        able += [self._now_us + nominal_us[k] * books.fastest[k] // PPM for k in kinds if self._idle_of[k]]
        able += [self._free_us[i] + alone_us for i, (_, alone_us) in found.items() if self._idle[i]]
        start_us = min(able)
        for k in kinds:
            entries, before_us = self._by_free[k], start_us - nominal_us[k] * books.slowest[k] // PPM
            for _, i in entries[self._idle_of[k] : bisect_left(entries, (before_us, -1))]:
                late -= self._egress_free_us[i] < start_us and not self._idle[i] and i not in found
                if late < 0:
                    return True
        return False

    # --- the state --------------------------------------------------------------------------------------------
    def _apply(self, r: int, i: int, j: int) -> None:
        """Book call r on a pair. Where nothing can start any more the plan is complete, and the rest is left out."""
        call, entries = self._calls[r], self._by_free[self._books.kinds[i]]
        added_us, free_us, batched = self._added_us(r, i), self._free_us[i], i in self._batches
        if batched or self._idle[i]:
            self._begin(r, i, added_us)
            if not self._startable:
                return
        self._free_us[i] = free_us + added_us
        if not batched:
            del entries[bisect_left(entries, (free_us, i))]
        if i not in self._batches:
            insort(entries, (self._free_us[i], i))
        if not self._roomy:
            self._prefill_room[i] -= call.prompt_tokens
            self._decode_room[j] -= self._kv_needed[1][r][self._topology.decode_sort[j]]
            self._slots[j] -= 1
        self._send(i, j, self._topology.links_from(i).move_us(call.prompt_tokens, j))
        calls, context = self._added.get(j, (0, 0))
        self._added[j] = calls + 1, context + call.mean_context
        del self._by_step[bisect_left(self._by_step, (self._step_us[j], j))]
        self._step_us[j] = self._topology.decode[j].next_step_us(self._estimator, *self._added[j])
        insort(self._by_step, (self._step_us[j], j))

    def _begin(self, r: int, i: int, added_us: int) -> None:
        """Call r goes to P, which could start something: it begins a batch, joins the one begun, or ends it."""
        joins, tokens = self._joins(r, i), self._new_tokens(r, i)
        headroom_us, room = self._batches.pop(i, (-1, 0))
        could = self._idle[i] or headroom_us > 0
        if joins:
            headroom_us, room = headroom_us - added_us, room - tokens
        elif self._idle[i]:
            headroom_us, room = self._batch_us or -1, self._topology.step_tokens[i] - tokens
        else:
            headroom_us = -1  # the plan goes on behind work that is not dispatched now
        if self._idle[i]:
            self._idle[i] = 0
            self._idle_of[self._books.kinds[i]] -= 1
        if headroom_us >= 0:
            self._batches[i] = headroom_us, room
        self._startable -= bool(could and headroom_us <= 0)

    @cached_property
    def _batch_us(self) -> int:
        """The most time a batch may add to its first call."""
        topology, books = self._topology, self._books
        if self._hits is None:
            work = self._waiting.nominal_us(topology), books.fastest_ppm
        else:
            work = self._hits[1], books.speed_ppm
        return batched_us(*work, self._batch_us_max, self._topology.senders)

    def _send(self, i: int, j: int, move_us: int) -> None:
        """KV moves from P to D when P's work so far is done."""
        begin_us = ready_us = self._leave_us(self._free_us[i], i)
        if self._ingress_free_us[j] > ready_us:
            begin_us = min(self._ingress_free_us[j], ready_us + self._ingress_busy_us[j])
        arrives_us = begin_us + move_us
        self._egress_free_us[i] = max(self._egress_free_us[i], arrives_us)
        self._egress_busy_us[i] += move_us
        self._ingress_free_us[j] = max(self._ingress_free_us[j], arrives_us)
        self._ingress_busy_us[j] += move_us


def _from(now_us: int, entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Entries (time, place) in order, none of them earlier than now."""
    due = bisect_left(entries, (now_us + 1, 0))  # those of now as well: by place they may come before earlier ones
    return sorted([(now_us, place) for _, place in entries[:due]]) + entries[due:]
