"""Priorities, SLO scales and deadlines: how much they let an age count, and that nothing starves."""

from typing import Any

import numpy as np
import pytest

from hexagent.core.policy.profile import DEFAULT
from hexagent.core.policy.terms import EXPIRED_MILLI, priority_milli, terms_milli, time_milli
from hexagent.core.policy.weighing import FLOOR_STARTS
from hexagent.core.scheduling.events import Phase
from hexagent.core.scheduling.projection import Workflow
from hexagent.core.workflow.events import WorkflowChanged, WorkflowFinished
from hexagent.core.workflow.model import WorkflowStatus
from tests.sim.cases import MODEL, Desk, decodes, prefills

ALONE = DEFAULT._replace(batch_us_max=0)
HORIZON_US = 1_000_000


def with_horizon(**terms: Any) -> Workflow:
    """A workflow that began at 0 and takes HORIZON_US alone, of which all is a tool's time."""
    d = Desk(prefills("h100") + decodes("h100"))
    d.start("w", **terms)
    d.tool("w", "t", HORIZON_US)
    workflow = d.core.projection.workflows["w"]
    assert workflow.horizon_us == HORIZON_US
    return workflow


def test_a_priority_lets_an_age_count_four_times_at_most() -> None:
    weights = [priority_milli(priority) for priority in range(-100, 101)]
    assert weights == sorted(weights)
    assert (weights[0], weights[100], weights[-1]) == (250, 1_000, 4_000)


@pytest.mark.parametrize(
    ("terms", "now_us", "milli"),
    [
        ({}, 0, 1_000),
        ({"slo_scale_milli": 3_000}, 0, 1_000),
        ({"slo_scale_milli": 1_500}, 0, 2_000),
        ({"slo_scale_milli": 1}, 0, 4_000),
        ({"slo_scale_milli": 1_000_000}, 0, 250),
        ({"deadline_us": 3 * HORIZON_US}, 0, 1_000),
        ({"deadline_us": 2 * HORIZON_US}, 2 * HORIZON_US - 1, 1_500),
        ({"deadline_us": 2 * HORIZON_US}, 2 * HORIZON_US, EXPIRED_MILLI),
        ({"deadline_us": 2 * HORIZON_US, "slo_scale_milli": 1_000}, 0, 3_000),
        ({"deadline_us": HORIZON_US, "slo_scale_milli": 6_000}, 0, 3_000),
        ({"deadline_us": 1, "slo_scale_milli": 1_000}, 2, EXPIRED_MILLI),
        ({"priority": 100, "slo_scale_milli": 1_500}, 0, 8_000),
        ({"priority": -100, "deadline_us": 1}, 5, 125),
    ],
)
def test_terms_weigh_an_age(terms: dict[str, Any], now_us: int, milli: int) -> None:
    workflow = with_horizon(**terms)
    assert terms_milli(workflow, now_us) == milli
    if "priority" not in terms:
        assert time_milli(workflow, now_us) == milli


def starts(d: Desk, count: int) -> list[str]:
    """The workflows of the calls that start as those in prefill end it, one after the other."""
    begun = len(d.dispatched)
    for _ in range(count):
        d.now_us += 100_000
        d.progress(d.dispatched[-1].ticket, Phase.PREFILLED)
    return [dispatch.ticket.call.workflow_id for dispatch in d.dispatched[begun:]]


def queue(*workflows: tuple[str, dict[str, Any]], policy: str = "fcfs", ageing_us: int = DEFAULT.ageing_us) -> Desk:
    """A call of each workflow waits, 100 ms younger than the one before, while another is in prefill."""
    d = Desk(prefills("h100") + decodes("h100"), policy, profile=ALONE._replace(ageing_us=ageing_us))
    d.start("first")
    d.reveal("first", "n")
    for name, terms in workflows:
        d.now_us += 100_000
        d.start(name, **terms)
        d.reveal(name, "n")
    return d


def test_what_is_more_urgent_waits_a_fraction_of_the_time() -> None:
    d = queue(
        ("usual", {}), ("low", {"priority": -100}), ("high", {"priority": 100}), ("tight", {"slo_scale_milli": 2_000})
    )
    d.now_us += 200_000
    # Ages of 0.6, 0.5, 0.4 and 0.3 s count 0.6, 0.125, 1.6 and 0.45 s.
    assert starts(d, 4) == ["high", "usual", "tight", "low"]


def test_terms_count_from_when_they_are_given_until_the_workflow_ends() -> None:
    d = queue(("a", {}), ("b", {}), ("c", {"priority": 1}))
    d.tell(WorkflowChanged("b", 100, 0, 0, False, d.now_us))
    assert list(d.core.projection.with_terms) == ["c", "b"]
    d.tell(WorkflowChanged("c", 0, 0, 0, False, d.now_us))
    d.now_us += 400_000
    assert starts(d, 1) == ["b"]
    d.tell(WorkflowFinished("b", WorkflowStatus.CANCELLED, d.now_us))
    assert not d.core.projection.with_terms


def test_what_has_waited_longest_gets_one_start_of_a_few() -> None:
    """Of ever new calls of the highest priority four are waiting, each 0.4 s old when it starts."""
    d = queue(("old", {"priority": -100}), ageing_us=1_000_000)
    d.now_us += 1
    begun: list[str] = []
    for number in range(2 * FLOOR_STARTS):
        d.start(f"new{number}", priority=100)
        d.reveal(f"new{number}", "n")
        if number == 3:
            d.now_us += 2_000_000
        if number >= 3:
            begun += starts(d, 1)
    assert begun.index("old") == FLOOR_STARTS - 1


def test_ageing_leaves_an_order_alone_that_lets_nobody_wait_so_long() -> None:
    plain, aged = (queue(("a", {}), ("b", {}), ("c", {}), ageing_us=us) for us in (DEFAULT.ageing_us, 1_000_000))
    for d in (plain, aged):
        d.now_us += 5_000_000
    assert starts(plain, 3) == starts(aged, 3) == ["a", "b", "c"]


@pytest.mark.parametrize("policy", ["fcfs", "hexagent", "atlas"])
@pytest.mark.parametrize("ageing_us", [1_000_000, DEFAULT.ageing_us])
def test_room_is_kept_for_a_large_call_that_small_ones_leave_none(policy: str, ageing_us: int) -> None:
    """The decode instance holds two small calls or the large one, and small ones never cease to come."""
    specs = prefills("h100") + decodes("h100", kv_blocks=100)
    d = Desk(specs, policy, profile=ALONE._replace(ageing_us=ageing_us))
    for name in ("small", "large"):
        d.start(name)
    d.reveal("small", "n000", "n001")
    d.progress(d.dispatched[0].ticket, Phase.PREFILLED)
    d.reveal("large", "n", prompt=2_500)
    d.reveal("small", "n002", "n003")
    ended = 0
    for number in range(4, 80):
        d.now_us += 100_000
        d.run(d.dispatched[ended])
        ended += 1
        if "large/n" in d.calls:
            break
        for dispatch in d.dispatched[ended:]:
            d.progress(dispatch.ticket, Phase.PREFILLED)
        d.reveal("small", f"n{number:03}")
    assert ("large/n" in d.calls) == (ageing_us < DEFAULT.ageing_us)
    if "large/n" in d.calls:
        assert d.calls.index("large/n") < 10 + FLOOR_STARTS + 4
        d.now_us += 1_000_000
        while ended < len(d.dispatched):
            d.run(d.dispatched[ended])
            ended += 1
        assert not any(instance.kept_tokens for instance in d.core.ledger.instances.values())
        assert d.ledger_is_empty()


def test_scores_of_a_queue_without_terms_are_the_order_s_own() -> None:
    d = queue(("a", {}), ("b", {}))
    ages = d.core.waiting[MODEL].ages(d.now_us)
    assert np.array_equal(d.core.policy.order.scores(ages, np.zeros(2, dtype=np.int64)), ages.ready_us)
