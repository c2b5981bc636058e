"""Tenants on one local stack of real processes: shares, limits and refusals as clients meet them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest
import pytest_asyncio

from hexagent.cli.explain import show_explanation
from hexagent.cli.stack import SCHEDULER, TRACKER, LocalStack, StackOptions
from hexagent.client import CallResult, Client
from hexagent.client.explain import explain_call
from hexagent.core.errors import DeadlineExceeded, HexagentError, ResourceExhausted
from hexagent.core.ids import CallId
from hexagent.core.scheduling.record import DecisionKind

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CLUSTER: Final = """
name = "tenants"
policy = "fcfs"
time_scale = 20

[admission]
refuse_late = true

[[pool]]
role = "prefill"
gpu = "a100"
model = "llama-3.1-70b"
tp = 4

[[pool]]
role = "decode"
gpu = "h200"
model = "llama-3.1-70b"
tp = 4

[[tenant]]
name = "narrow"

[[tenant]]
name = "wide"

[[tenant]]
name = "small"
queued_tokens_max = 20_000

[[tenant]]
name = "poor"
quota_gpu_s = 0.001
quota_window_s = 86_400
"""
PROMPT: Final = "word " * 4_000  # so that prefill is what is contested
CALLS: Final = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "cluster.toml").write_text(CLUSTER, encoding="utf-8")
    async with LocalStack(StackOptions(str(folder / "cluster.toml"), data_dir=folder / "data"), print) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[Client]:
    async with Client(stack.addresses[TRACKER], model="llama-3.1-70b", max_tokens=8) as client:
        yield client


async def calls(client: Client, tenant: str, count: int) -> Sequence[CallResult]:
    """Of one workflow that fans out."""
    async with client.workflow("fan", tenant=tenant) as workflow:
        return await asyncio.gather(*(workflow.call(f"{i} {PROMPT}") for i in range(count)))


async def refused(client: Client, tenant: str, count: int = 1, **terms: float) -> list[HexagentError]:
    """The refusals among calls that fan out; the others succeed."""
    async with client.workflow("fan", tenant=tenant, **terms) as workflow:  # type: ignore[arg-type]
        several = [workflow.call(f"{i} {PROMPT}") for i in range(count)]
        ends = await asyncio.gather(*several, return_exceptions=True)
    return [end for end in ends if isinstance(end, HexagentError)]


async def test_fan_out_gains_nothing_and_idle_shares_are_used(client: Client) -> None:
    """First come first served would run all that the wide one asked for first."""
    async with client.workflow("fan", tenant="wide") as workflow:
        nodes = [workflow.node(f"{i} {PROMPT}") for i in range(8 * CALLS)]
        await workflow.reveal(nodes)
        narrow = await calls(client, "narrow", CALLS)
        wide = await asyncio.gather(*(workflow.result_of(node) for node in nodes))
    until_us = max(result.times.prefill_start_us for result in narrow)
    since_us = min(result.times.dispatched_us for result in narrow)
    started = [result.times.prefill_start_us for result in wide]
    meanwhile = sum(since_us <= start_us <= until_us for start_us in started)
    assert meanwhile <= 2 * CALLS
    assert sum(start_us > until_us for start_us in started) >= 4 * CALLS
    assert sum(start_us < since_us for start_us in started) >= 1


async def test_what_is_beyond_a_limit_is_refused_with_a_time_to_come_back(client: Client) -> None:
    errors = await refused(client, "small", 12)
    assert 1 <= len(errors) < 12
    for error in errors:
        assert isinstance(error, ResourceExhausted)
        assert error.reason == "TENANT_QUEUE_FULL"
        assert int(error.details["retry_after_us"]) >= 1_000_000
    assert len(await calls(client, "poor", 1)) == 1
    (error,) = await refused(client, "poor")
    assert error.reason == "QUOTA_EXHAUSTED"
    assert 0 < int(error.details["retry_after_us"]) <= 86_400_000_000


async def test_a_deadline_that_cannot_be_met_is_refused_and_explained(
    stack: LocalStack, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    async with client.workflow("fan", tenant="narrow", workflow_id="late", budget_s=0.2) as workflow:
        with pytest.raises(DeadlineExceeded) as refused_call:
            await workflow.call(PROMPT, node_id="n")
    assert refused_call.value.reason == "DEADLINE_INFEASIBLE"
    explanation = await explain_call(CallId("late", "n"), stack.addresses[TRACKER], stack.addresses[SCHEDULER])
    (record,) = explanation.records
    assert (record.kind, record.reason) == (DecisionKind.REFUSE, "DEADLINE_INFEASIBLE")
    show_explanation(explanation)
    assert "refused by fcfs (attempt 1): DEADLINE_INFEASIBLE" in capsys.readouterr().out
    assert not await refused(client, "narrow", budget_s=600.0)
