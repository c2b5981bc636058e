"""Two models, adapters and two precisions on one local stack of real processes, as clients and operators meet them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

import hexagent.client
from hexagent.cli.explain import show_explanation
from hexagent.cli.stack import OPENAI, SCHEDULER, TRACKER, LocalStack, StackOptions
from hexagent.client.drain import drain_instance
from hexagent.client.explain import explain_call
from hexagent.core.errors import FailedPrecondition, HexagentError

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

POOL: Final = """
[[pool]]
role = "{role}"
gpu = "h200"
model = "{model}"
tp = {tp}
precision = "{precision}"
{more}
"""
SQL: Final = 'kv_precision = "bf16"\nname = "fast-{role}"\nloras = [{{ name = "sql", rank = 16 }}]'
POOLS: Final = (
    ("llama-3.1-70b", 4, "bf16", ""),
    ("llama-3.1-70b", 4, "fp8", SQL),
    ("qwen3-32b", 2, "bf16", 'name = "qwen-{role}"'),
)
FAST: Final = ("fast-prefill-0", "fast-decode-0")
PRECISE: Final = ("p-h200-0", "d-h200-0")
QWEN: Final = ("qwen-prefill-0", "qwen-decode-0")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("models")
    pools = [
        POOL.format(role=role, model=model, tp=tp, precision=precision, more=more.format(role=role))
        for model, tp, precision, more in POOLS
        for role in ("prefill", "decode")
    ]
    (folder / "cluster.toml").write_text('name = "models"\ntime_scale = 10\n' + "".join(pools), encoding="utf-8")
    async with LocalStack(
        StackOptions(str(folder / "cluster.toml"), data_dir=folder / "stack", gateway=True), print
    ) as stack:
        yield stack


async def test_calls_of_a_workflow_run_where_what_they_need_is_served(
    stack: LocalStack, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"model": "qwen3-32b"}, QWEN),
        ({"lora": "sql"}, FAST),
        ({"min_precision": "bf16"}, PRECISE),
        ({}, PRECISE + FAST),
    ]
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"lora": "go"}, "UNKNOWN_LORA", "known: sql"),
        ({"lora": "sql", "min_precision": "bf16"}, "PRECISION_NOT_SERVED", "fp8 at most"),
        ({"model": "gpt"}, "UNKNOWN_MODEL", r"known: llama-3\.1-70b, qwen3-32b"),
        ({"model": ""}, "BAD_NAME", r"one of llama-3\.1-70b, qwen3-32b"),
    ]
    client = hexagent.client.connect(stack.address, model="llama-3.1-70b", max_tokens=40)
    async with client, client.workflow("mixed") as workflow:
        plan = await workflow.call("Plan.")
        for _ in range(3):
            results = await asyncio.gather(*(workflow.call([plan, "Go."], **options) for options, _ in wanted))
            for result, (_, places) in zip(results, wanted, strict=True):
                assert set(result.instances) <= set(places)
        adapted = await workflow.call("Go.", lora="sql")
        show_explanation(await explain_call(adapted.call, stack.addresses[TRACKER], stack.addresses[SCHEDULER]))
        assert "It runs on llama-3.1-70b with adapter sql." in capsys.readouterr().out
        for options, reason, text in refused:
            with pytest.raises(HexagentError, match=text) as caught:
                await workflow.call("x", **options)
            assert caught.value.reason == reason


async def test_the_gateway_lists_models_with_their_adapters(stack: LocalStack) -> None:
    async with httpx.AsyncClient(base_url=f"http://{stack.addresses[OPENAI]}/v1", timeout=30) as gateway:
        listed = (await gateway.get("/models")).json()["data"]
        assert {row["id"]: row.get("parent") for row in listed} == {
            "llama-3.1-70b": None,
            "qwen3-32b": None,
            "llama-3.1-70b:sql": "llama-3.1-70b",
        }
        body = {"model": "llama-3.1-70b:sql", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        answer = await gateway.post("/chat/completions", json=body)
        assert (answer.status_code, answer.json()["model"]) == (200, "llama-3.1-70b:sql")
        answer = await gateway.post("/chat/completions", json=body | {"model": "qwen3-32b:sql"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_last_instance_of_an_adapter_is_not_drained(stack: LocalStack) -> None:
    with pytest.raises(FailedPrecondition, match=r"the last that serves adapter sql of llama-3\.1-70b"):
        await anext(drain_instance(FAST[0], stack.addresses[SCHEDULER]))
