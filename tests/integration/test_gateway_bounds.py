"""A gateway at its bounds, and on its way down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio

from hexagent.cli.stack import NATS, LocalStack, StackOptions
from hexagent.client import WorkflowStatus
from tests.integration.test_gateway import (
    CLUSTER,
    MODEL,
    SESSION,
    Gateway,
    ask,
    read,
    running_gateway,
    scripted,
    text_of,
    until,
    user,
)

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("bounds")
    cluster = folder / "cluster.toml"
    cluster.write_text(CLUSTER, encoding="utf-8")
    async with LocalStack(StackOptions(str(cluster), data_dir=folder / "stack"), print) as stack:
        yield stack


def gateway_of(stack: LocalStack, folder: Path, **settings: object) -> contextlib.AbstractAsyncContextManager[Gateway]:
    return running_gateway(stack.addresses[NATS], stack.address, folder, **settings)


async def test_requests_beyond_the_limit_are_told_when_to_come_again(stack: LocalStack, tmp_path: Path) -> None:
    async with gateway_of(stack, tmp_path, requests_max=1, retry_after_s=7) as gateway:
        stream = await gateway.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "talk"}], stream=True, max_tokens=20_000,
            extra_body=scripted(tokens=20_000),
        )  # fmt: skip
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(gateway, [user("me too")])
        assert caught.value.code == "too_many_requests"
        assert caught.value.response.headers["retry-after"] == "7"
        await stream.close()

        async def idle() -> bool:
            return bool((await gateway.http.get("/readyz")).json()["requests"] == 0)

        await until(idle)
        await ask(gateway, [user("me too")], extra_body=scripted("yes"))


async def test_a_request_that_takes_too_long_is_cancelled(stack: LocalStack, tmp_path: Path) -> None:
    async with gateway_of(stack, tmp_path, request_timeout_s=1, stream_headers_s=0) as gateway:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(gateway, [user("talk")], max_tokens=20_000, extra_body=scripted(tokens=20_000))
        assert (caught.value.status_code, caught.value.code) == (504, "request_timeout")
        raw = await gateway.openai.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "talk"}], stream=True, max_tokens=20_000,
            extra_body=scripted(tokens=20_000),
        )  # fmt: skip
        with pytest.raises(openai.APIError) as late:
            await read(raw.parse())
        assert late.value.code == "request_timeout"
        await gateway.status(raw.headers[SESSION], WorkflowStatus.CANCELLED)


async def test_idle_sessions_are_finished_and_the_least_used_makes_room(stack: LocalStack, tmp_path: Path) -> None:
    async with gateway_of(stack, tmp_path, session_idle_s=1.5, sessions_max=1) as gateway:
        _, first = await ask(gateway, [user("a")], {"x-session-id": "idle-1"}, extra_body=scripted("x"))
        _, second = await ask(gateway, [user("a")], {"x-session-id": "idle-2"}, extra_body=scripted("x"))
        await gateway.status(first[SESSION], WorkflowStatus.COMPLETED)
        assert (await gateway.describe(second[SESSION])).workflow.status is WorkflowStatus.RUNNING
        await gateway.status(second[SESSION], WorkflowStatus.COMPLETED)


async def test_two_gateways_share_a_session(stack: LocalStack, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with (
        gateway_of(stack, tmp_path) as one,
        gateway_of(stack, tmp_path / "other") as other,
    ):
        session = {"x-session-id": "shared"}
        results = await asyncio.gather(
            *(
                ask(gateway, [user(f"{i}")], session | {"x-dynamo-request-priority": str(i)}, extra_body=scripted("x"))
                for i, gateway in enumerate((one, other, one, other))
            )
        )
        assert len({headers[SESSION] for _, headers in results}) == 1
        workflow_id = results[0][1][SESSION]
        assert (await one.describe(workflow_id)).workflow.calls == 4
        # What one finishes, the other begins anew.
        await ask(one, [user("last")], session | {"x-dynamo-session-final": "1"}, extra_body=scripted("x"))
        await one.status(workflow_id, WorkflowStatus.COMPLETED)
        _, after = await ask(other, [user("next")], session, extra_body=scripted("x"))
        assert after[SESSION] == f"{workflow_id}.2"


async def test_a_stopping_gateway_ends_its_streams_first(stack: LocalStack, tmp_path: Path) -> None:
    text = "some words " * 200
    async with gateway_of(stack, tmp_path) as gateway:
        stream = await gateway.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "talk"}], stream=True, max_tokens=2_000,
            extra_body=scripted(text),
        )  # fmt: skip
        gateway.process.terminate()
        chunks = await read(stream)
        assert text_of(chunks) == text
        with pytest.raises(httpx.ConnectError):
            await gateway.http.get("/healthz")
        assert await gateway.process.wait() == 0
