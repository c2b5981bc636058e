"""When roles change with the load, tick by tick."""

import pytest

from hexagent.core.instance.spec import FlipWay, InstanceSpec, Role, RoleFlip
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.scheduling.balance import DWELL_US
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.core.scheduling.events import InstanceUp, Phase, Tick
from hexagent.core.units import US_PER_S
from tests.sim.cases import Desk, decodes, prefills

DAY_US = 86_400 * US_PER_S
DECODING = 60  # calls


def desk(cost_s: int, most_us: int = DAY_US, begun: bool = True) -> Desk:
    """Three prefill instances and two decode instances with calls; `begun`, the former idle."""
    specs = prefills("a100", "h100", "h200") + decodes("h100", "h100")
    flip = RoleFlip(FlipWay.RESTART, cost_s * US_PER_S)
    profile = DEFAULT._replace(flip_us_max=most_us, stuck_us=DAY_US)
    made = Desk(tuple(s._replace(flip=flip) for s in specs), profile=profile)
    made.start("w")
    made.reveal("w", *(f"n{i:02}" for i in range(DECODING)))
    if begun:
        prefilled(made)
    return made


def prefilled(made: Desk) -> None:
    """What is dispatched comes to be decoded, and what waited for it."""
    while made.dispatched:
        first = made.dispatched.pop(0)
        made.progress(first.ticket, Phase.PREFILLED)
        made.progress(first.ticket, Phase.DECODING)


def ticked(made: Desk, seconds: int) -> list[tuple[int, ChangeRole]]:
    """The changes of so many seconds, each with when it comes, from here on."""
    began_us, changes = made.now_us, list[tuple[int, ChangeRole]]()
    for second in range(1, seconds + 1):
        now_us = began_us + second * US_PER_S
        effects = made.tell(Tick(now_us), now_us)
        changes += [(second, e) for e in effects if isinstance(e, ChangeRole) and not e.now]
    return changes


def spec_of(made: Desk, instance_id: str) -> InstanceSpec:
    return made.core.ledger.instances[instance_id].spec


@pytest.mark.parametrize("burst_s", [5, 8, 15])
def test_prompts_that_have_been_computed_by_now_take_no_instance_from_loaded_decode(burst_s: int) -> None:
    made = desk(1, begun=False)
    assert ticked(made, burst_s) == []
    prefilled(made)
    assert [change.instance_id for _, change in ticked(made, 60)] == ["p2"]


@pytest.mark.parametrize("cost_s", [1, 60, 300])
def test_idle_prefill_joins_loaded_decode_once_the_load_has_lasted_longer_than_the_change_takes(cost_s: int) -> None:
    made = desk(cost_s)
    changes = ticked(made, cost_s + 60)
    assert [change for _, change in changes] == [ChangeRole("p2", Role.DECODE, now=False)]  # decodes fastest
    assert max(cost_s, DWELL_US // US_PER_S) < changes[0][0] < cost_s + 30


def test_no_more_change_at_a_time_and_the_last_of_a_role_stays() -> None:
    made = desk(1)
    for name in ("p2", "p1"):
        assert [change.instance_id for _, change in ticked(made, 60)] == [name]
        made.tell(InstanceUp(spec_of(made, name)._replace(role=Role.DECODE), (), made.now_us))
    assert ticked(made, 120) == []


def test_what_costs_more_than_the_profile_allows_or_is_off_is_left() -> None:
    assert ticked(desk(2, most_us=US_PER_S), 60) == []
    assert ticked(desk(1, most_us=0), 60) == []
    assert DEFAULT.flip_us_max == 0


def test_prompts_that_wait_bring_an_instance_back_from_idle_decode() -> None:
    made = Desk(
        tuple(s._replace(flip=RoleFlip(FlipWay.RESTART, US_PER_S)) for s in prefills("h100") + decodes("a100", "h200")),
        profile=DEFAULT._replace(flip_us_max=DAY_US, batch_us_max=0),
    )
    made.start("w")
    made.reveal("w", *(f"n{i:02}" for i in range(DECODING)))
    assert len(made.dispatched) == 1  # the others wait
    assert [change for _, change in ticked(made, 60)] == [ChangeRole("d0", Role.PREFILL, now=False)]


def test_a_load_that_ceases_has_to_last_anew() -> None:
    made = desk(80)
    assert ticked(made, 30) == []
    calls = list(made.live.values())
    for dispatch in calls:
        made.progress(dispatch.ticket, Phase.ENDED)
    assert ticked(made, 60) == []
    made.reveal("w", *(f"m{i:02}" for i in range(DECODING)))
    prefilled(made)
    assert ticked(made, 80) == []
    assert [change.instance_id for _, change in ticked(made, 40)] == ["p2"]
