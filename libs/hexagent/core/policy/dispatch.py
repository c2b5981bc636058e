"""Dispatchers: given an order, which waiting calls start now, and where."""

from typing import NamedTuple, Protocol

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.policy.order import Ages, IntArray, Order
from hexagent.core.policy.placement import NEVER_US, Placed, SimulatedState, smallest
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.record import Candidate

_LAST = 1 << 62  # score of a call that is not placed in this plan


class Decision(NamedTuple):
    placed: Placed
    score: int  # the call won by
    position: int  # in the plan, from 1, among calls that do not start now as well


class Plan(NamedTuple):
    decisions: tuple[Decision, ...] = ()  # calls that start now, in the order they were placed
    starved: bool = False  # some call found no room for its KV


class Dispatcher(Protocol):
    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        """Which of the waiting calls, of which there is at least one, start now."""
        ...


class PredictedFinish:
    """Every waiting call in order takes the pair with the earliest predicted finish in the simulated state.

    A call whose best pair is busy stays in the plan but is not dispatched, so that it is not pushed onto a slow
    instance that merely happens to be free. Planning stops when nothing can start any more.
    With `aware` of prefix caches, a prompt costs less where part of it is believed to be cached.
    """

    def __init__(self, estimator: Estimator, profile: Profile, aware: bool = False) -> None:
        self._estimator = estimator
        self._profile = profile
        self._aware = aware

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        if all(p.prefilling for p in topology.prefill):
            return Plan()

        def state(rows: IntArray) -> SimulatedState:
            batch_us = self._profile.batch_us_max
            return SimulatedState(topology, self._estimator, waiting, rows, now_us, batch_us, self._aware)

        ages, every = waiting.ages(now_us), np.arange(len(waiting))
        if order.projected and len(waiting) <= self._profile.rescored_max:
            return self._rescored(order, ages, state(every))
        finish_us = state(every).finish_us() if order.projected else np.zeros_like(every)
        scores = order.scores(ages, finish_us)
        rows = smallest(scores, self._profile.walked_max)
        return self._sorted(state(rows), scores[rows].tolist())

    def _rescored(self, order: Order, ages: Ages, state: SimulatedState) -> Plan:
        """Score every remaining call anew after each placement: the simulated state has moved."""
        decisions: list[Decision] = []
        count = len(ages.calls)
        gone = np.zeros(count, dtype=bool)
        for position in range(1, min(count, self._profile.walked_max) + 1):
            finish_us = state.finish_us()
            scores = order.scores(ages, finish_us)
            scores[gone | (finish_us >= NEVER_US)] = _LAST
            row = int(scores.argmin())
            score = int(scores[row])
            if score == _LAST:
                return Plan(tuple(decisions), True)
            placed = state.place(row)
            gone[row] = True
            if placed is not None:
                decisions.append(Decision(placed, score, position))
            if not state.any_startable:
                break
        return Plan(tuple(decisions))

    def _sorted(self, state: SimulatedState, scores: list[int]) -> Plan:
        """Place the calls of the state in order; one without room is passed over."""
        decisions: list[Decision] = []
        starved = False
        for r, score in enumerate(scores):
            if not state.feasible(r):
                starved = True
                continue
            placed = state.place(r)
            if placed is not None:
                decisions.append(Decision(placed, score, r + 1))
            if not state.any_startable:
                break
        return Plan(tuple(decisions), starved)


class LeastLoaded:
    """Each call joins the prefill instance with the fewest calls when it becomes ready, and decodes where the
    fewest calls are when its prefill starts: the load balance the paper's baselines seem to use."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._assigned: dict[CallId, str] = {}

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        queues = self._assign(topology, waiting)
        decisions: list[Decision] = []
        starved = False
        scores = order.scores(waiting.ages(now_us), np.full(len(waiting), now_us, dtype=np.int64))
        for i, instance in enumerate(topology.prefill):
            queue = queues[instance.spec.instance_id]
            if not instance.prefilling and queue:
                rows = sorted(queue, key=scores.__getitem__)
                starved |= self._batch(topology, i, waiting, rows, scores, now_us, decisions)
        return Plan(tuple(decisions), starved)

    def _batch(
        self,
        topology: Topology,
        i: int,
        waiting: WaitingCalls,
        rows: list[int],
        scores: IntArray,
        now_us: int,
        decisions: list[Decision],
    ) -> bool:
        """Start the first calls of one instance's queue as a batch. True if the next one found no room."""
        instance = topology.prefill[i]
        nominal_us = waiting.nominal_us(topology)[:, topology.kind_of[i]]
        batch_us = min(self._profile.batch_us_max, int(nominal_us[rows].sum()))
        end_us, extra_us, tokens = now_us, 0, 0
        for row in rows:
            call = waiting.calls[row]
            added_us = int(nominal_us[row]) - (int(topology.floor_us[i]) if tokens else 0)
            full = extra_us + added_us > batch_us or tokens + call.prompt_tokens > instance.spec.max_step_tokens
            if tokens and (full or not batch_us):
                return False
            decode = self._decode(topology, i, call, decisions)
            if decode is None or instance.kv_free_tokens < tokens + call.prompt_tokens:
                return True  # first come first served: nobody overtakes a call that waits for room
            extra_us += added_us if tokens else 0
            end_us, tokens = end_us + added_us, tokens + call.prompt_tokens
            chosen = Candidate(instance.spec.instance_id, decode.spec.instance_id, now_us, end_us, end_us, end_us)
            placed = Placed(call, instance, decode, chosen, (), 0)
            decisions.append(Decision(placed, int(scores[row]), len(decisions) + 1))
            del self._assigned[call.call_id]
        return False

    def _assign(self, topology: Topology, waiting: WaitingCalls) -> dict[str, list[int]]:
        """Rows of the waiting calls by the prefill instance they queue at."""
        queues: dict[str, list[int]] = {p.spec.instance_id: [] for p in topology.prefill}
        fresh: list[int] = []
        for row, call in enumerate(waiting.calls):
            queue = queues.get(self._assigned.get(call.call_id, ""))
            if queue is None:
                fresh.append(row)
            else:
                queue.append(row)
        load = {p.spec.instance_id: len(queues[p.spec.instance_id]) + p.load for p in topology.prefill}
        for row in fresh:
            chosen = self._choose(waiting.calls[row], load)
            self._assigned[waiting.calls[row].call_id] = chosen
            queues[chosen].append(row)
            load[chosen] += 1
        if len(self._assigned) > 2 * len(waiting) + 1_000:  # cancelled calls leave their assignment behind
            self._assigned = {c.call_id: self._assigned[c.call_id] for c in waiting.calls}
        return queues

    def _choose(self, call: Call, load: dict[str, int]) -> str:
        """The prefill instance a call joins, given the calls at each."""
        return min(load, key=load.__getitem__)

    def _decode(self, topology: Topology, i: int, call: Call, decisions: list[Decision]) -> Instance | None:
        """The feasible decode instance with the fewest calls bound."""
        best: tuple[int, Instance] | None = None
        for j, decode in enumerate(topology.decode):
            here = [d.placed.call for d in decisions if d.placed.decode is decode]
            needed = sum(decode.kv_tokens_of(c) for c in (*here, call))
            count = len(decode.decoding) + len(here)
            fits = needed <= decode.kv_free_tokens and count < decode.spec.max_batch
            if topology.pairs[i, j] and fits and (best is None or count < best[0]):
                best = (count, decode)
        return best[1] if best else None
