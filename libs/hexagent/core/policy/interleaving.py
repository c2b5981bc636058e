"""Short prompts beside long ones, on engines where prompts advance equally (`EngineProfile.equal_progress`).

Nothing is preempted and no engine takes priorities, but a prompt that is given to a busy engine gets an equal chunk of
each step from the next one on, so that one that is short is done long before the others.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.dispatch import Decision, Dispatcher, Plan
from hexagent.core.policy.earliest import Outlook
from hexagent.core.policy.order import NOT_NOW, IntArray, Order
from hexagent.core.policy.placement import Near, Placed, SimulatedState
from hexagent.core.policy.topology import EXCLUDED_TOKENS, Topology
from hexagent.core.policy.waiting import PROMPT, WaitingCalls
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.scheduling.record import Candidate
from hexagent.core.units import NEVER_US, PPM

SHORTER: Final = 2  # a prompt goes beside others whose end is at least so many times its own time away


class Interleaving:
    """Another dispatcher, and where that starts nothing, one call beside the prompts of a busy prefill instance.

    Of the calls that would be prefilled there earlier than where they can wait for, the first in order.
    """

    def __init__(self, dispatcher: Dispatcher, estimator: Estimator, aware: bool = False) -> None:
        self.mixing = dispatcher.mixing
        self._dispatcher, self._estimator, self._aware = dispatcher, estimator, aware

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        plan = self._dispatcher.plan(order, topology, waiting, now_us)
        if plan.decisions or not topology.interleaves:
            return plan
        outlook = Beside(topology, waiting, now_us, self._aware)
        finish_us = outlook.finish_us(np.arange(len(waiting)))
        nowhere = finish_us >= NEVER_US
        scores = order.scores(waiting.ages(now_us), np.where(nowhere, now_us, finish_us))
        scores = np.where(nowhere, NOT_NOW, scores)
        row = int(scores.argmin())
        if scores[row] == NOT_NOW:
            return plan
        ends_us = outlook.ends_us(np.array([row]))[:, 0].tolist()
        state = BesideState(topology, self._estimator, waiting, row, now_us, self._aware, ends_us)
        return plan._replace(decisions=(Decision(state.placed, int(scores[row]), 1),), again=True)


class Beside(Outlook):
    """Where each call would finish beside the prompts of a busy prefill instance that may take it."""

    def __init__(self, topology: Topology, waiting: WaitingCalls, now_us: int, aware: bool) -> None:
        super().__init__(topology, waiting, now_us, aware)
        self._pairs = topology.pairs & (np.arange(len(topology.decode)) < topology.receivers)

    def finish_us(self, rows: IntArray) -> IntArray:
        return self._over_pairs(rows, self._leave_us(rows, self.ends_us(rows)))

    def ends_us(self, rows: IntArray) -> IntArray:
        """When each prompt would be computed on each of P, (P, calls); `NEVER_US` = it may not go there."""
        alone_us, senders = self._alone_us(rows), self.topology.senders
        waited_us = self._free_us[:, None] + alone_us
        waited_us[self._pinned(rows) >= EXCLUDED_TOKENS] = NEVER_US
        first_us = np.minimum.reduce(waited_us[:senders])
        ends_us = np.full_like(alone_us, NEVER_US)
        for i, instance in enumerate(self.topology.prefill[:senders]):
            left_us = instance.prefill_free_us - self._now_us
            if instance.profile.equal_progress and instance.prefilling and left_us > 0:
                may = np.flatnonzero((alone_us[i] * SHORTER <= left_us) & (alone_us[i] <= instance.spare_us))
                ends_us[i, may] = self._beside_us(rows[may], i, instance)
        return np.where(ends_us < first_us, ends_us, NEVER_US)

    def _beside_us(self, rows: IntArray, i: int, instance: Instance) -> IntArray:
        """When prompts would be computed there, the step under way half over."""
        others, tokens = instance.prefilling.values(), instance.spec.max_step_tokens
        longest = max(tokens, *(a.call.prompt_tokens - a.cached_tokens for a in others))
        step_us = instance.table.prefill_us(longest) * self.topology.books.speeds[i] // PPM * tokens // longest
        new_tokens = self.waiting.columns[rows, PROMPT]
        if self._hits is not None:
            found = [self._hits.found[row].tokens_on(i) for row in rows.tolist()]
            new_tokens = new_tokens - np.array(found, dtype=np.int64)
        steps = -(-new_tokens // max(tokens // (len(others) + 1), 1))
        end_us: IntArray = self._now_us + step_us // 2 + steps * step_us
        return end_us


class BesideState(SimulatedState):
    """The same of one call, with where it goes; `ends_us` says when its prompt would be computed on each of P."""

    def __init__(
        self,
        topology: Topology,
        estimator: Estimator,
        waiting: WaitingCalls,
        row: int,
        now_us: int,
        aware: bool,
        ends_us: list[int],
    ) -> None:
        super().__init__(topology, estimator, waiting, [row], now_us, 0, aware)
        self._ends_us = ends_us
        self._by_step = [[entry for entry in entries if entry[1] < topology.receivers] for entries in self._by_step]

    @property
    def placed(self) -> Placed:
        placed = self._placed(0)
        return placed._replace(beside_us=self._alone_us(0, self._topology.prefill.index(placed.prefill)))

    def _soonest(
        self, r: int, count: int, weights_milli: Sequence[int] = (), lightest_milli: Sequence[int] = ()
    ) -> Near:
        places = [i for i, end_us in enumerate(self._ends_us) if end_us < NEVER_US and self._may_prefill(r, i)]
        return sorted([(self._leave_us(self._ends_us[i], i), i) for i in places])[:count]

    def _own_us(self, r: int, i: int) -> int:
        j = self._topology.homes[i]
        return self._ends_us[i] + self._decode_us(r, j) if j < self._topology.receivers else NEVER_US

    def _candidate(self, r: int, i: int, j: int, cost_us: int) -> Candidate:
        candidate = super()._candidate(r, i, j, cost_us)
        return candidate._replace(prefill_start_us=self._now_us, prefill_end_us=self._ends_us[i])
