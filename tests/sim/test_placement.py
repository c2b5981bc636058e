"""Looking at few instances for each call is looking at all of them, to the record's last candidate."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hexagent.cli.bench.decisions import items, sized
from hexagent.cli.bench.held_queue import HeldQueue
from hexagent.core.estimate.snapshot import LinkFit, Snapshot, SpeedFactor
from hexagent.core.instance.spec import Lora
from hexagent.core.policy import dispatch, keeping
from hexagent.core.policy.dispatch import Plan, PredictedFinish
from hexagent.core.policy.interleaving import Interleaving
from hexagent.core.policy.keeping import KeepingState
from hexagent.core.policy.order import Order
from hexagent.core.policy.placement import Near, Pairs, SimulatedState
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Record
from hexagent.core.units import MILLI, NEVER_US, PPM
from hexagent.core.workflow.events import NodesRevealed, WorkflowStarted
from hexagent.core.workflow.model import CallSpec, NodeKind, NodeSpec, WorkflowSpec
from hexagent.sim.experiment.cell import Cell, cluster_of, conditions_of, workload_of
from hexagent.sim.world import World
from tests.sim.cases import MODEL


class All(SimulatedState):
    """Looks at all instances, and goes through every plan to its end."""

    def none_starts(self, rs: Sequence[int], before: Sequence[int]) -> bool:
        return False

    def _soonest(
        self, r: int, count: int, weights_milli: Sequence[int] = (), lightest_milli: Sequence[int] = ()
    ) -> Near:
        topology, near = self._topology, []
        weights_milli = weights_milli or [0] * len(topology.prefill)
        for i in range(topology.senders):
            if self._may_prefill(r, i):
                leave_us = self._leave_us(self._free_us[i] + self._added_us(r, i), i)
                near.append((leave_us + self._alone_us(r, i) * weights_milli[i] // MILLI, i))
        return sorted(near)[:count]

    def _finish_of(self, r: int) -> int:
        self._told_at[r] = -1
        return super()._finish_of(r)

    def _first_moved(self, r: int, leave_us: int) -> tuple[int, int]:
        return min([(self._decoded_us(r, leave_us, j), j) for j in range(self._topology.receivers)])

    def _decoded_us(self, r: int, leave_us: int, j: int) -> int:
        """Finish on D, but for the transfer, of call r whose KV leaves then; `NEVER_US` where it has no room."""
        if not self._may_decode(r, j):
            return NEVER_US
        wait_us = min(max(self._ingress_free_us[j] - leave_us, 0), self._ingress_busy_us[j])
        return leave_us + wait_us + self._decode_us(r, j)

    def _pairs(self, r: int, near: Near, count: int) -> Pairs:
        topology, pairs = self._topology, []
        for place, (leave_us, i) in enumerate(near):
            for j in range(len(topology.decode)):
                finish_us = NEVER_US
                if topology.homes[i] == j and self._may_decode(r, j):
                    finish_us = self._own_us(r, i)
                elif topology.takes[i][j]:
                    finish_us = self._decoded_us(r, leave_us, j) + self._move_us(r, i, j)
                pairs.append((finish_us + self._stall_us(r, i), place, j))
        return [pair for pair in sorted(pairs)[:count] if pair[0] < NEVER_US]


class AllKeeping(All, KeepingState):
    def _own(self, r: int, count: int, weights_milli: Sequence[int]) -> Near:
        near = []
        for i, j in enumerate(self._topology.homes):
            if j >= 0 and self._may_decode(r, j):
                near.append((self._own_us(r, i) + self._alone_us(r, i) * weights_milli[i] // MILLI, i))
        return [entry for entry in sorted(near)[:count] if entry[0] < NEVER_US]


class Twice:
    """Plans looking at few instances, and one of `every` so many also at all."""

    def __init__(self, core: SchedulerCore, patch: pytest.MonkeyPatch, every: int = 1) -> None:
        self.started = self._plans = 0
        self._every = every
        self._made, self._patch = core.policy.dispatcher, patch
        self.mixing = self._made.mixing
        core.policy = core.policy._replace(dispatcher=self)

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        plan = self._made.plan(order, topology, waiting, now_us)
        self.started += len(plan.decisions)
        self._plans += 1
        if self._plans % self._every:
            return plan
        with self._patch.context() as patch:
            patch.setattr(dispatch, "SimulatedState", All)
            patch.setattr(keeping, "KeepingState", AllKeeping)
            assert plan == self._made.plan(order, topology, waiting, now_us)
            self._look_ahead(topology, waiting, now_us)
        return plan

    def _look_ahead(self, topology: Topology, waiting: WaitingCalls, now_us: int) -> None:
        """What arrays say of calls before any is placed."""
        assert isinstance(self._made, Interleaving)
        made, every = self._made._dispatcher, range(len(waiting))
        assert isinstance(made, PredictedFinish)
        outlook = made._outlook(topology, waiting, now_us)
        finish_us = made._state(topology, waiting, every, now_us).finish_us(every)
        assert np.minimum(outlook.finish_us(np.array(every)), NEVER_US).tolist() == finish_us.tolist()
        bounds_us = outlook.bounds_us()
        if bounds_us is not None:
            assert (bounds_us[0] <= finish_us).all()
            assert (finish_us <= bounds_us[1]).all()


def learned(queue: HeldQueue) -> Snapshot:
    """Of every second instance a speed, of some pairs a link."""
    names = list(queue.core.ledger.instances)
    speeds = [
        SpeedFactor(name, 850_000 + 29_000 * (n % 13), 1_200_000 - 31_000 * (n % 11), 9) for n, name in enumerate(names)
    ]
    pairs = [(source, target) for source in names if "prefill" in source for target in names if "decode" in target]
    links = [
        LinkFit(*pair, 4_000 + 700 * (n % 7), PPM + 40_000 * (n % 9), 0, 9) for n, pair in enumerate(pairs) if n % 3
    ]
    return Snapshot(1, 0, speeds=tuple(speeds[::2]), links=tuple(links))


@pytest.mark.parametrize("tell", [lambda _: Snapshot(0, 0), learned], ids=["tables", "learned"])
@pytest.mark.parametrize(
    ("policy", "world", "ready_calls"),
    [
        ("fcfs", "policy-only", 150),
        ("hexagent", "policy-only", 40),
        ("hexagent", "policy-only", 150),
        ("hexagent:cache-aware", "full", 80),
        ("hexagent-plus", "full", 20),
        ("hexagent-plus", "full", 70),
    ],
)
def test_plans_of_a_full_cluster_are_the_same(
    policy: str, world: str, ready_calls: int, tell: Callable[[HeldQueue], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = HeldQueue(sized(40 if world == "policy-only" else 20, world), policy, items(3), ready_calls)
    queue.core.handle(tell(queue), 0)
    twice = Twice(queue.core, monkeypatch, every=1 if world == "policy-only" else 5)
    queue.decide(6)
    assert twice.started > 6


def test_plans_are_the_same_where_a_prefill_should_end_this_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its instance, which is still busy, is free as early as the idle ones of its kind, all of later places."""
    core = HeldQueue(sized(20), "fcfs", items(3), 0).core
    twice = Twice(core, monkeypatch)
    core.handle(WorkflowStarted(WorkflowSpec("w", "default", "burst"), 0), 0)
    first, *others = [
        NodeSpec(f"c{n}", NodeKind.CALL, "worker", (), call=CallSpec(MODEL, (), 4_000 + 100 * n, 200))
        for n in range(40)
    ]
    [record] = [e.record for e in core.handle(NodesRevealed("w", (first,), 0), 0) if isinstance(e, Record)]
    end_us = record.chosen.prefill_end_us
    core.handle(NodesRevealed("w", tuple(others), end_us), end_us)
    assert twice.started > 5


@pytest.mark.parametrize("policy", ["fcfs", "hexagent"])
def test_plans_are_the_same_where_calls_may_not_run_everywhere(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = sized(20)
    able = [s._replace(loras=(Lora("sql", 16),)) if n % 3 else s for n, s in enumerate(cluster.instances)]
    core = HeldQueue(cluster._replace(instances=tuple(able)), policy, items(3), 0).core
    twice = Twice(core, monkeypatch)
    core.handle(WorkflowStarted(WorkflowSpec("w", "default", "burst"), 0), 0)
    calls = [CallSpec(MODEL, (), 4_000 + 100 * n, 200, "" if n % 3 else "sql") for n in range(100)]
    nodes = [NodeSpec(f"c{n}", NodeKind.CALL, "worker", (), call=call) for n, call in enumerate(calls)]
    core.handle(NodesRevealed("w", tuple(nodes), 0), 0)
    assert twice.started > 5


@pytest.mark.parametrize(
    ("policy", "profile"),
    [("fcfs", "trtllm-1.2.1"), ("hexagent:cache-aware", "push"), ("hexagent-plus", "trtllm-1.2.1")],
)
def test_plans_are_the_same_where_prompts_are_cached_and_room_is_short(
    policy: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(MODEL, "mini", "bfcl", workflows=20, world="full", engine_profile=profile, load=20)
    world = World(cluster_of(cell), workload_of(cell, 3), policy, 3, conditions=conditions_of(cell))
    twice = Twice(world.scheduler, monkeypatch)
    world.run()
    assert twice.started > 150
