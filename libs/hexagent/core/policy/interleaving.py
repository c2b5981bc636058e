"""Short prompts beside long ones, on engines where prompts advance equally (`EngineProfile.equal_progress`).

Nothing is preempted and no engine takes priorities, but a prompt that is given to a busy engine gets an equal chunk of
each step from the next one on, so that one that is short is done long before the others.
"""

from typing import Final

import numpy as np

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.dispatch import Decision, Dispatcher, Plan
from hexagent.core.policy.order import NOT_NOW, IntArray, Order
from hexagent.core.policy.placement import Placed, SimulatedState, begins_us
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
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
        state = InterleavedState(topology, self._estimator, waiting, now_us, self._aware)
        finish_us = state.finish_us()
        nowhere = finish_us >= NEVER_US
        scores = order.scores(waiting.ages(now_us), np.where(nowhere, now_us, finish_us))
        scores[nowhere] = NOT_NOW
        row = int(scores.argmin())
        placed = state.place(row, last=True) if scores[row] < NOT_NOW else None
        return plan._replace(decisions=(Decision(placed, int(scores[row]), 1),), again=True) if placed else plan


class InterleavedState(SimulatedState):
    """Where each call would finish beside the prompts of each busy prefill instance that may take it."""

    def __init__(
        self, topology: Topology, estimator: Estimator, waiting: WaitingCalls, now_us: int, aware: bool
    ) -> None:
        super().__init__(topology, estimator, waiting, np.arange(len(waiting)), now_us, 0, aware)
        self._now_us = now_us
        waited_us = np.minimum.reduce(self._end_us[: topology.senders])
        self._end_us = np.stack([self._beside_us(i, instance) for i, instance in enumerate(topology.prefill)])
        self._end_us[topology.senders :] = NEVER_US
        self._end_us[self._end_us >= waited_us] = NEVER_US
        egress = np.array(self._egress).T[:, :, None]
        self._leave_us = np.where(self._leave_us < NEVER_US, begins_us(self._end_us, *egress), NEVER_US)
        self._decode_us[topology.receivers :] = NEVER_US
        self._idle = [1] * len(topology.prefill)

    def _beside_us(self, i: int, instance: Instance) -> IntArray:
        """When each prompt would be computed on P; `NEVER_US` = it may not go there."""
        others, left_us = list(instance.prefilling.values()), instance.prefill_free_us - self._now_us
        if not instance.profile.equal_progress or not others or left_us <= 0:
            return np.full(len(self._rows), NEVER_US)
        alone_us = self._alone_us[i]
        tokens = instance.spec.max_step_tokens
        longest = max(tokens, *(a.call.prompt_tokens - a.cached_tokens for a in others))
        step_us = instance.table.prefill_us(longest) * self._topology.books.speeds[i] // PPM * tokens // longest
        steps = -(-self._new_tokens(i) // max(tokens // (len(others) + 1), 1))
        end_us = self._now_us + step_us // 2 + steps * step_us  # behind the step that is half over
        may = (alone_us * SHORTER <= left_us) & (alone_us <= instance.spare_us)
        return np.where(may, end_us, NEVER_US)

    def _candidate(self, r: int, i: int, j: int, finish_us: int) -> Candidate:
        candidate = super()._candidate(r, i, j, finish_us)
        return candidate._replace(prefill_start_us=self._now_us, prefill_end_us=int(self._end_us[i, r]))

    def place(self, r: int, last: bool) -> Placed | None:
        placed = super().place(r, last)
        if placed is None:
            return None
        i = self._topology.prefill.index(placed.prefill)
        return placed._replace(beside_us=int(self._alone_us[i, r]))
