"""Admission: what waits, what is refused, with which reason, and when to come back."""

from hexagent.core.instance.spec import AdmissionSpec, TenantSpec
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.scheduling.effects import Effect, Record, Refuse
from hexagent.core.scheduling.events import Started
from hexagent.core.scheduling.record import DecisionKind
from hexagent.core.workflow.model import CallOutcome, NodeStatus
from tests.sim.cases import PROMPT, Desk, decodes, prefills

ONE_AT_A_TIME = DEFAULT._replace(batch_us_max=0)


def desk(*tenants: TenantSpec, admission: AdmissionSpec = AdmissionSpec(), start: bool = True) -> Desk:
    """One call is in prefill; what is revealed from now on waits."""
    d = Desk(
        prefills("h100") + decodes("h100", kv_blocks=100),
        start=start,
        profile=ONE_AT_A_TIME,
        tenants=tenants or (TenantSpec("default"),),
        admission=admission,
    )
    d.start("busy", tenant=next(iter(d.core.tenants.accounts)))
    d.reveal("busy", "n")
    return d


def refused(effects: tuple[Effect, ...]) -> list[CallOutcome]:
    outcomes = [effect.outcome for effect in effects if isinstance(effect, Refuse)]
    records = [e.record for e in effects if isinstance(e, Record) and e.record.kind is DecisionKind.REFUSE]
    assert [(record.ticket.call, record.reason) for record in records] == [(o.call, o.reason) for o in outcomes]
    assert all(outcome.status is NodeStatus.REFUSED and outcome.message for outcome in outcomes)
    return outcomes


def reasons(effects: tuple[Effect, ...]) -> list[str]:
    return [outcome.reason for outcome in refused(effects)]


def test_without_rules_nothing_is_refused() -> None:
    d = desk()
    d.start("w", deadline_us=1)
    assert not reasons(d.reveal("w", *(f"n{i}" for i in range(50))))
    assert d.core.queue.calls == 50


def test_no_more_calls_wait_than_memory_is_for() -> None:
    d = desk(admission=AdmissionSpec(queued_calls_max=2))
    d.start("w")
    outcomes = refused(d.reveal("w", "a", "b", "c"))
    assert [(str(o.call), o.reason, o.retry_after_us) for o in outcomes] == [("w/c", "QUEUE_FULL", 1_000_000)]
    d.now_us = 7_000_000
    (later,) = refused(d.reveal("w", "d"))
    assert later.retry_after_us == 7_000_000  # as long as the first in the queue has waited


def test_a_tenant_s_queue_holds_so_many_tokens() -> None:
    d = desk(TenantSpec("a", queued_tokens_max=3 * PROMPT), TenantSpec("b"))
    for tenant in ("a", "b"):
        d.start(tenant, tenant=tenant)
    assert reasons(d.reveal("a", "n0", "n1", "n2", "n3", "n4")) == ["TENANT_QUEUE_FULL"] * 3
    assert not reasons(d.reveal("b", "n0", "n1", "n2", "n3", "n4"))


def test_a_call_larger_than_its_tenant_s_queue_is_accepted_alone() -> None:
    d = desk(TenantSpec("a", queued_tokens_max=1))
    d.start("w", tenant="a")
    assert reasons(d.reveal("w", "n0", "n1")) == ["TENANT_QUEUE_FULL"]


def test_the_kv_that_waits_is_bounded_for_workflows_that_have_not_begun() -> None:
    """The decode instance holds 3,200 tokens; half as much may wait."""
    d = desk(admission=AdmissionSpec(queued_kv_milli=500))
    d.start("w")
    assert not reasons(d.reveal("w", "n0", "n1", "n2"))  # the first is accepted, so the workflow has begun
    d.start("late")
    assert reasons(d.reveal("late", "n0")) == ["KV_QUEUE_FULL"]
    assert not reasons(d.reveal("w", "n3"))


def test_a_workflow_begins_no_more_where_its_tenant_s_quota_is_used_up() -> None:
    d = desk(TenantSpec("a", quota_gpu_us=1, quota_window_us=60_000_000))
    d.start("w", tenant="a")
    d.now_us = 10_000_000
    (outcome,) = refused(d.reveal("w", "n"))
    assert (outcome.reason, outcome.retry_after_us) == ("QUOTA_EXHAUSTED", 50_000_000)
    assert not reasons(d.reveal("busy", "m"))  # has begun: its calls wait for the next window
    assert d.calls == ["busy/n"]
    d.now_us = 60_000_000
    assert not reasons(d.reveal("w", "m"))


def test_a_deadline_that_cannot_be_met_is_refused_where_that_is_asked_for() -> None:
    d = desk(admission=AdmissionSpec(refuse_late=True))
    alone_us = d.core.estimator.solo_us("llama-3.1-70b", PROMPT, 30)
    for name, deadline_us in (("late", alone_us - 1), ("just", alone_us), ("none", 0)):
        d.start(name, deadline_us=deadline_us)
    (outcome,) = refused(d.reveal("late", "n"))
    assert (outcome.reason, outcome.retry_after_us) == ("DEADLINE_INFEASIBLE", 0)
    assert not reasons(d.reveal("just", "n"))
    assert not reasons(d.reveal("none", "n"))


def test_what_was_accepted_before_a_restart_stays_so() -> None:
    d = desk(admission=AdmissionSpec(queued_calls_max=1), start=False)
    d.start("w")
    assert not reasons(d.reveal("w", "a", "b", "c"))
    assert not reasons(d.tell(Started(2, 0)))
    (outcome,) = refused(d.reveal("w", "d"))
    d.finish(outcome.call, NodeStatus.REFUSED)
    assert not reasons(d.pause("w", False))
