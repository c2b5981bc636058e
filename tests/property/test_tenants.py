"""Tenants under random loads: no call of one starts that is too far ahead of another that waits, and all start."""

from itertools import count
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.instance.spec import TenantSpec
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.policy.registry import known
from hexagent.core.scheduling.effects import Dispatch
from hexagent.core.scheduling.events import Phase
from hexagent.core.scheduling.ledger import Attempt
from hexagent.core.scheduling.tenants import Tenants
from hexagent.core.workflow.model import CallTimes
from tests.sim.cases import MODEL, Desk, decodes, prefills


class Step(NamedTuple):
    tenant: int
    calls: int  # it reveals; 0 = the oldest calls that run end instead
    prompt: int
    pick: int


STEPS = st.builds(Step, st.integers(0, 2), st.integers(0, 12), st.integers(50, 4_000), st.integers(1, 4))


def watch(tenants: Tenants) -> list[int]:
    """How far the tenant of every call that starts is ahead of the least of those that wait for the same instances."""
    leads_us: list[int] = []
    dispatched = tenants.dispatched

    def watched(attempt: Attempt, *rest: Any) -> None:
        own_us = tenants.accounts[attempt.call.workflow.tenant].virtual_us
        waiting = [tenants.accounts[name].virtual_us for name in tenants._queues[MODEL]]
        leads_us.append(own_us - min([own_us, *waiting]))
        dispatched(attempt, *rest)

    tenants.dispatched = watched  # type: ignore[method-assign, assignment]
    return leads_us


@settings(max_examples=30, deadline=None)
@given(
    policy=st.sampled_from(known()),
    weights=st.tuples(*[st.integers(1, 8)] * 3),
    lag_us=st.sampled_from([1_000, 50_000, 250_000]),
    steps=st.lists(STEPS, min_size=5, max_size=25),
)
def test_no_call_starts_beyond_the_bound_and_all_of_them_start(
    policy: str, weights: tuple[int, ...], lag_us: int, steps: list[Step]
) -> None:
    names = [f"t{i}" for i in range(3)]
    desk = Desk(
        prefills("a100", "h100") + decodes("h100", "h200"),
        policy,
        profile=DEFAULT._replace(tenant_lag_us=lag_us),
        tenants=tuple(TenantSpec(name, weight) for name, weight in zip(names, weights, strict=True)),
    )
    tenants = desk.core.tenants
    leads_us = watch(tenants)
    numbers, ended = count(), 0
    for name in names:
        desk.start(name, tenant=name)

    def end(calls: int) -> None:
        nonlocal ended
        for dispatch in desk.dispatched[ended : ended + calls]:
            desk.now_us += 150_000
            run(desk, dispatch)
            ended += 1

    for step in steps:
        if step.calls:
            desk.now_us += 20_000
            nodes = [f"n{next(numbers):04}" for _ in range(step.calls)]
            desk.reveal(names[step.tenant], *nodes, prompt=step.prompt)
        else:
            end(step.pick)
    while ended < len(desk.dispatched):
        end(1)
    assert len(desk.dispatched) == next(numbers)
    assert max(leads_us, default=0) <= lag_us * tenants.prices.cluster_milli // 1_000
    assert not tenants.held
    assert not any(account.waiting for account in tenants.accounts.values())


def run(desk: Desk, dispatch: Dispatch) -> None:
    """Step by step, with times that differ from what was predicted."""
    for phase in (Phase.PREFILLED, Phase.DECODING, Phase.ENDED):
        desk.progress(dispatch.ticket, phase)
    now_us = desk.now_us
    times = CallTimes(now_us - 140_000, now_us - 140_000, now_us - 60_000, 0, 0, now_us - 50_000, 0, now_us)
    desk.finish(dispatch.ticket.call, times=times)
