"""Workflows on a live stack whose engines are `trtllm-serve` over HTTP, faked, with text by a model's own directory."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionChunk

from hexagent.cli.stack import NATS, LocalStack, StackOptions
from hexagent.client import CallResult, FinishReason, NodeStatus, Segment, WorkflowStatus
from hexagent.core.errors import Unsupported
from tests.integration.test_gateway import CALL, MODEL, SESSION, Gateway, ask, read, running_gateway, text_of, user
from tests.models import write_byte_model

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]
CLUSTER = """
name = "serve-test"
agents = "role"
[[model]]
name = "llama-3.1-70b"
directory = "{model}"
tools = "hermes"
reasoning = "think"
[[pool]]
role = "prefill"
gpu = "h100"
model = "llama-3.1-70b"
tp = 4
[[pool]]
role = "decode"
gpu = "h200"
model = "llama-3.1-70b"
tp = 4
"""
ENGINE = """
[{instance_id}]
kind = "trtllm-serve"
command = ["{python}", "-m", "tests.fakes.trtllm_serve", "--auth-key", "secret"]
environ = {{ PYTHONPATH = "{root}", CUDA_VISIBLE_DEVICES = "" }}
auth_key_file = "{key}"
transfer_timeout_s = 5
"""
FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
ASKS = '<tool_call>\n{"name": "find", "arguments": {"query": "kv cache"}}\n</tool_call>'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    folder = tmp_path_factory.mktemp("serve")
    model = write_byte_model(folder / "model")
    (folder / "key").write_text("secret\n")
    (folder / "cluster.toml").write_text(CLUSTER.format(model=model))
    engines = [
        ENGINE.format(instance_id=instance_id, python=sys.executable, root=ROOT, key=folder / "key")
        for instance_id in ("p-h100-0", "d-h200-0")
    ]
    (folder / "engines.toml").write_text("".join(engines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEXAGENT_ENGINES_FILE", str(folder / "engines.toml"))
        options = StackOptions(str(folder / "cluster.toml"), data_dir=folder / "stack")
        async with (
            LocalStack(options, print) as stack,
            running_gateway(stack.addresses[NATS], stack.address, folder) as gateway,
        ):
            yield gateway


def say(text: str) -> dict[str, str]:
    """What makes the fake model say `text`."""
    return user(f"[[say:{text}]]")


async def streamed(gateway: Gateway, messages: list[Any], **more: Any) -> list[ChatCompletionChunk]:
    created: Any = gateway.openai.chat.completions.create(model=MODEL, messages=messages, stream=True, **more)
    return await read(await created)


async def test_a_whole_answer_has_exact_counts_and_its_reasoning_apart(gateway: Gateway) -> None:
    text = "<think>\nmuch\n</think>\n\nGrüße, 東京 🚀"
    answer, headers = await ask(gateway, [say(text)], max_tokens=200)
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("Grüße, 東京 🚀", "stop")
    assert message.reasoning_content == "\nmuch\n"  # type: ignore[attr-defined] # not OpenAI's own field
    assert answer.usage is not None
    prompt = f"*user\n[[say:{text}]]*\n*assistant\n".encode()  # a token is a byte, or one of ChatML's, here an asterisk
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(text.encode()))
    await gateway.status(headers[SESSION], WorkflowStatus.COMPLETED)
    node = (await gateway.describe(headers[SESSION])).nodes[0]
    assert node.status is NodeStatus.SUCCEEDED


async def test_a_stream_comes_in_whole_characters(gateway: Gateway) -> None:
    text = "<think>so</think>" + "Köln 東京 🚀 " * 20
    chunks = await streamed(gateway, [say(text)], stream_options={"include_usage": True}, max_tokens=2000)
    assert text_of(chunks) == text.removeprefix("<think>so</think>")
    thought = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks if chunk.choices]
    assert "".join(thought) == "so"
    assert len(chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(text.encode())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_text_ends_an_answer(gateway: Gateway, stream: bool) -> None:
    asked: dict[str, Any] = {"max_tokens": 4000, "stop": ["<END>"]}
    text = "One and a half <EN" + "D>" + "never seen " * 200
    if stream:
        chunks = await streamed(gateway, [say(text)], **asked)
        assert text_of(chunks) == "One and a half "
        assert chunks[-1].choices[0].finish_reason == "stop"
        return
    answer, _ = await ask(gateway, [say(text)], **asked)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("One and a half ", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 200


async def test_tools_are_asked_for_answered_and_the_session_goes_on(gateway: Gateway) -> None:
    session = {"x-session-id": "tools"}
    first, one = await ask(
        gateway, [say(f"<think>look</think>\n\nI look.\n{ASKS}")], session, tools=[FIND], max_tokens=500
    )
    choice = first.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"query": "kv cache"})
    history: list[Any] = [
        say(f"<think>look</think>\n\nI look.\n{ASKS}"),
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "it is [[say:found]]"},
    ]
    second, two = await ask(gateway, history, session, tools=[FIND], max_tokens=500)
    assert second.choices[0].message.content == "found"
    assert one[SESSION] == two[SESSION]
    nodes = {node.node_id: node for node in (await gateway.describe(one[SESSION])).nodes}
    assert nodes[two[CALL]].after == (one[CALL],)
    # The second prompt begins as the first one, down to the token: its whole blocks are there still.
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens // 32 * 32 > 200


async def test_an_answer_is_held_to_a_form(gateway: Gateway) -> None:
    answer, _ = await ask(
        gateway, [say('{"a": 1}')], response_format={"type": "json_object"}, max_tokens=50, extra_body=NO_THINKING
    )
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}


async def test_without_tools_in_the_request_a_call_of_one_is_text(gateway: Gateway) -> None:
    answer, _ = await ask(gateway, [say(ASKS)], max_tokens=500)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (ASKS, "stop")


async def test_what_the_engines_lack_is_refused_by_name(gateway: Gateway) -> None:
    async with gateway.stack.workflow() as workflow:
        for options, field in (({"n": 2}, "sampling.n"), ({"logprobs": True}, "sampling.logprobs")):
            with pytest.raises(Unsupported, match=field):
                await workflow.call("hi", **options)
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(gateway, [say("x")], tools=[FIND], tool_choice="required")
    assert caught.value.param == "tool_choice"


async def test_a_workflow_fans_out_and_joins(gateway: Gateway) -> None:
    async with gateway.stack.workflow() as workflow:
        plan = await workflow.call("plan [[say:the plan]]", role="plan")
        parts = await asyncio.gather(*(workflow.call([plan, f"do [[say:part {i}]]"], role="part") for i in range(6)))
        assert [part.text for part in parts] == [f"part {i}" for i in range(6)]
        joined: CallResult = await workflow.call([*parts, Segment("join [[say:all]]")], role="join")
    assert (joined.text, joined.finish_reason) == ("all", FinishReason.STOP)
    assert (joined.prefill_instance, joined.decode_instance) == ("p-h100-0", "d-h200-0")
    assert joined.kv_bytes > 0
    assert joined.times.transfer_end_us >= joined.times.transfer_start_us >= joined.times.prefill_start_us > 0


async def test_an_engine_server_that_is_killed_comes_back_and_calls_end_well(gateway: Gateway) -> None:
    """Its agent survives, starts it again, and what was on it runs again."""

    async def slow() -> str:
        answer, _ = await ask(gateway, [say("word " * 300)], max_tokens=4000)
        return answer.choices[0].message.content or ""

    calls = [asyncio.create_task(slow()) for _ in range(4)]
    await asyncio.sleep(0.3)
    os.kill(server_pid("d-h200-0"), signal.SIGKILL)
    async with asyncio.timeout(60):
        assert await asyncio.gather(*calls) == ["word " * 300] * 4


def server_pid(instance_id: str) -> int:
    """Of the fake server that an agent has started for the instance."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"tests.fakes.trtllm_serve" in command and any(instance_id.encode() in part for part in command):
                return int(entry.name)
    raise LookupError(instance_id)


async def test_a_client_that_leaves_frees_the_engine_within_the_servers_second(gateway: Gateway) -> None:
    body = {"model": MODEL, "messages": [say("on and on " * 2000)], "max_tokens": 30_000}
    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=body, timeout=0.6)
    answer, _ = await ask(gateway, [say("still here")], max_tokens=100)
    assert answer.choices[0].message.content == "still here"
