"""The simulated state a plan is made in: where each waiting call would finish, over all instance pairs."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.order import IntArray
from hexagent.core.policy.topology import Topology, ints
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import PPM, US_PER_S

NEVER_US = 1 << 61  # the finish of a placement that is not feasible
OTHERS_MAX = 3  # runners-up a record keeps


class Placed(NamedTuple):
    """Where a call goes in a plan; `startable`: it would start now, so it is dispatched."""

    call: Call
    prefill: Instance
    decode: Instance
    chosen: Candidate
    others: tuple[Candidate, ...]
    startable: bool


class Projected(NamedTuple):
    """Predicted model times of calls, shapes (calls, P) and (calls, P, D); infeasible pairs at `NEVER_US`."""

    joins: npt.NDArray[np.bool_]  # the call would ride in the batch begun on P in this plan
    prefill_us: IntArray  # what the call adds to P
    prefill_end_us: IntArray
    transfer_end_us: IntArray
    finish_us: IntArray


class SimulatedState:
    """Free times and reservations of a topology's instances, advanced as calls are placed in the plan.

    `batch_us` is the most time a prefill batch may add to its first call.
    """

    def __init__(self, topology: Topology, estimator: Estimator, now_us: int, batch_us: int) -> None:
        self._topology, self._estimator = topology, estimator
        self._now_us, self._batch_us = now_us, batch_us
        prefill, decode = topology.prefill, topology.decode
        self._free_us = ints(p.prefill_free(now_us) for p in prefill)
        self._idle = np.array([not p.prefilling for p in prefill], dtype=bool)
        self._open = np.zeros(len(prefill), dtype=bool)  # a batch was begun there in this plan
        self._batch_extra_us = np.zeros(len(prefill), dtype=np.int64)
        self._batch_tokens = np.zeros(len(prefill), dtype=np.int64)
        self._prefill_room = ints(p.kv_free_tokens for p in prefill)
        self._egress_us = ints(max(now_us, p.egress_free_us) for p in prefill)
        self._ingress_us = ints(max(now_us, d.ingress_free_us) for d in decode)
        self._decode_room = ints(d.kv_free_tokens for d in decode)
        self._slots = ints(d.spec.max_batch - len(d.decoding) for d in decode)
        self._added = [(0, 0)] * len(decode)  # (calls, context tokens) placed in this plan
        self._step_us = ints(self._decode_step_us(j) for j in range(len(decode)))
        self._speed = ints(estimator.speed_ppm(p.spec.instance_id)[0] for p in prefill)
        self._floor_us = topology.floor_us * self._speed // PPM

    def any_startable(self) -> bool:
        """Whether some instance could take a call that starts now."""
        return bool((self._idle | (self._open & (self._batch_extra_us < self._batch_us))).any())

    def prefill_us(self, calls: list[Call]) -> IntArray:
        """Predicted time of each call alone, shape (calls, P)."""
        return self._topology.nominal_prefill_us(calls) * self._speed // PPM

    def project(self, calls: list[Call], prefill_us: IntArray) -> Projected:
        """Where the calls would finish if each were placed next; `prefill_us` from the method of that name."""
        t = self._topology
        prompt = ints(c.prompt_tokens for c in calls)
        output = ints(c.output_q50 for c in calls)
        extra_us = np.maximum(prefill_us - self._floor_us, 0)
        joins = self._open & (self._batch_extra_us + extra_us <= self._batch_us)
        joins &= self._batch_tokens + prompt[:, None] <= t.step_tokens
        added_us = np.where(joins, extra_us, prefill_us)
        end_us = self._free_us + added_us
        kv_us = prompt[:, None, None] * t.kv_bytes_per_token * US_PER_S // t.rate + t.setup_us
        begin_us = np.maximum(end_us[:, :, None], np.maximum(self._egress_us[:, None], self._ingress_us))
        moves = (output > 1)[:, None, None] & ~t.local
        transfer_end_us = np.where(moves, begin_us + kv_us, end_us[:, :, None])
        finish_us = transfer_end_us + (output - 1)[:, None, None] * self._step_us
        reserve = ints(c.max_tokens for c in calls)[:, None] * t.never_evicts
        reserve += ints(c.output_q90 for c in calls)[:, None] * ~t.never_evicts
        room = ((prompt[:, None] + reserve) <= self._decode_room) & (self._slots > 0)
        feasible = t.pairs & room[:, None, :] & (prompt[:, None] <= self._prefill_room)[:, :, None]
        return Projected(joins, added_us, end_us, transfer_end_us, np.where(feasible, finish_us, NEVER_US))

    def place(self, call: Call, projected: Projected, row: int) -> Placed | None:
        """Take the earliest finish of row `row`, apply it, or None when no pair is feasible."""
        finish = projected.finish_us[row].ravel()
        best = int(finish.argmin())
        if finish[best] >= NEVER_US:
            return None
        order = np.argsort(finish, kind="stable")[: OTHERS_MAX + 1]
        others = tuple(
            self._candidate(projected, row, int(pair)) for pair in order if pair != best and finish[pair] < NEVER_US
        )[:OTHERS_MAX]
        i, j = divmod(best, len(self._topology.decode))
        startable = bool(self._idle[i] or projected.joins[row, i])
        chosen = self._candidate(projected, row, best)
        self._apply(call, projected, row, i, j)
        return Placed(call, self._topology.prefill[i], self._topology.decode[j], chosen, others, startable)

    def _candidate(self, projected: Projected, row: int, pair: int) -> Candidate:
        i, j = divmod(pair, len(self._topology.decode))
        end_us = int(projected.prefill_end_us[row, i])
        return Candidate(
            self._topology.prefill[i].spec.instance_id,
            self._topology.decode[j].spec.instance_id,
            end_us - int(projected.prefill_us[row, i]),
            end_us,
            int(projected.transfer_end_us[row, i, j]),
            int(projected.finish_us[row, i, j]),
        )

    def _apply(self, call: Call, projected: Projected, row: int, i: int, j: int) -> None:
        t = self._topology
        if projected.joins[row, i]:
            self._batch_extra_us[i] += projected.prefill_us[row, i]
            self._batch_tokens[i] += call.prompt_tokens
        elif self._idle[i]:
            self._open[i] = True
            self._batch_tokens[i] = call.prompt_tokens
        else:
            self._open[i] = False  # the plan goes on behind work that is not dispatched now
        self._idle[i] = False
        self._free_us[i] = projected.prefill_end_us[row, i]
        self._prefill_room[i] -= call.prompt_tokens
        reserve = call.max_tokens if t.never_evicts[j] else call.output_q90
        self._decode_room[j] -= call.prompt_tokens + reserve
        self._slots[j] -= 1
        if not t.local[i, j] and call.output_q50 > 1:
            self._egress_us[i] = self._ingress_us[j] = projected.transfer_end_us[row, i, j]
        calls, context = self._added[j]
        self._added[j] = (calls + 1, context + call.mean_context)
        self._step_us[j] = self._decode_step_us(j)

    def _decode_step_us(self, j: int) -> int:
        """Step time of decode instance `j` with one more call of the context that is usual there."""
        instance, (calls, context) = self._topology.decode[j], self._added[j]
        usual = (instance.context_sum + context) // max(len(instance.decoding) + calls, 1)
        return instance.decode_step_us(self._estimator, calls + 1, context + usual)
