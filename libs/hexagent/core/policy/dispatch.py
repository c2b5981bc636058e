"""Dispatchers: given an order, which waiting calls start now, and where."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.instance.needs import serves
from hexagent.core.policy.books import IDLE
from hexagent.core.policy.earliest import Foremost, Outlook, foremost, smallest
from hexagent.core.policy.hits import Found, Hits
from hexagent.core.policy.order import NOT_NOW, Ages, Order
from hexagent.core.policy.placement import Placed, SimulatedState
from hexagent.core.policy.profile import Profile
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance, Mixing
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import NEVER_US

_LOOK_EVERY: Final = 8  # placements after which a plan that starts nothing is looked at for whether it will


class Decision(NamedTuple):
    placed: Placed
    score: int  # the call won by
    position: int  # in the plan, from 1, among calls that do not start now as well


class Plan(NamedTuple):
    decisions: tuple[Decision, ...] = ()  # calls that start now, in the order they were placed
    starved: bool = False  # some call found no room for its KV
    again: bool = False  # a further plan may start more


class Dispatcher(Protocol):
    mixing: Mixing  # which instances it sees as both prefill and decode instances

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        """Which of the waiting calls, of which there is at least one, start now."""
        ...


class PredictedFinish:
    """Every waiting call in order takes the pair with the earliest predicted finish in the simulated state.

    A call whose best pair is busy stays in the plan but is not dispatched, so that it is not pushed onto a slow
    instance that merely happens to be free. Planning stops when nothing can start any more, or surely nothing will.
    With `aware` of prefix caches, a prompt costs less where part of it is believed to be cached.
    """

    mixing = Mixing.NONE

    def __init__(self, estimator: Estimator, profile: Profile, aware: bool = False) -> None:
        self._estimator = estimator
        self._profile = profile
        self._aware = aware

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        if not np.count_nonzero(topology.books.prefill[IDLE]):
            return Plan()

        ages = self._ages(topology, waiting, now_us)
        if order.projected and len(waiting) <= self._profile.rescored_max:
            return self._rescored(order, ages, self._state(topology, waiting, range(len(waiting)), now_us))
        first = self._first(order, ages, topology, waiting, now_us)
        rows = first.rows[first.scores < NOT_NOW].tolist()
        if not rows:
            return Plan(starved=first.starved)
        return self._sorted(self._state(topology, waiting, rows, now_us), first)

    def _first(self, order: Order, ages: Ages, topology: Topology, waiting: WaitingCalls, now_us: int) -> Foremost:
        """The first calls of a long queue."""
        count = self._profile.walked_max
        if order.projected:
            return foremost(order, ages, self._outlook(topology, waiting, now_us), count)
        scores = order.scores(ages, np.zeros(len(waiting), dtype=np.int64))
        rows = smallest(scores, count)
        return Foremost(rows, scores[rows])

    def _ages(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> Ages:
        return waiting.ages(now_us)

    def _outlook(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> Outlook:
        return Outlook(topology, waiting, now_us, self._aware)

    def _state(self, topology: Topology, waiting: WaitingCalls, rows: Sequence[int], now_us: int) -> SimulatedState:
        batch_us = self._profile.batch_us_max
        return SimulatedState(topology, self._estimator, waiting, rows, now_us, batch_us, self._aware)

    def _rescored(self, order: Order, ages: Ages, state: SimulatedState) -> Plan:
        """Score every remaining call anew after each placement: the simulated state has moved."""
        decisions: list[Decision] = []
        left = list(range(len(ages.calls)))
        gone = np.zeros(len(left), dtype=bool)
        most = min(len(left), self._profile.walked_max)
        for position in range(1, most + 1):
            finish_us = state.finish_us(left)
            scores = order.scores(ages, finish_us)
            nowhere = finish_us >= NEVER_US
            scores[gone | nowhere] = NOT_NOW
            row = int(scores.argmin())
            score = int(scores[row])
            if score == NOT_NOW:
                return Plan(tuple(decisions), bool(nowhere[~gone].any()))
            placed = state.place(row, position == most)
            gone[row] = True
            left.remove(row)
            if placed is not None:
                decisions.append(Decision(placed, score, position))
            if position == most or not state.any_startable:
                break
            if (placed or position % _LOOK_EVERY == 1) and state.none_starts(left, [most - position - 1] * len(left)):
                break
        return Plan(tuple(decisions))

    def _sorted(self, state: SimulatedState, first: Foremost) -> Plan:
        """Place the calls of the state in order; one without room is passed over."""
        decisions: list[Decision] = []
        starved, last = first.starved, len(state.calls) - 1
        for r, score in enumerate(first.scores[: len(state.calls)].tolist()):
            if not state.feasible(r):
                starved = True
                continue
            placed = state.place(r, r == last)
            if placed is not None:
                decisions.append(Decision(placed, score, r + 1))
            if r == last or not state.any_startable:
                break
            if (placed or r % _LOOK_EVERY == 0) and state.none_starts(range(r + 1, last + 1), range(last - r)):
                break
        return Plan(tuple(decisions), starved)


class PrefillWork(NamedTuple):
    """Of a call on one instance."""

    call: Call
    new_tokens: int  # to be computed
    nominal_us: int  # table time of that, alone


class Queued(NamedTuple):
    """Where a waiting call queues, and the load it is there."""

    instance_id: str
    load: int


class LeastLoaded:
    """Each call joins the prefill instance with the fewest calls when it becomes ready, and decodes where the
    fewest calls are when its prefill starts: the load balance the paper's baselines seem to use.

    `aware` of prefix caches, batches are as large as what is left to compute allows.
    """

    mixing = Mixing.NONE

    def __init__(self, profile: Profile, aware: bool = False) -> None:
        self._profile = profile
        self._aware = aware
        self._assigned: defaultdict[str, dict[CallId, Queued]] = defaultdict(dict)  # by model

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        hits = waiting.hits(topology) if self._aware else None
        queues = self._assign(topology, waiting, hits)
        decisions: list[Decision] = []
        starved = False
        scores = order.scores(waiting.ages(now_us), np.full(len(waiting), now_us, dtype=np.int64))
        for i, instance in enumerate(topology.prefill):
            queue = queues[instance.spec.instance_id]
            if not instance.prefilling and queue:
                rows = sorted([row for row in queue if scores[row] < NOT_NOW], key=scores.__getitem__)
                work = [self._work(topology, i, waiting.calls[row], waiting.found(row, topology, hits)) for row in rows]
                starved |= self._batch(topology, i, work, scores[rows].tolist(), now_us, decisions)
        return Plan(tuple(decisions), starved)

    def _work(self, topology: Topology, i: int, call: Call, found: Found) -> PrefillWork:
        nominal_us = found.others_us.get(i, found.nominal_us[topology.books.kinds[i]])
        return PrefillWork(call, call.prompt_tokens - found.tokens_on(i), nominal_us)

    def _batch(
        self,
        topology: Topology,
        i: int,
        queue: list[PrefillWork],
        scores: list[int],
        now_us: int,
        decisions: list[Decision],
    ) -> bool:
        """Start the first calls of one instance's queue as a batch. True if the next one found no room."""
        instance = topology.prefill[i]
        batch_us = min(self._profile.batch_us_max, sum([work.nominal_us for work in queue]))
        end_us, extra_us, tokens, kv_tokens = now_us, 0, 0, 0
        for (call, new_tokens, nominal_us), score in zip(queue, scores, strict=True):
            added_us = nominal_us - (int(topology.floor_us[i]) if tokens else 0)
            full = extra_us + added_us > batch_us or tokens + new_tokens > instance.spec.max_step_tokens
            if tokens and (full or not batch_us):
                return False
            decode = self._decode(topology, i, call, decisions)
            if decode is None or instance.kv_free_tokens < kv_tokens + call.prompt_tokens:
                return True  # first come first served: nobody overtakes a call that waits for room
            extra_us += added_us if tokens else 0
            end_us, tokens = end_us + added_us, tokens + new_tokens
            kv_tokens += call.prompt_tokens
            chosen = Candidate(instance.spec.instance_id, decode.spec.instance_id, now_us, end_us, end_us, end_us)
            placed = Placed(call, instance, decode, chosen, (), added_us if decode is instance else 0)
            decisions.append(Decision(placed, score, len(decisions) + 1))
            del self._assigned[call.model][call.call_id]
        return False

    def _assign(self, topology: Topology, waiting: WaitingCalls, hits: Hits | None) -> dict[str, list[int]]:
        """Rows of the waiting calls by the prefill instance they queue at; at none where none can run them."""
        queues: dict[str, list[int]] = {p.spec.instance_id: [] for p in topology.prefill}
        load = {p.spec.instance_id: self._load(p) for p in topology.prefill}
        fresh: list[int] = []
        assigned = self._assigned[waiting.calls[0].model]
        for row, call in enumerate(waiting.calls):
            queued = assigned.get(call.call_id)
            if queued is None or queued.instance_id not in topology.able(call.needs):
                fresh.append(row)
            else:
                queues[queued.instance_id].append(row)
                load[queued.instance_id] += queued.load
        for row in fresh:
            call = waiting.calls[row]
            able = topology.able(call.needs)
            if not able:
                continue
            found = waiting.found(row, topology, hits)
            new_tokens = {p: call.prompt_tokens - found.tokens_on(i) for i, p in enumerate(load)}
            chosen = self._choose(call, topology, {p: load[p] for p in able}, new_tokens)
            added = self._added(call, new_tokens[chosen])
            assigned[call.call_id] = Queued(chosen, added)
            queues[chosen].append(row)
            load[chosen] += added
        if len(assigned) > 2 * len(waiting) + 1_000:  # cancelled calls leave their assignment behind
            wait = {call.call_id for call in waiting.calls}
            self._assigned[waiting.calls[0].model] = {c: queued for c, queued in assigned.items() if c in wait}
        return queues

    def _load(self, instance: Instance) -> int:
        """What was dispatched to a prefill instance and is not done."""
        return instance.load

    def _added(self, call: Call, new_tokens: int) -> int:
        """What the call adds to the load of an instance that must compute `new_tokens` of its prompt."""
        return 1

    def _choose(self, call: Call, topology: Topology, load: dict[str, int], new_tokens: dict[str, int]) -> str:
        """The prefill instance a call joins, given the load of each that can run it, of which there is one at least,
        and the tokens it would compute on each of P."""
        return min(load, key=lambda p: load[p] + self._added(call, new_tokens[p]))

    def _decode(self, topology: Topology, i: int, call: Call, decisions: list[Decision]) -> Instance | None:
        """The feasible decode instance with the least load."""
        best: tuple[int, Instance] | None = None
        for j, decode in enumerate(topology.decode):
            here = [d.placed.call for d in decisions if d.placed.decode is decode]
            needed = sum(decode.kv_tokens_of(c) for c in (*here, call))
            fits = needed <= decode.kv_free_tokens and len(decode.decoding) + len(here) < decode.spec.max_batch
            if topology.pairs[i, j] and fits and serves(decode.spec, call.needs):
                load = self._decode_load(decode, call, here)
                if best is None or load < best[0]:
                    best = (load, decode)
        return best[1] if best else None

    def _decode_load(self, decode: Instance, call: Call, here: list[Call]) -> int:
        """Load of a decode instance that `call` may join, `here` being those that join it in this plan."""
        return len(decode.decoding) + len(here)
