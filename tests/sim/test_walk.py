"""Placing calls with plain numbers is placing them with arrays of all instances, to the record's last candidate."""

from collections.abc import Callable

import pytest

from hexagent.cli.bench.decisions import items, sized
from hexagent.cli.bench.held_queue import HeldQueue
from hexagent.core.estimate.snapshot import LinkFit, Snapshot, SpeedFactor
from hexagent.core.instance.spec import Lora
from hexagent.core.policy.dispatch import Plan, PredictedFinish
from hexagent.core.policy.order import Order
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Record
from hexagent.core.scheduling.ledger import Mixing
from hexagent.core.units import PPM
from hexagent.core.workflow.events import NodesRevealed, WorkflowStarted
from hexagent.core.workflow.model import CallSpec, NodeKind, NodeSpec, WorkflowSpec
from hexagent.sim.experiment.cell import Cell, cluster_of, conditions_of, workload_of
from hexagent.sim.world import World

MODEL = "llama-3.1-70b"


class Twice:
    """Plans with plain numbers and with arrays."""

    mixing = Mixing.NONE

    def __init__(self, core: SchedulerCore, patch: pytest.MonkeyPatch) -> None:
        self.started = 0
        self._made, self._patch = core.policy.dispatcher, patch
        core.policy = core.policy._replace(dispatcher=self)

    def plan(self, order: Order, topology: Topology, waiting: WaitingCalls, now_us: int) -> Plan:
        plan = self._made.plan(order, topology, waiting, now_us)
        with self._patch.context() as patch:
            patch.setattr(PredictedFinish, "_walk", PredictedFinish._state)
            assert plan == self._made.plan(order, topology, waiting, now_us)
        self.started += len(plan.decisions)
        return plan


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
@pytest.mark.parametrize("policy", ["fcfs", "hexagent"])
def test_plans_of_a_full_cluster_are_the_same(
    policy: str, tell: Callable[[HeldQueue], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = HeldQueue(sized(40), policy, items(3), 150)
    queue.core.handle(tell(queue), 0)
    twice = Twice(queue.core, monkeypatch)
    queue.decide(40)
    assert twice.started > 40


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


@pytest.mark.parametrize("profile", ["trtllm-1.2.1", "push"])
def test_plans_are_the_same_where_prompts_are_cached_and_room_is_short(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(MODEL, "mini", "bfcl", workflows=20, world="full", engine_profile=profile, load=20)
    world = World(cluster_of(cell), workload_of(cell, 3), "fcfs", 3, conditions=conditions_of(cell))
    twice = Twice(world.scheduler, monkeypatch)
    world.run()
    assert twice.started > 150
