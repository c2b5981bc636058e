"""An instance that gets another role, as the scheduler core goes about it."""

import pytest

from hexagent.core.errors import FailedPrecondition, HexagentError
from hexagent.core.instance.spec import FlipWay, InstanceSpec, Role, RoleFlip
from hexagent.core.policy.registry import is_aggregated, known
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.core.scheduling.events import InstanceDown, InstanceFlip, InstanceUp, Phase, Started
from hexagent.core.units import US_PER_S
from tests.sim.cases import Desk, decodes, prefills

COST = RoleFlip(FlipWay.RESTART, 60 * US_PER_S)
POLICIES = [name for name in known() if not is_aggregated(name)]


def small(policy: str = "fcfs", start: bool = True) -> Desk:
    specs = prefills("h100", "h100") + decodes("h100", "h100")
    return Desk(tuple(spec._replace(flip=COST) for spec in specs), policy, start)


def spec_of(desk: Desk, instance_id: str) -> InstanceSpec:
    return desk.core.ledger.instances[instance_id].spec


def flip(desk: Desk, instance_id: str, role: Role) -> list[ChangeRole]:
    return changes(desk.tell(InstanceFlip(instance_id, role, desk.now_us)))


def changes(effects: tuple[object, ...]) -> list[ChangeRole]:
    return [effect for effect in effects if isinstance(effect, ChangeRole)]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_it_holds_ends_there_and_only_then_it_changes(policy: str) -> None:
    desk = small(policy)
    desk.start("w")
    desk.reveal("w", "a")
    (first,) = desk.dispatched
    decode = first.decode_instance
    assert flip(desk, decode, Role.PREFILL) == [ChangeRole(decode, Role.PREFILL, now=False)]
    desk.reveal("w", "b")
    assert desk.dispatched[1].decode_instance != decode
    assert changes(desk.progress(first.ticket, Phase.DECODING)) == []
    now = changes(desk.progress(first.ticket, Phase.ENDED))
    assert now == [ChangeRole(decode, Role.PREFILL, now=True)]
    spec = spec_of(desk, decode)
    desk.tell(InstanceDown(decode, desk.now_us, "its role changes", spec))
    again = changes(desk.tell(InstanceUp(spec, (), desk.now_us)))  # its agent died meanwhile
    assert again == now
    desk.tell(InstanceUp(spec._replace(role=Role.PREFILL), (), desk.now_us))
    instance = desk.core.ledger.instances[decode]
    assert (instance.wanted_role, instance.usable, instance.spec.role) == (None, True, Role.PREFILL)
    for other in ("p0", "p1"):
        desk.tell(InstanceDown(other, desk.now_us))
    desk.reveal("w", "c")
    assert desk.dispatched[-1].prefill_instance == decode


def test_pinned_kv_has_to_be_pulled_first() -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    (first,) = desk.dispatched
    flip(desk, first.prefill_instance, Role.DECODE)
    assert changes(desk.progress(first.ticket, Phase.PREFILLED)) == []
    pulled = changes(desk.progress(first.ticket, Phase.DECODING))
    assert pulled == [ChangeRole(first.prefill_instance, Role.DECODE, now=True)]


def test_before_it_changes_it_can_stay_as_it_is_and_afterwards_its_agent_is_told_to_go_back() -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    decode = desk.dispatched[0].decode_instance
    flip(desk, decode, Role.PREFILL)
    assert flip(desk, decode, Role.DECODE) == [ChangeRole(decode, Role.DECODE, now=False)]
    assert desk.core.ledger.instances[decode].usable
    assert [c.now for c in flip(desk, "p1", Role.DECODE)] == [False, True]
    assert [c.now for c in flip(desk, "p1", Role.PREFILL)] == [False, True]
    desk.tell(InstanceDown("p1", 0, "its role changes to decode", spec_of(desk, "p1")))  # said before it was told
    again = changes(desk.tell(InstanceUp(spec_of(desk, "p1")._replace(role=Role.DECODE), (), 0)))
    assert again == [ChangeRole("p1", Role.PREFILL, now=True)]
    assert not desk.core.ledger.instances["p1"].usable
    desk.tell(InstanceUp(spec_of(desk, "p1")._replace(role=Role.PREFILL), (), 0))
    assert desk.core.ledger.instances["p1"].usable


def test_a_scheduler_that_starts_hears_of_it_from_the_agent() -> None:
    desk = small(start=False)
    spec = spec_of(desk, "d0")._replace(instance_id="d2")
    assert changes(desk.tell(InstanceUp(spec, (), 0, wanted_role=Role.PREFILL))) == []
    assert not desk.core.ledger.instances["d2"].usable
    assert changes(desk.tell(Started(2, 0))) == [ChangeRole("d2", Role.PREFILL, now=True)]


@pytest.mark.parametrize(
    ("spec", "others", "reason"),
    [
        (decodes("h100")[0], (Role.DECODE,), "CANNOT_FLIP"),
        (decodes("h100", flip=COST)[0]._replace(role=Role.BOTH), (Role.BOTH,), "CANNOT_FLIP"),
        (decodes("h100", flip=COST)[0], (), "LAST_INSTANCE"),
        (decodes("h100", flip=COST, kv_precision="fp8")[0], (Role.DECODE,), "LAST_INSTANCE"),
        (decodes("h100", flip=COST)[0], (Role.DECODE,), ""),
        (decodes("h100", flip=COST)[0], (Role.BOTH,), ""),
    ],
)
def test_what_cannot_change_is_refused(spec: InstanceSpec, others: tuple[Role, ...], reason: str) -> None:
    more = tuple(decodes("h100")[0]._replace(instance_id=f"e{i}", role=role) for i, role in enumerate(others))
    desk = Desk((spec, *more, *prefills("h100")))
    said: HexagentError | None = None
    try:
        desk.core.flips.check(desk.core.ledger.instances["d0"], Role.PREFILL)
    except FailedPrecondition as error:
        said = error
    assert (said.reason if said is not None else "") == reason


def test_the_last_of_its_role_keeps_it_while_it_is_down() -> None:
    desk = Desk(decodes("h100", flip=COST) + prefills("h100"))
    desk.tell(InstanceDown("d0", 0, "engine does not start", spec_of(desk, "d0")))
    with pytest.raises(FailedPrecondition) as refused:
        desk.core.flips.check(desk.core.ledger.instances["d0"], Role.PREFILL)
    assert refused.value.reason == "LAST_INSTANCE"


def test_one_that_does_not_start_in_its_other_role_stays_closed_and_can_be_given_its_own() -> None:
    desk = small()
    flip(desk, "p1", Role.DECODE)
    changed = spec_of(desk, "p1")._replace(role=Role.DECODE)
    desk.tell(InstanceDown("p1", 0, "engine does not start", changed))
    instance = desk.core.ledger.instances["p1"]
    assert (instance.wanted_role, desk.core.flips.done["p1"]) == (Role.DECODE, 0)
    desk.core.flips.check(instance, Role.PREFILL)
    assert flip(desk, "p1", Role.PREFILL)[-1] == ChangeRole("p1", Role.PREFILL, now=True)
    desk.tell(InstanceUp(changed._replace(role=Role.PREFILL), (), 0))
    assert instance.usable
