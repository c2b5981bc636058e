"""Dispatchers: given an order, which waiting calls start now, and where."""

from typing import Protocol

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.policy.order import IntArray, Order, waiting_arrays
from hexagent.core.policy.placement import NEVER_US, Placed, SimulatedState
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.record import Candidate

RESCORED_MAX = 64  # longer queues are scored once and sorted
WALKED_MAX = 48  # calls a plan places before it stops looking for one that starts now
BATCH_US_MAX = 200_000  # most time a prefill batch adds to its first call, and never more than the backlog


class Dispatcher(Protocol):
    def plan(self, order: Order, topology: Topology, waiting: list[Call], now_us: int) -> list[tuple[Placed, int]]:
        """Placed calls with the score each won by, in the order they were placed."""
        ...


def _scores(order: Order, calls: list[Call], now_us: int, finish_us: IntArray) -> IntArray:
    """Scores of the calls; one that fits nowhere now comes last."""
    scores = order.scores(waiting_arrays(calls), now_us, finish_us)
    return np.where(finish_us >= NEVER_US, NEVER_US, scores)


class PredictedFinish:
    """Every waiting call in order takes the pair with the earliest predicted finish in the simulated state.

    A call whose best pair is busy stays in the plan but is not dispatched, so that it is not pushed onto a slow
    instance that merely happens to be free. Planning stops when nothing can start any more.
    """

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    def plan(self, order: Order, topology: Topology, waiting: list[Call], now_us: int) -> list[tuple[Placed, int]]:
        probe = SimulatedState(topology, self._estimator, now_us, 0)
        if not probe.any_startable():
            return []
        prefill_us = probe.prefill_us(waiting)
        backlog_us = int(prefill_us.min(axis=1).sum()) // len(topology.prefill)
        state = SimulatedState(topology, self._estimator, now_us, min(BATCH_US_MAX, backlog_us))
        if order.projected and len(waiting) <= RESCORED_MAX:
            return self._rescored(order, state, waiting, now_us)
        finish_us = np.zeros(len(waiting), dtype=np.int64)
        if order.projected:
            finish_us = state.project(waiting, prefill_us).finish_us.min(axis=(1, 2))
        scores = _scores(order, waiting, now_us, finish_us)
        placed: list[tuple[Placed, int]] = []
        for row in np.argsort(scores, kind="stable")[:WALKED_MAX]:
            if not state.any_startable():
                break
            call = waiting[row]
            projected = state.project([call], prefill_us[row : row + 1])
            one = state.place(call, projected, 0)
            if one is not None:
                placed.append((one, int(scores[row])))
        return placed

    def _rescored(
        self, order: Order, state: SimulatedState, waiting: list[Call], now_us: int
    ) -> list[tuple[Placed, int]]:
        """Score every remaining call anew after each placement: the simulated state has moved."""
        placed: list[tuple[Placed, int]] = []
        calls = list(waiting)
        prefill_us = state.prefill_us(calls)
        while calls and len(placed) < WALKED_MAX and state.any_startable():
            projected = state.project(calls, prefill_us)
            finish_us = projected.finish_us.min(axis=(1, 2))
            scores = _scores(order, calls, now_us, finish_us)
            row = int(scores.argmin())
            one = state.place(calls[row], projected, row)
            if one is None:
                break  # nothing left is feasible now
            placed.append((one, int(scores[row])))
            del calls[row]
            prefill_us = np.delete(prefill_us, row, axis=0)
        return placed


class LeastLoaded:
    """Each call joins the prefill instance with the fewest calls when it becomes ready, and decodes where the
    fewest calls are when its prefill starts: the load balance the paper's baselines seem to use."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._assigned: dict[CallId, str] = {}

    def plan(self, order: Order, topology: Topology, waiting: list[Call], now_us: int) -> list[tuple[Placed, int]]:
        queues = self._assign(topology, waiting)
        placed: list[tuple[Placed, int]] = []
        for i, instance in enumerate(topology.prefill):
            queue = queues[instance.spec.instance_id]
            if instance.prefilling or not queue:
                continue
            scores = _scores(order, queue, now_us, np.full(len(queue), now_us, dtype=np.int64))
            alone_us = topology.nominal_prefill_us(queue)[:, i]
            batch_us = min(BATCH_US_MAX, int(alone_us.sum()))
            floor_us = int(topology.floor_us[i])
            end_us, extra_us, tokens = now_us, 0, 0
            for row in np.argsort(scores, kind="stable"):
                call = queue[row]
                added_us = int(alone_us[row]) - (floor_us if tokens else 0)
                full = extra_us + added_us > batch_us or tokens + call.prompt_tokens > instance.spec.max_step_tokens
                if tokens and full:
                    break
                decode = self._decode(topology, i, call, [p for p, _ in placed])
                if decode is None:
                    break  # first come first served: nobody overtakes a call that waits for room
                extra_us += added_us if tokens else 0
                end_us, tokens = end_us + added_us, tokens + call.prompt_tokens
                chosen = Candidate(instance.spec.instance_id, decode.spec.instance_id, now_us, end_us, end_us, end_us)
                placed.append((Placed(call, instance, decode, chosen, (), True), int(scores[row])))
                del self._assigned[call.call_id]
        return placed

    def _assign(self, topology: Topology, waiting: list[Call]) -> dict[str, list[Call]]:
        queues: dict[str, list[Call]] = {p.spec.instance_id: [] for p in topology.prefill}
        fresh: list[Call] = []
        for call in waiting:
            queue = queues.get(self._assigned.get(call.call_id, ""))
            if queue is None:
                fresh.append(call)
            else:
                queue.append(call)
        for call in fresh:
            least = min(topology.prefill, key=lambda p: len(queues[p.spec.instance_id]) + len(p.prefilling))
            self._assigned[call.call_id] = least.spec.instance_id
            queues[least.spec.instance_id].append(call)
        if len(self._assigned) > 2 * len(waiting) + 1_000:  # cancelled calls leave their assignment behind
            live = {c.call_id: self._assigned[c.call_id] for c in waiting}
            self._assigned = live
        return queues

    def _decode(self, topology: Topology, i: int, call: Call, placed: list[Placed]) -> Instance | None:
        """The feasible decode instance with the fewest calls bound."""
        best: tuple[int, Instance] | None = None
        for j, decode in enumerate(topology.decode):
            here = [p.call for p in placed if p.decode is decode]
            reserve = call.max_tokens if topology.never_evicts[j] else call.output_q90
            room = decode.kv_free_tokens - sum(c.prompt_tokens + c.max_tokens for c in here)
            count = len(decode.decoding) + len(here)
            fits = call.prompt_tokens + reserve <= room and count < decode.spec.max_batch
            if topology.pairs[i, j] and fits and (best is None or count < best[0]):
                best = (count, decode)
        return best[1] if best else None
