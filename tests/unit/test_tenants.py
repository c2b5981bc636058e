"""Tenants: what they are charged, who is ahead, and that one alone changes nothing."""

import pytest

from hexagent.core.ids import CallId
from hexagent.core.instance.spec import Role, TenantSpec
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.scheduling.effects import Dispatch
from hexagent.core.scheduling.events import InstanceCordoned, Phase, Tick
from hexagent.core.scheduling.tenants import OUT_OF_QUOTA
from hexagent.core.workflow.model import CallTimes, NodeStatus
from tests.sim.cases import MODEL, Desk, decodes, instance, prefills

TWO = (TenantSpec("a"), TenantSpec("b"))
TIGHT = DEFAULT._replace(tenant_lag_us=1_000, batch_us_max=0)  # so that less than a call is a lead, one call a step
TIMES = CallTimes(1, 100_000, 200_000, 200_000, 210_000, 210_000, 210_000, 400_000)


def desk(*tenants: TenantSpec, policy: str = "fcfs", lag_us: int = 1_000) -> Desk:
    """One prefill and one decode instance of four H100 each."""
    made = Desk(
        prefills("h100") + decodes("h100"),
        policy,
        profile=TIGHT._replace(tenant_lag_us=lag_us),
        tenants=tenants or TWO,
    )
    for tenant in made.core.tenants.accounts:
        made.start(tenant, tenant=tenant)
    return made


def step(d: Desk) -> str:
    """The call that is in prefill ends it; the tenant of the one that starts then."""
    begun = len(d.dispatched)
    d.now_us += 100_000
    d.progress(d.dispatched[-1].ticket, Phase.PREFILLED)
    (dispatch,) = d.dispatched[begun:]
    return dispatch.ticket.call.workflow_id


def charged(d: Desk, tenant: str) -> int:
    return d.core.tenants.accounts[tenant].charged_us


def test_a_call_is_charged_by_prediction_and_then_by_what_it_took() -> None:
    d = desk()
    d.reveal("a", "n")
    (dispatch,) = d.dispatched
    predicted = charged(d, "a")
    prefill_us = d.core.ledger.attempts[dispatch.ticket].prefill_end_us - d.now_us
    assert predicted > prefill_us * 4 * 2  # four GPUs at the price of an H100, and decode
    d.run(dispatch, times=TIMES)
    assert charged(d, "a") == (100_000 + 190_000) * 8
    assert charged(d, "b") == 0


def test_a_lost_attempt_is_not_charged_and_a_cancelled_call_is() -> None:
    d = desk()
    d.reveal("a", "n")
    first = charged(d, "a")
    d.progress(d.dispatched[0].ticket, Phase.LOST)
    assert charged(d, "a") == first  # of the attempt that has taken its place
    d.finish(CallId("a", "n"), NodeStatus.CANCELLED)
    assert charged(d, "a") == first


def test_equal_weights_take_turns_whatever_the_fan_out() -> None:
    d = desk()
    d.reveal("a", *(f"n{i:02}" for i in range(16)))
    d.reveal("b", "n0", "n1")
    # They begin together; b's second call is cheaper, as the batch it decodes in is larger.
    assert [step(d) for _ in range(6)] == ["a", "b", "b", "a", "a", "a"]


def test_weights_are_shares() -> None:
    d = desk(TenantSpec("a", 3), TenantSpec("b", 1))
    for tenant in ("a", "b"):
        d.reveal(tenant, *(f"n{i:02}" for i in range(16)))
    started = [step(d) for _ in range(15)]
    assert started.count("a") == 11  # and the first one


def test_what_a_tenant_leaves_is_used_at_once_and_gives_it_no_credit() -> None:
    d = desk()
    d.reveal("a", *(f"n{i:02}" for i in range(16)))
    assert [step(d) for _ in range(5)] == ["a"] * 5
    d.reveal("b", *(f"n{i:02}" for i in range(8)))
    started = [step(d) for _ in range(8)]
    assert abs(started.count("a") - started.count("b")) <= 2
    assert started[:2] == ["a", "b"]


@pytest.mark.parametrize(("lead_us", "first"), [(0, "a"), (2_000_000, "a"), (3_000_000, "b"), (4_100_000, "b")])
def test_a_lead_within_the_bound_lets_ages_count_less(lead_us: int, first: str) -> None:
    """The bound is 4 priced GPU-seconds: at half of it 0.67 s are left of a's age of 1 s, at three quarters 0.57 s."""
    d = desk(lag_us=250_000)
    d.reveal("b", "n0", now_us=0)
    d.reveal("a", "n0", now_us=0)
    d.reveal("b", "n1", now_us=400_000)
    least_us = d.core.tenants.accounts["b"].virtual_us
    d.core.tenants.accounts["a"].virtual_us = least_us + lead_us
    d.now_us = 900_000
    assert step(d) == first


def test_nobody_waits_for_a_tenant_whose_calls_no_open_instance_can_hold() -> None:
    specs = (*prefills("h100"), *decodes("h100", "h200"))
    specs = tuple(s._replace(kv_blocks=150) if s.instance_id == "d0" else s for s in specs)
    d = Desk(specs, profile=TIGHT, tenants=TWO)
    for tenant in ("a", "b"):
        d.start(tenant, tenant=tenant)
    d.tell(InstanceCordoned("d1", True, 0))
    d.reveal("b", "large", prompt=5_000)
    d.reveal("a", *(f"n{i}" for i in range(6)))
    assert step(d) == "a"
    assert "a" not in d.core.tenants.held


def test_other_models_have_queues_of_their_own() -> None:
    other = (instance("q0", "h100", Role.PREFILL, model="llama-3.1-8b", tp=1),)
    d = Desk(prefills("h100") + decodes("h100") + other, profile=TIGHT, tenants=TWO)
    d.core.tenants.look("llama-3.1-8b", lambda call: True, 0)
    assert not d.core.tenants.held


def test_a_single_tenant_is_not_counted() -> None:
    d = desk(TenantSpec("a"))
    d.reveal("a", "n0", "n1")
    assert step(d) == "a"
    assert charged(d, "a") == 0


def test_calls_beyond_the_quota_wait_for_the_next_window() -> None:
    d = desk(TenantSpec("a", quota_gpu_us=1_000_000, quota_window_us=10_000_000), TenantSpec("b"))
    d.reveal("a", *(f"n{i}" for i in range(4)))
    dispatch = d.dispatched[0]
    d.now_us = 100_000
    d.run(dispatch, times=TIMES)  # 2.32 priced GPU-seconds
    assert len(d.dispatched) == 1
    assert d.core.tenants.held == {"a": OUT_OF_QUOTA}
    assert {d.core.tenants.why_held(call) for call in d.core.waiting[MODEL].calls} == {OUT_OF_QUOTA}
    d.reveal("b", "n0")
    assert d.calls[1:] == ["b/n0"]
    d.progress(d.dispatched[-1].ticket, Phase.PREFILLED)
    effects = d.tell(Tick(10_000_000), 10_000_000)
    assert [e.ticket.call.workflow_id for e in effects if isinstance(e, Dispatch)] == ["a"]
