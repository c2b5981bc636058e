"""The instances of a plan, in plain numbers: when they are free, what they have room for, and what is placed there."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.hits import Found
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.units import PPM

_SUMMED: Final = 256  # calls whose work is added up before a look at whether it is enough


class BookedInstances:
    """Free times and reservations of a topology's instances, advanced as calls are placed in the plan.

    It is kept for the waiting calls of `rows`; a call r below is the one of `rows[r]`. `batch_us` is the most time a
    prefill batch may add to its first call, and never more than the backlog of a prefill instance. Prompts are priced
    by what is believed cached, if `aware` of it, else as if nothing were.
    """

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
        self._topology, self._estimator, self._waiting = topology, estimator, waiting
        self._now_us = now_us
        self.calls: list[Call] = [waiting.calls[row] for row in rows]
        self._hits = waiting.hits(topology) if aware else None
        self._rows = rows
        self._found: list[Found] = [waiting.found(row, topology, self._hits) for row in rows]
        self._books = books = topology.books
        free_us, *egress, self._prefill_room, self._idle = map(list.copy, books.prefill_of)
        self._free_us = [max(us, now_us) for us in free_us]
        self._egress_free_us, self._egress_busy_us = egress
        *ingress, self._local_us, self._decode_room, self._slots, self._step_us = map(list.copy, books.decode_of)
        self._ingress_free_us, self._ingress_busy_us = ingress
        self._saved_us = [0] * len(self._idle)  # of a prompt's time alone on P
        self._floor_us = books.floors  # part of a prompt's time that is saved in another's batch
        self._by_free = [_from(now_us, entries) for entries in books.by_free]  # by kind, without those in `_batches`
        self._list_of = books.kinds  # place of P in `_by_free`
        self._by_step = [entries.copy() for entries in books.by_step]  # by link sort
        self._sorts = sorted(range(len(self._by_step)), key=self._by_step.__getitem__)  # the fastest first
        # Whether every pair takes every call throughout the plan, as it is far from full.
        self._roomy = not waiting.demanding and (
            sum([call.prompt_tokens for call in self.calls]) <= min(self._prefill_room)
            and sum([call.prompt_tokens + call.max_tokens for call in self.calls]) <= min(self._decode_room)
            and len(self.calls) <= min(self._slots)
        )
        self._kinds = sorted(range(len(self._by_free)), key=self._found[0].nominal_us.__getitem__)  # the fastest first
        self._idle_of = [bisect_left(entries, (1, 0)) for entries in books.by_free]  # instances by kind
        self._startable = sum(self._idle_of)  # instances that could take a call that starts now
        self._kv_needed: tuple[list[list[int]], list[list[int]]] = ([], []) if self._roomy else self._kv_of()
        self._batch_us = self._most_batch_us(batch_us)  # the most time a batch may add to its first call
        # What may still be added to the batch begun on P in this plan: (time, tokens).
        self._batches: dict[int, tuple[int, int]] = {}
        self._added: dict[int, tuple[int, int]] = {}  # (calls, context tokens) placed in this plan, by D
        self._applied: list[tuple[int, int]] = []  # pairs of calls placed so far

    @property
    def any_startable(self) -> bool:
        """Whether some instance could take a call that starts now."""
        return self._startable > 0

    def _may_prefill(self, r: int, i: int) -> bool:
        """Whether P serves call r and has room for it."""
        return self._roomy or self._kv_needed[0][r][self._topology.prefill_sort[i]] <= self._prefill_room[i]

    def _may_decode(self, r: int, j: int) -> bool:
        """Whether D serves call r and has room for it."""
        if self._roomy:
            return True
        return self._slots[j] > 0 and self._kv_needed[1][r][self._topology.decode_sort[j]] <= self._decode_room[j]

    def _alone_us(self, r: int, i: int) -> int:
        """Prefill time of call r on P in a step of its own."""
        found = self._found[r]
        nominal_us = found.others_us.get(i, found.nominal_us[self._books.kinds[i]])
        return max(nominal_us * self._books.speeds[i] // PPM - self._saved_us[i], 0)

    def _new_tokens(self, r: int, i: int) -> int:
        """Tokens of the prompt to be computed on P."""
        return self.calls[r].prompt_tokens - self._found[r].tokens_on(i)

    def _joins(self, r: int, i: int) -> bool:
        """Whether call r would ride in the batch begun on P in this plan."""
        if i not in self._batches:
            return False
        headroom_us, room = self._batches[i]
        return self._alone_us(r, i) - self._floor_us[i] <= headroom_us and self._new_tokens(r, i) <= room

    def _added_us(self, r: int, i: int) -> int:
        """Prefill time call r adds to P."""
        added_us = self._alone_us(r, i)
        return added_us - self._floor_us[i] if self._joins(r, i) else added_us

    def _leave_us(self, end_us: int, i: int) -> int:
        """When KV could leave P whose prompt is computed then, as `Backlog.begins_us` says."""
        free_us = self._egress_free_us[i]
        return end_us if free_us <= end_us else min(free_us, end_us + self._egress_busy_us[i])

    def _move_us(self, r: int, i: int, j: int) -> int:
        """Time of the transfer between free ends, 0 where there is none."""
        topology = self._topology
        return 0 if topology.homes[i] == j else topology.links_from(i).move_us(self.calls[r].prompt_tokens, j)

    def _step_of(self, j: int) -> int:
        """The next step of a call on D."""
        return self._step_us[j]

    # --- bookings ---------------------------------------------------------------------------------------------
    def _apply(self, r: int, i: int, j: int) -> None:
        """Book call r on a pair. Where nothing can start any more the plan is complete, and the rest is left out."""
        call, entries = self.calls[r], self._by_free[self._list_of[i]]
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
        local = self._topology.homes[i] == j
        if not self._roomy:
            kv_tokens = self._kv_needed[1][r][self._topology.decode_sort[j]]
            self._prefill_room[i] -= kv_tokens if local else call.prompt_tokens
            self._decode_room[j] -= kv_tokens
            self._slots[j] -= 1
        if not local:
            self._send(i, j, self._move_us(r, i, j))
        calls, context = self._added.get(j, (0, 0))
        self._added[j] = calls + 1, context + call.mean_context
        self._step_on(j, self._by_step[self._books.link_sorts[j]])
        self._applied.append((i, j))

    def _step_on(self, j: int, entries: list[tuple[int, int]]) -> None:
        """The next step on D, one of `entries`, with what is placed there."""
        del entries[bisect_left(entries, (self._step_us[j], j))]
        self._step_us[j] = self._topology.decode[j].next_step_us(self._estimator, *self._added[j])
        insort(entries, (self._step_us[j], j))

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

    def _most_batch_us(self, most_us: int) -> int:
        """That, but never more than the backlog of a prefill instance."""
        topology = self._topology
        instances = max(topology.senders, 1)
        if self._hits is not None:
            return min(most_us, int(self._hits.least_us.sum()) // instances)
        return batched_us(self._waiting.nominal_us(topology), self._books.fastest_ppm, most_us, instances)

    def _kv_of(self) -> tuple[list[list[int]], list[list[int]]]:
        """What `WaitingCalls.kv_needed` says, by call."""
        prefill, decode = self._waiting.kv_needed(self._topology, self._waiting.columns[list(self._rows)].T)
        return prefill.T.tolist(), decode.T.tolist()


def _from(now_us: int, entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Entries (time, place) in order, none of them earlier than now."""
    due = bisect_left(entries, (now_us + 1, 0))  # those of now as well: by place they may come before earlier ones
    return sorted([(now_us, place) for _, place in entries[:due]]) + entries[due:]


def batched_us(nominal_us: IntArray, speed_ppm: IntArray, most_us: int, instances: int) -> int:
    """The most time a batch may add to its first call: `most_us`, or an instance's part of all that waits.

    `nominal_us` is the table time of each waiting call, (calls, kinds), of which the least counts.
    """
    backlog_us, first = 0, 0
    while backlog_us < most_us * instances and first < len(nominal_us):
        some_us = nominal_us[first : first + _SUMMED] * speed_ppm // PPM
        backlog_us += int(np.minimum.reduce(some_us, axis=1).sum())
        first += _SUMMED
    return min(most_us, backlog_us // instances)
