"""Of a long queue the earliest finish by arrays is the one of the simulated state."""

import numpy as np
import pytest

from hexagent.core.estimate.snapshot import SpeedFactor
from hexagent.core.policy.earliest import Outlook, foremost, smallest, unbeaten
from hexagent.core.policy.hexagent import Hexagent
from hexagent.core.policy.placement import SimulatedState
from hexagent.core.policy.topology import Topology
from hexagent.core.units import PPM
from tests.sim.cases import MODEL, Desk, decodes, prefills

GPUS = ("a100", "h100", "h200") * 4


def test_the_earliest_finish_is_that_of_the_simulated_state() -> None:
    desk = Desk(prefills(*GPUS) + decodes(*GPUS))
    desk.learn(
        *[SpeedFactor(f"{side}{n}", 800_000 + 41_000 * n, 900_000 + 37_000 * n, 9) for side in "pd" for n in range(12)]
    )
    for number in range(120):
        desk.start(f"w{number}")
        desk.reveal(
            f"w{number}", "n", now_us=number * 1_000, prompt=300 + number * 61 % 4_000, expected=1 + number * 13 % 300
        )
    now_us = 500_000  # by then some predictions are overdue, some are not
    waiting = desk.core.waiting[MODEL]
    topology = Topology(*desk.core.ledger.pool(MODEL), desk.core.estimator)
    topology.update(())
    every, outlook = np.arange(len(waiting)), Outlook(topology, waiting, now_us, aware=False)
    state = SimulatedState(topology, desk.core.estimator, waiting, range(len(waiting)), now_us, 0)
    earliest_us = outlook.finish_us(every)
    assert len(waiting) > 50
    assert earliest_us.tolist() == state.finish_us(range(len(waiting))).tolist()
    ages, order = waiting.ages(now_us), Hexagent()
    scores = order.scores(ages, earliest_us)
    first = foremost(order, ages, outlook, 20)
    assert first.rows.tolist() == smallest(scores, 20).tolist()
    assert first.scores.tolist() == sorted(scores.tolist())[:20]


@pytest.mark.parametrize("seed", range(100))
def test_no_instance_is_passed_over_that_is_the_best_for_some_call(seed: int) -> None:
    """Milliseconds: idle and busy instances, each with KV of earlier calls still to send."""
    rng = np.random.default_rng(seed)
    speed_ppm, free_us = rng.integers(800_000, 1_300_000, 12), rng.integers(0, 2, 12) * rng.integers(0, 500, 12)
    egress_us = free_us + rng.integers(0, 200, 12)
    leave_us = np.maximum(np.arange(10, 600)[:, None] * speed_ppm // PPM + free_us, egress_us)
    kept = unbeaten(speed_ppm, free_us, egress_us)
    assert leave_us[:, kept].min(axis=1).tolist() == leave_us.min(axis=1).tolist()


def test_there_are_no_bounds_where_room_decides() -> None:
    for specs in (prefills("h100") + decodes("h100", kv_blocks=20), prefills("h100") + decodes("h100", max_batch=1)):
        desk = Desk(specs)
        for number in range(3):
            desk.start(f"w{number}")
            desk.reveal(f"w{number}", "n")
        topology = Topology(*desk.core.ledger.pool(MODEL), desk.core.estimator)
        topology.update(())
        waiting = desk.core.waiting[MODEL]
        assert Outlook(topology, waiting, 1, aware=False).bounds_us() is None
