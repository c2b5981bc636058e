"""What the gateway makes of calls that are refused, fail, or meet a tracker that is away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from hexagent.client import WorkflowStatus
from hexagent.core.ids import CallId
from hexagent.runtime.nats_server import NatsServer
from tests.integration.test_dag_tracker_stack import MODEL, Stack, running_stack
from tests.integration.test_gateway import CALL, SESSION, Gateway, ask, read, running_gateway, text_of, user

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def stack(wiped_streams: NatsServer, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(wiped_streams, tmp_path) as stack:
        yield stack


@pytest_asyncio.fixture
async def gateway(stack: Stack, wiped_streams: NatsServer, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(wiped_streams.url, stack.tracker.address, tmp_path) as gateway:
        yield gateway


def double(**options: object) -> dict[str, Any]:
    """The extra body that tells the double of scheduler and agents what to do."""
    return {"hexagent": {"engine_options": {f"test.{name}": str(value) for name, value in options.items()}}}


@pytest.mark.parametrize("stream", [False, True])
async def test_refused_and_failed_calls_have_a_status_also_in_a_stream(gateway: Gateway, stream: bool) -> None:
    create = gateway.openai.chat.completions.create
    with pytest.raises(openai.RateLimitError) as refused:
        await create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=stream,
            extra_body=double(refuse="QUEUE_FULL", text=""),
        )  # fmt: skip
    assert refused.value.code == "queue_full"
    # 2 s of model time are a tenth of a second here; the header has whole seconds.
    assert refused.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.InternalServerError) as failed:
        await create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=stream,
            extra_body=double(fail="ENGINE_BROKE", text=""),
        )  # fmt: skip
    assert failed.value.code == "engine_broke"
    await gateway.status(failed.value.response.headers[SESSION], WorkflowStatus.FAILED)


async def test_a_stream_survives_a_killed_tracker_and_an_output_that_rides_apart(
    gateway: Gateway, stack: Stack
) -> None:
    text = " ".join(str(i) for i in range(40))
    stream = await gateway.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "count"}], stream=True,
        extra_body=double(text=text, delay_s=0.05, apart=1),
    )  # fmt: skip
    reading = asyncio.create_task(read(stream))
    await asyncio.sleep(0.5)
    await stack.tracker.kill()
    assert (await gateway.http.get("/readyz")).status_code == 503
    waiting = asyncio.create_task(ask(gateway, [user("meanwhile")], extra_body=double(text="here")))
    await stack.tracker.start()
    assert text_of(await reading) == text
    assert (await waiting)[0].choices[0].message.content == "here"


async def test_an_output_that_has_expired_is_replaced_by_its_text(gateway: Gateway, stack: Stack) -> None:
    session = {"x-session-id": "old"}
    _, first = await ask(gateway, [user("a")], session, extra_body=double(text="forgotten words", apart=1))
    history = [user("a"), {"role": "assistant", "content": "forgotten words"}, user("b")]
    _, second = await ask(gateway, history, session, extra_body=double())
    before = _prompt(stack, second)
    await stack.bus.delete_bodies([before[1]])
    # A tracker that has just started remembers nothing as stored.
    await stack.tracker.kill()
    await stack.tracker.start()
    _, third = await ask(gateway, history, session, extra_body=double())
    after = _prompt(stack, third)
    assert first[SESSION] == third[SESSION]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1]


def _prompt(stack: Stack, headers: httpx.Headers) -> list[str]:
    """Digests of the prompt of the call that was answered with these headers."""
    return stack.double.prompts[CallId(headers[SESSION], headers[CALL])]
