"""The simulated state a plan is made in: where each waiting call would finish, over all instance pairs."""

from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.books import (
    DECODE_ROOM,
    EGRESS,
    FREE,
    IDLE,
    INGRESS,
    LOCAL,
    PREFILL_ROOM,
    SLOTS,
    STEP,
)
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import OUTPUT, PROMPT, RESERVE_MAX, WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.links import Backlog
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import NEVER_US, PPM

OTHERS_MAX: Final = 3  # runners-up a record keeps
_SUMMED: Final = 256  # calls whose work is added up before a look at whether it is enough
_SORTED_WHOLE: Final = 1_024  # values up to which sorting them all is the fastest way to the smallest ones


class Placed(NamedTuple):
    """Where a call that starts now goes."""

    call: Call
    prefill: Instance
    decode: Instance
    chosen: Candidate
    others: tuple[Candidate, ...]  # best first
    transfer_us: int  # of its KV between free ends; where there is none, of its prefill if that keeps others waiting
    beside_us: int = 0  # by which it delays the prompts that it is computed beside; 0 = there are none


class SimulatedState:
    """Free times and reservations of a topology's instances, advanced as calls are placed in the plan.

    It is kept for the waiting calls of `rows`, at least one; a call r below is the one of `rows[r]`. After each
    placement only what the two instances concerned mean to every call is computed again.

    `batch_us` is the most time a prefill batch may add to its first call, and never more than the backlog of a
    prefill instance. Prompts are priced by what is believed cached, if `aware` of it, else as if nothing were.
    """

    def __init__(
        self,
        topology: Topology,
        estimator: Estimator,
        waiting: WaitingCalls,
        rows: IntArray,
        now_us: int,
        batch_us: int,
        aware: bool = False,
    ) -> None:
        self._topology, self._estimator, self._calls, self._rows = topology, estimator, waiting.calls, rows
        books = topology.books
        free_us = np.maximum(books.prefill[FREE], now_us)
        self._free_us: list[int] = free_us.tolist()
        *_, self._prefill_room, self._idle = books.prefill.tolist()
        *_, self._local_us, self._decode_room, self._slots, self._step_us = books.decode.tolist()
        egress = books.prefill[EGRESS:PREFILL_ROOM]
        self._egress = [Backlog(*ends) for ends in egress.T.tolist()]
        self._ingress = books.decode[INGRESS:LOCAL].copy()  # a `Backlog` a column
        self._floor_us = books.floor_us.tolist()  # part of a prompt's time that is saved in another's batch
        self._startable = sum(self._idle)  # instances that could take a call that starts now
        # What may still be added to the batch begun on P in this plan: time, -1 = there is none, and tokens.
        self._headroom_us = [-1] * len(self._idle)
        self._batch_room = [0] * len(self._idle)
        self._added = [(0, 0)] * len(self._slots)  # (calls, context tokens) placed in this plan

        columns = waiting.columns[rows].T
        self._prompt, self._steps = columns[PROMPT], columns[OUTPUT] - 1
        self._pinned, self._kv_tokens = waiting.kv_needed(topology, columns)
        hits = waiting.hits(topology) if aware else None
        self._cached = hits[0][rows].T if hits is not None else None  # prompt tokens, (P, calls)
        if hits is None:
            nominal_us, of, speed_ppm = waiting.nominal_us(topology), topology.kind_of, books.fastest_ppm
        else:
            nominal_us, of, speed_ppm = hits[1], np.arange(len(self._idle)), books.speed_ppm
        self._alone_us = nominal_us[rows].T[of] * books.speed_ppm[:, None] // PPM
        self._backlog = nominal_us, speed_ppm, batch_us  # all that waits, (calls, P or kinds)
        # Whether every pair takes every call throughout the plan, as it is far from full: nothing to mask then.
        self._roomy = bool(
            topology.uniform
            and not waiting.demanding
            and np.add.reduce(self._prompt) <= min(self._prefill_room)
            and np.add.reduce(self._prompt + columns[RESERVE_MAX]) <= min(self._decode_room)
            and len(rows) <= min(self._slots)
        )
        # When KV could begin to move as far as P is concerned, (P, calls); time on D from then on but for the transfer,
        # (D, calls); `NEVER_US` where there is no room.
        self._end_us = free_us[:, None] + self._alone_us  # of prefill, (P, calls)
        self._leave_us = begins_us(self._end_us, *egress[:, :, None])
        self._decode_us = self._steps * books.decode[STEP][:, None] + books.decode[LOCAL][:, None]
        if not self._roomy:
            self._leave_us[self._pinned[topology.prefill_sort] > books.prefill[PREFILL_ROOM][:, None]] = NEVER_US
            full = self._kv_tokens[topology.decode_sort] > books.decode[DECODE_ROOM][:, None]
            self._decode_us[full | (books.decode[SLOTS] <= 0)[:, None]] = NEVER_US

    @cached_property
    def _once_idle(self) -> list[int]:
        """Instances among which those are that could take a call that starts now."""
        once_idle: list[int] = np.flatnonzero(self._topology.books.prefill[IDLE]).tolist()
        return once_idle

    @cached_property
    def _batch_us(self) -> int:
        """The most time a batch may add to its first call."""
        return batched_us(*self._backlog, max(self._topology.senders, 1))

    @cached_property
    def _transfer_us(self) -> IntArray:
        """Of each call, as `Topology.transfer_us` says."""
        return self._topology.transfer_us(self._prompt)

    @property
    def any_startable(self) -> bool:
        """Whether some instance could take a call that starts now."""
        return self._startable > 0

    def finish_us(self) -> IntArray:
        """Where each call would finish if it were placed next, shape (calls,); at `NEVER_US` or later = nowhere.

        If links are described alike, with the median of what is learned of them.
        """
        finish_us: IntArray
        if self._topology.uniform:
            # Wherever a call decodes, it is there first from where it can leave first.
            begin_us = begins_us(np.minimum.reduce(self._leave_us), *self._ingress[:, :, None])
            finish_us = np.minimum.reduce(begin_us + self._decode_us) + self._transfer_us
            return finish_us
        begin_us = begins_us(self._leave_us[:, None], *self._ingress[:, :, None])
        begin_us = np.where(self._topology.local[:, :, None], self._leave_us[:, None], begin_us)
        pair_us = begin_us + self._decode_us + self._transfer_us
        finish_us = np.where(self._topology.pairs[:, :, None], pair_us, NEVER_US).min(axis=(0, 1))
        return finish_us

    def place(self, r: int, last: bool) -> Placed | None:
        """Put call r where it finishes first; a `Placed` if it starts now. The `last` one of a plan is not booked.

        The call must be feasible somewhere.
        """
        near_i, pair_us = self._near(r)
        place, j = divmod(int(pair_us.argmin()), len(self._slots))
        i = near_i[place]
        placed = self._placed(r, near_i, pair_us) if self._idle[i] or self._joins(r, i) else None
        if not last:
            self._apply(r, i, j)
        return placed

    def none_starts_from(self, first: int) -> bool:
        """`none_starts` for the calls from `first` on, one before the other."""
        every = np.arange(len(self._rows))
        return self.none_starts(every[first:], every[: len(every) - first])

    def none_starts(self, rows: IntArray, before: IntArray) -> bool:
        """Whether surely none of these calls, before each of which so many others may be placed, will start any more.

        Each of those makes one instance later. A call looks only at the few instances that its KV could leave first, so
        where as many as those and the ones made later are earlier than all that could start it, it does not start.
        `before` ascends.
        """
        if not self._roomy:
            return False
        able = [i for i in self._once_idle if self._idle[i] or self._headroom_us[i] >= 0]
        if len(self._idle) - len(able) - int(before[-1]) <= OTHERS_MAX:
            return False
        leave_us = self._leave_us[:, rows]
        earlier = np.add.reduce(leave_us < np.minimum.reduce(leave_us[able]))
        return bool(np.minimum.reduce(earlier - before) > OTHERS_MAX)

    def feasible(self, r: int) -> bool:
        """Whether some pair has room for call r."""
        if self._roomy:
            return True
        if self._topology.uniform:
            return bool(self._leave_us[:, r].min() < NEVER_US and self._decode_us[:, r].min() < NEVER_US)
        return bool(self._pair_us(r).min() < NEVER_US)

    def _can_start(self, i: int) -> bool:
        return bool(self._idle[i]) or self._headroom_us[i] > 0

    def _new_tokens(self, i: int | slice) -> IntArray:
        """Tokens of each prompt to be computed on P."""
        new_tokens: IntArray = self._prompt if self._cached is None else self._prompt - self._cached[i]
        return new_tokens

    def _joins(self, r: int, i: int) -> bool:
        """Whether call r would ride in the batch begun on P in this plan."""
        headroom_us = self._headroom_us[i]
        if headroom_us < 0 or self._alone_us[i, r] - self._floor_us[i] > headroom_us:
            return False
        return bool(self._new_tokens(i)[r] <= self._batch_room[i])

    def _added_us(self, r: int, i: int) -> int:
        """Prefill time call r adds to P."""
        alone_us = int(self._alone_us[i, r])
        return alone_us - self._floor_us[i] if self._joins(r, i) else alone_us

    def _pair_us(self, r: int) -> IntArray:
        """Finish of call r over all pairs, (P, D)."""
        leave_us = self._leave_us[:, r, None]
        begin_us = np.where(self._topology.local, leave_us, begins_us(leave_us, *self._ingress))
        pair_us: IntArray = begin_us + self._decode_us[:, r] + self._transfer_us[..., r]
        return np.where(self._topology.pairs & (pair_us < NEVER_US), pair_us, NEVER_US)

    def _placed(self, r: int, near_i: list[int], pair_us: IntArray) -> Placed:
        """The record of a call that starts now on the best of the pairs, with the best other ones."""
        best = smallest(pair_us.ravel(), OTHERS_MAX + 1)
        pairs = [(near_i[pair // len(self._slots)], pair % len(self._slots)) for pair in best.tolist()]
        candidates = [
            self._candidate(r, *pair, finish_us)
            for pair, finish_us in zip(pairs, pair_us.ravel()[best].tolist(), strict=True)
            if finish_us < NEVER_US
        ]
        (i, j), topology, call = pairs[0], self._topology, self._calls[self._rows[r]]
        move_us = topology.move_us(i, j, call.prompt_tokens)
        return Placed(call, topology.prefill[i], topology.decode[j], candidates[0], tuple(candidates[1:]), move_us)

    def _near(self, r: int) -> tuple[list[int], IntArray]:
        """Prefill instances among which the best pairs of call r are, and its finish on each with each decode instance.

        In the order in which KV could leave them: of equal finishes, as where the link of the decode instance decides,
        the first one keeps the rest freest.
        """
        leave_us = self._leave_us[:, r]
        if self._topology.uniform:  # of equal links each of the best pairs has one of as many best prefill instances
            near_i = smallest(leave_us, OTHERS_MAX + 1)
            begin_us = begins_us(leave_us[near_i, None], *self._ingress)
            transfer_us = self._topology.pair_us(near_i, int(self._prompt[r]))
            return near_i.tolist(), begin_us + self._decode_us[:, r] + transfer_us
        near_i = leave_us.argsort(kind="stable")
        return near_i.tolist(), self._pair_us(r)[near_i]

    def _candidate(self, r: int, i: int, j: int, finish_us: int) -> Candidate:
        added_us = self._added_us(r, i)
        return Candidate(
            self._topology.prefill[i].spec.instance_id,
            self._topology.decode[j].spec.instance_id,
            self._free_us[i],
            self._free_us[i] + added_us,
            finish_us - int(self._steps[r]) * self._step_us[j],
            finish_us,
        )

    def _apply(self, r: int, i: int, j: int) -> None:
        """Book call r on a pair. Where nothing can start any more the plan is complete, and the rest is left out."""
        joins, added_us, could = self._joins(r, i), self._added_us(r, i), self._can_start(i)
        new_tokens, kv_tokens = int(self._new_tokens(i)[r]), int(self._kv_tokens[self._topology.decode_sort[j], r])
        local = bool(self._topology.local[i, j])
        if joins:
            self._headroom_us[i] -= added_us
            self._batch_room[i] -= new_tokens
        elif self._idle[i]:
            self._headroom_us[i] = self._batch_us or -1
            self._batch_room[i] = self._topology.step_tokens[i] - new_tokens
        else:
            self._headroom_us[i] = -1  # the plan goes on behind work that is not dispatched now
        self._idle[i] = 0
        self._startable -= could and not self._can_start(i)
        if not self._startable:
            return
        self._free_us[i] += added_us
        self._prefill_room[i] -= kv_tokens if local else int(self._prompt[r])
        self._decode_room[j] -= kv_tokens
        self._slots[j] -= 1
        if not local:
            move_us = self._topology.move_us(i, j, int(self._prompt[r]))
            out, into = self._egress[i], Backlog(*self._ingress[:, j].tolist())
            arrives_us = into.begins_us(out.begins_us(self._free_us[i])) + move_us
            self._egress[i], self._ingress[:, j] = out.then(arrives_us, move_us), into.then(arrives_us, move_us)
        calls, context = self._added[j]
        self._added[j] = (calls + 1, context + self._calls[self._rows[r]].mean_context)
        self._step_us[j] = self._next_step_us(j)
        self._look_again(i, j)

    def _next_step_us(self, j: int) -> int:
        return self._topology.decode[j].next_step_us(self._estimator, *self._added[j])

    def _look_again(self, i: int, j: int) -> None:
        """What the two instances of a placement mean to every call, as they are after it."""
        added_us, floor_us, headroom_us = self._alone_us[i], self._floor_us[i], self._headroom_us[i]
        if headroom_us >= 0:
            joins = (added_us <= headroom_us + floor_us) & (self._new_tokens(i) <= self._batch_room[i])
            added_us = added_us - floor_us * joins
        self._end_us[i] = added_us + self._free_us[i]
        self._leave_us[i] = begins_us(self._end_us[i], *self._egress[i])
        np.add(self._steps * self._step_us[j], self._local_us[j], out=self._decode_us[j])
        if not self._roomy:
            self._leave_us[i, self._pinned[self._topology.prefill_sort[i]] > self._prefill_room[i]] = NEVER_US
            full = self._kv_tokens[self._topology.decode_sort[j]] > self._decode_room[j]
            self._decode_us[j, full if self._slots[j] > 0 else slice(None)] = NEVER_US


def batched_us(nominal_us: IntArray, speed_ppm: IntArray, most_us: int, instances: int) -> int:
    """The most time a batch may add to its first call: `most_us`, or an instance's part of all that waits.

    `nominal_us` is the table time of each waiting call, (calls, kinds or instances), of which the least counts.
    """
    backlog_us, first = 0, 0
    while backlog_us < most_us * instances and first < len(nominal_us):
        some_us = nominal_us[first : first + _SUMMED] * speed_ppm // PPM
        backlog_us += int(np.minimum.reduce(some_us, axis=1).sum())
        first += _SUMMED
    return min(most_us, backlog_us // instances)


def begins_us(ready_us: IntArray, free_us: IntArray | int, busy_us: IntArray | int) -> IntArray:
    """`Backlog.begins_us` of arrays."""
    begin_us: IntArray = np.maximum(ready_us, np.minimum(free_us, ready_us + busy_us))
    return begin_us


def smallest(values: IntArray, count: int) -> IntArray:
    """Places of the `count` smallest values, ascending, equal ones in order of place; all if there are fewer."""
    if len(values) <= max(_SORTED_WHOLE, count):
        return values.argsort(kind="stable")[:count]
    if (values[1:] >= values[:-1]).all():  # as they are first come first served
        return np.arange(count)
    near = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return near[values[near].argsort(kind="stable")[:count]]
