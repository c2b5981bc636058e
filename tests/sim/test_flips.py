"""Simulated instances get the other role: their calls end first, the change takes what it is said to."""

import pytest

from hexagent.core.instance.spec import FLIPPED, FlipWay, Role, RoleFlip
from hexagent.core.scheduling.events import InstanceDown, InstanceUp, SchedulerEvent
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.units import US_PER_S
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import RunResult, World

ASKED_US = US_PER_S
OPTIONS = Options(workflows=40, rate_per_s=20, seed=5)
CHANGED = {"prefill-h200-0": Role.DECODE, "decode-h100-0": Role.PREFILL}


def flipped(
    policy: str, flip: RoleFlip, name: str = "bfcl", options: Options = OPTIONS, back_us: int = 0
) -> tuple[RunResult, list[tuple[SchedulerEvent | DecisionRecord, int]]]:
    """A run in which one instance of each role gets the other one, and at `back_us` is given its own; and what its
    scheduler journals."""
    journal: list[tuple[SchedulerEvent | DecisionRecord, int]] = []
    cluster = named_cluster("mixed-3", prefix_cache=True)
    cluster = cluster._replace(instances=tuple(spec._replace(flip=flip) for spec in cluster.instances))
    world = World(
        cluster, generate(name, options), policy, 5, journal=lambda entry, now_us: journal.append((entry, now_us))
    )
    for instance_id, role in CHANGED.items():
        world.schedule(ASKED_US, world.flip, instance_id, role)
        if back_us:
            world.schedule(back_us, world.flip, instance_id, FLIPPED[role])
    return world.run(), journal


@pytest.mark.parametrize("policy", ["fcfs", "atlas", "hexagent-plus"])
def test_every_workflow_completes_and_calls_come_in_the_new_role(policy: str) -> None:
    result, journal = flipped(policy, RoleFlip(FlipWay.RESTART, US_PER_S))
    assert all(row.completed for row in result.rows)
    changed_us: dict[str, int] = {}
    down_us: dict[str, int] = {}
    used: set[str] = set()
    for entry, now_us in journal:
        if isinstance(entry, InstanceDown):
            down_us[entry.instance_id] = entry.at_us
        elif isinstance(entry, InstanceUp) and now_us:
            changed_us[entry.spec.instance_id] = entry.at_us
            assert entry.spec.role is CHANGED[entry.spec.instance_id]
        elif isinstance(entry, DecisionRecord):
            places = {entry.chosen.prefill_instance, entry.chosen.decode_instance}
            if now_us >= ASKED_US:
                used |= places & set(CHANGED)
                assert used <= set(changed_us)
    assert set(changed_us) == set(down_us) == used == set(CHANGED)
    assert all(changed_us[name] - down_us[name] == US_PER_S for name in CHANGED)


def test_an_engine_that_mixes_is_never_down() -> None:
    _, journal = flipped("hexagent-plus", RoleFlip(FlipWay.MIX, 0))
    changes = [entry for entry, now_us in journal if isinstance(entry, InstanceUp) and now_us]
    assert {change.spec.instance_id for change in changes} == set(CHANGED)
    assert not [entry for entry, _ in journal if isinstance(entry, InstanceDown)]


def test_a_change_that_is_taken_back_while_it_goes_on_loses_no_call() -> None:
    options = Options(workflows=60, rate_per_s=10, seed=5)
    result, journal = flipped("fcfs", RoleFlip(FlipWay.RESTART, 4 * US_PER_S), "sharegpt", options, 3 * US_PER_S)
    assert all(row.completed for row in result.rows)
    ups = [e.spec for e, now_us in journal if isinstance(e, InstanceUp) and now_us]
    assert [spec.role for spec in ups if spec.instance_id == "prefill-h200-0"] == [Role.DECODE, *[Role.PREFILL] * 2]
    assert {e.ticket.attempt for e, _ in journal if isinstance(e, DecisionRecord)} == {1}
