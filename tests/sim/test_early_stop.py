"""A plan that stops where surely nothing more starts is the plan that goes on to its end."""

from collections.abc import Sequence

import pytest

from hexagent.cli.bench.decisions import items, sized
from hexagent.cli.bench.held_queue import HeldQueue
from hexagent.core.policy.dispatch import Plan
from hexagent.core.policy.order import Order
from hexagent.core.policy.placement import SimulatedState
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.ledger import Mixing


class Twice:
    """Plans with and without stopping early."""

    def __init__(self, queue: HeldQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mixing = Mixing.NONE
        self.stopped = self.started = 0
        self._made = queue.core.policy.dispatcher
        self._patch = monkeypatch
        look = SimulatedState.none_starts

        def looked(state: SimulatedState, rs: Sequence[int], before: Sequence[int]) -> bool:
            ends = look(state, rs, before)
            self.stopped += ends
            return ends

        monkeypatch.setattr(SimulatedState, "none_starts", looked)

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        plan = self._made.plan(order, topology, waiting, now_us)
        with self._patch.context() as patch:
            patch.setattr(SimulatedState, "none_starts", lambda *_: False)
            assert plan == self._made.plan(order, topology, waiting, now_us)
        self.started += len(plan.decisions)
        return plan


@pytest.mark.parametrize(("policy", "ready_calls"), [("fcfs", 200), ("hexagent", 200), ("hexagent", 30)])
def test_nothing_starts_behind_an_early_stop(policy: str, ready_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = HeldQueue(sized(100), policy, items(2), ready_calls)
    twice = Twice(queue, monkeypatch)
    queue.core.policy = queue.core.policy._replace(dispatcher=twice)
    queue.decide(60)
    assert twice.stopped > 5
    assert twice.started > 30
