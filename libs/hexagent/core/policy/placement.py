"""The simulated state a plan is made in: where each waiting call would finish, over all instance pairs."""

from typing import NamedTuple

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.order import BoolArray, IntArray
from hexagent.core.policy.topology import Topology, ints
from hexagent.core.policy.waiting import OUTPUT, PROMPT, RESERVE_MAX, RESERVE_PREDICTED, WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import PPM

NEVER_US = 1 << 61  # the finish of a placement that is not feasible
OTHERS_MAX = 3  # runners-up a record keeps


class Placed(NamedTuple):
    """Where a call that starts now goes."""

    call: Call
    prefill: Instance
    decode: Instance
    chosen: Candidate
    others: tuple[Candidate, ...]  # best first
    transfer_us: int  # of its KV between free ends


class Projected(NamedTuple):
    """Predicted model times of some rows, shapes (rows, P); infeasible ones finish at `NEVER_US`."""

    joins: BoolArray  # the call would ride in the batch begun on P in this plan
    added_us: IntArray  # prefill time the call adds to P
    end_us: IntArray  # of prefill
    leave_us: IntArray  # KV begins to move, as far as P is concerned
    decode_us: IntArray  # (rows, D): wait for the link into D and decode there, `NEVER_US` where KV does not fit
    finish_us: IntArray  # on the best decode instance from P


class SimulatedState:
    """Free times and reservations of a topology's instances, advanced as calls are placed in the plan.

    `batch_us` is the most time a prefill batch may add to its first call, and never more than the backlog of a
    prefill instance. At most `placements` calls are placed in it. Prompts are priced by what is believed cached, if
    `aware` of it, else as if nothing were.
    """

    def __init__(
        self,
        topology: Topology,
        estimator: Estimator,
        waiting: WaitingCalls,
        now_us: int,
        batch_us: int,
        placements: int,
        aware: bool = False,
    ) -> None:
        self._topology, self._estimator, self._waiting = topology, estimator, waiting
        prefill, decode = topology.prefill, topology.decode
        columns = waiting.columns
        self._prompt, self._steps = columns[:, PROMPT], columns[:, OUTPUT] - 1
        reserve = columns[:, RESERVE_PREDICTED, None]
        if topology.never_evicts.any():
            reserve = np.where(topology.never_evicts, columns[:, RESERVE_MAX, None], reserve)
        self._kv_tokens = self._prompt[:, None] + reserve  # (calls, D) or (calls, 1)
        self._transfer_us = topology.transfer_us(self._prompt)
        speed = ints(estimator.speed_ppm(p.spec.instance_id)[0] for p in prefill)
        hits = waiting.hits(topology) if aware else None
        if hits is None:
            nominal_us = waiting.nominal_us(topology)[:, topology.kind_of]
            self._new_tokens = np.broadcast_to(self._prompt[:, None], nominal_us.shape)
        else:
            tokens, nominal_us = hits
            self._new_tokens = self._prompt[:, None] - tokens  # to be computed, (calls, P)
        self._alone_us = nominal_us * speed // PPM
        self._extra_us = np.maximum(self._alone_us - topology.floor_us * speed // PPM, 0)
        self._shared_us = self._alone_us - self._extra_us  # saved by a call that joins a batch
        self._batch_us = min(batch_us, int(self._alone_us.min(axis=1).sum()) // len(prefill))
        self._free_us = ints(p.prefill_free(now_us) for p in prefill)
        self._idle = np.array([not p.prefilling for p in prefill], dtype=bool)
        self._startable = int(self._idle.sum())  # instances that could take a call that starts now
        # What may still be added to the batch begun on P in this plan: time, -1 = there is none, and tokens.
        self._headroom_us = np.full(len(prefill), -1, dtype=np.int64)
        self._batch_room = np.zeros(len(prefill), dtype=np.int64)
        self._prefill_room = ints(p.kv_free_tokens for p in prefill)
        self._egress_us = ints(p.egress_free_us for p in prefill)
        self._decode_room = ints(d.kv_free_tokens for d in decode)
        self._slots = ints(d.spec.max_batch - len(d.decoding) for d in decode)
        self._ingress_us = ints(d.ingress_us for d in decode)
        self._added = [(0, 0)] * len(decode)  # (calls, context tokens) placed in this plan
        self._step_us = ints(d.next_step_us(estimator) for d in decode)
        # Whether every pair takes every call throughout the plan, as it is far from full: nothing to mask then.
        self._roomy = bool(
            topology.pairs.all()
            and self._prompt.max() * placements <= self._prefill_room.min()
            and self._kv_tokens.max() * placements <= self._decode_room.min()
            and self._slots.min() >= placements
        )

    @property
    def any_startable(self) -> bool:
        """Whether some instance could take a call that starts now."""
        return self._startable > 0

    def _can_start(self, i: int) -> bool:
        return bool(self._idle[i] or self._headroom_us[i] > 0)

    def project(self, rows: slice) -> Projected:
        """Where the calls of these rows would finish if each were placed next."""
        prompt = self._prompt[rows, None]
        joins = (self._extra_us[rows] <= self._headroom_us) & (self._new_tokens[rows] <= self._batch_room)
        added_us = self._alone_us[rows] - self._shared_us[rows] * joins
        end_us = self._free_us + added_us
        leave_us = np.maximum(end_us, self._egress_us)
        decode_us = self._decode_us(rows)
        if self._topology.uniform:
            after_us = decode_us.min(axis=1, keepdims=True) + self._transfer_us[rows, 0]
        else:
            pairs_us = decode_us[:, None, :] + self._transfer_us[rows]
            after_us = np.where(self._topology.pairs, pairs_us, NEVER_US).min(axis=2)
        finish_us = leave_us + after_us
        if not self._roomy:
            finish_us = np.minimum(finish_us, NEVER_US)
            finish_us[prompt > self._prefill_room] = NEVER_US
        return Projected(joins, added_us, end_us, leave_us, decode_us, finish_us)

    def _decode_us(self, rows: slice) -> IntArray:
        # Transfers bound for D come in one at a time. When they will be ready is not known well enough to say which
        # goes first, so a call is taken to wait for all that have not ended.
        decode_us: IntArray = self._steps[rows, None] * self._step_us + self._ingress_us
        if self._roomy:
            return decode_us
        fits = (self._kv_tokens[rows] <= self._decode_room) & (self._slots > 0)
        return np.where(fits, decode_us, NEVER_US)

    def place(self, row: int, projected: Projected, at: int) -> Placed | None:
        """Put the call of `row` where it finishes first; a `Placed` if it starts now. `at` is its projected row.

        The call must be feasible somewhere.
        """
        i = int(projected.finish_us[at].argmin())
        starts = bool(self._idle[i] or projected.joins[at, i])
        placed = None
        if starts or not self._topology.uniform:
            pair_us = self._pair_us(row, projected, at)
            j = int(pair_us[i].argmin())
            if starts:
                placed = self._placed(row, projected, at, pair_us, (i, j))
        else:
            j = int(projected.decode_us[at].argmin())
        self._apply(row, projected, at, i, j)
        return placed

    def _pair_us(self, row: int, projected: Projected, at: int) -> IntArray:
        """Finish of one call over all pairs, (P, D)."""
        pair_us: IntArray = projected.leave_us[at][:, None] + self._transfer_us[row] + projected.decode_us[at]
        pair_us[~self._topology.pairs | (projected.finish_us[at] >= NEVER_US)[:, None]] = NEVER_US
        return pair_us

    def _placed(self, row: int, projected: Projected, at: int, pair_us: IntArray, best: tuple[int, int]) -> Placed:
        flat = pair_us.ravel()
        order = [int(pair) for pair in np.argsort(flat, kind="stable")[: OTHERS_MAX + 1]]
        pairs = [divmod(pair, len(self._slots)) for pair in order if flat[pair] < NEVER_US]
        others = [self._candidate(row, projected, at, pair_us, i, j) for i, j in pairs if (i, j) != best][:OTHERS_MAX]
        i, j = best
        return Placed(
            self._waiting.calls[row],
            self._topology.prefill[i],
            self._topology.decode[j],
            self._candidate(row, projected, at, pair_us, i, j),
            tuple(others),
            self._move_us(row, i, j),
        )

    def _candidate(self, row: int, projected: Projected, at: int, pair_us: IntArray, i: int, j: int) -> Candidate:
        end_us, finish_us = int(projected.end_us[at, i]), int(pair_us[i, j])
        return Candidate(
            self._topology.prefill[i].spec.instance_id,
            self._topology.decode[j].spec.instance_id,
            end_us - int(projected.added_us[at, i]),
            end_us,
            finish_us - int(self._steps[row]) * int(self._step_us[j]),
            finish_us,
        )

    def _move_us(self, row: int, i: int, j: int) -> int:
        return int(self._transfer_us[row, 0, 0] if self._topology.uniform else self._transfer_us[row, i, j])

    def _apply(self, row: int, projected: Projected, at: int, i: int, j: int) -> None:
        prompt = int(self._prompt[row])
        could = self._can_start(i)
        if projected.joins[at, i]:
            self._headroom_us[i] -= projected.added_us[at, i]
            self._batch_room[i] -= self._new_tokens[row, i]
        elif self._idle[i]:
            self._headroom_us[i] = self._batch_us or -1
            self._batch_room[i] = self._topology.step_tokens[i] - self._new_tokens[row, i]
        else:
            self._headroom_us[i] = -1  # the plan goes on behind work that is not dispatched now
        self._idle[i] = False
        self._startable -= could and not self._can_start(i)
        end_us = self._free_us[i] = projected.end_us[at, i]
        kv_row = self._kv_tokens[row]
        kv_tokens = kv_row[j if len(kv_row) > 1 else 0]
        self._prefill_room[i] -= kv_tokens if self._topology.local[i, j] else prompt
        self._decode_room[j] -= kv_tokens
        self._slots[j] -= 1
        if not self._topology.local[i, j]:
            wait_us = self._move_us(row, i, j)
            self._egress_us[i] = max(end_us, self._egress_us[i]) + wait_us
            self._ingress_us[j] += wait_us
        calls, context = self._added[j]
        calls, context = calls + 1, context + self._waiting.calls[row].mean_context
        self._added[j] = (calls, context)
        self._step_us[j] = self._topology.decode[j].next_step_us(self._estimator, calls, context)
