"""A plan that stops where surely nothing more starts is the plan that goes on to its end."""

import pytest

from hexagent.cli.bench.decisions import items, sized
from hexagent.cli.bench.held_queue import HeldQueue
from hexagent.core.policy.dispatch import Plan
from hexagent.core.policy.order import Order
from hexagent.core.policy.placement import SimulatedState
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.policy.walk import Walk
from hexagent.core.scheduling.ledger import Mixing


class Twice:
    """Plans with and without stopping early."""

    def __init__(self, queue: HeldQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mixing = Mixing.NONE
        self.stopped = self.started = 0
        self._made = queue.core.policy.dispatcher
        self._looks = [(Walk, "none_starts_from"), (SimulatedState, "none_starts")]
        for state, name in self._looks:
            self._count(state, name, monkeypatch)
        self._patch = monkeypatch

    def _count(self, state: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        look = getattr(state, name)

        def looked(*arguments: object) -> bool:
            ends = bool(look(*arguments))
            self.stopped += ends
            return ends

        monkeypatch.setattr(state, name, looked)

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        plan = self._made.plan(order, topology, waiting, now_us)
        with self._patch.context() as patch:
            for state, name in self._looks:
                patch.setattr(state, name, lambda *_: False)
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
