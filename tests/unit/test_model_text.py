"""Calls as token ids, and ids as what a call says, for engines that speak ids."""

import asyncio
import threading
from pathlib import Path

import pytest

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.core.errors import Unsupported
from hexagent.core.instance.spec import ClusterSpec, TextSpec
from hexagent.core.workflow.model import FinishReason
from hexagent.text.model import load_model_text
from hexagent_services.worker_agent.engine import model_text
from hexagent_services.worker_agent.engine.model_text import EngineText, TextThreads, load_texts
from hexagent_services.worker_agent.engine.port import EngineRefused, EngineRequest
from tests.contract.engines import request_of
from tests.models import write_model

CALL = '<tool_call>\n{"name": "find", "arguments": {"query": "a"}}\n</tool_call>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("qwen"), "qwen")


@pytest.fixture
def text(folder: Path) -> EngineText:
    spec = TextSpec("m", str(folder), "hermes", "think")
    cluster = ClusterSpec("c", (), (), 1, 0, (1, 1), (spec,))
    texts = load_texts(cluster, ("m", "without"), TextThreads())
    assert list(texts) == ["m"]
    return texts["m"]


def request(*segments: tuple[int, int, str], **call: object) -> EngineRequest:
    made = call_pb2.CallRequest(model="m", **call)  # type: ignore[arg-type] # whatever fields the test sets
    for role, kind, body in segments:
        segment = made.segments.add(
            role=enums_pb2.SegmentRole.ValueType(role), kind=enums_pb2.SegmentKind.ValueType(kind)
        )
        segment.body.text = body.encode()
    return request_of("a")._replace(call=made)


USER = (enums_pb2.SEGMENT_ROLE_USER, enums_pb2.SEGMENT_KIND_TEXT, "hi")
FIND = call_pb2.Tool(name="find", description="finds", json_schema='{"type":"object"}')


async def rendered(text: EngineText, asked: EngineRequest, folder: Path) -> str:
    ids = await text.prompt_ids(asked)
    return load_model_text(folder).tokenizer.decode(list(ids), skip_special_tokens=False)


async def test_segments_become_a_conversation(text: EngineText, folder: Path) -> None:
    assistant, tool = enums_pb2.SEGMENT_ROLE_ASSISTANT, enums_pb2.SEGMENT_ROLE_TOOL
    message, output = enums_pb2.SEGMENT_KIND_MESSAGE, enums_pb2.SEGMENT_KIND_OUTPUT
    asked = request(
        USER,
        (assistant, message, '{"content":"","tool_calls":[{"arguments":{"query":"a"},"name":"find"}]}'),
        (tool, message, '{"content":"42","tool_call_id":"x"}'),
        (assistant, output, "<think>x</think>\n\nfour"),
        tools=[FIND],
        template_options='{"enable_thinking": false}',
    )
    asked = asked._replace(delivered_text=b"so", delivered_tokens=1)
    assert await rendered(text, asked, folder) == (
        '<|im_start|>system\n<tools>\n{"type": "function", "function": {"name": "find", "description": "finds",'
        ' "parameters": {"type": "object"}}}\n</tools><|im_end|>\n<|im_start|>user\nhi<|im_end|>\n'
        f"<|im_start|>assistant\n\n{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nfour<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nso"
    )
    asked.call.tool_choice.mode = call_pb2.ToolChoice.MODE_NONE
    assert "<tools>" not in await rendered(text, asked, folder)


async def test_raw_prompts_see_no_template(text: EngineText, folder: Path) -> None:
    raw = (enums_pb2.SEGMENT_ROLE_RAW, enums_pb2.SEGMENT_KIND_TEXT, "once upon")
    asked = request(raw, USER)
    ids = asked.call.segments.add(role=enums_pb2.SEGMENT_ROLE_RAW, kind=enums_pb2.SEGMENT_KIND_TOKEN_IDS)
    ids.body.token_ids.extend([5, 6])
    assert (await text.prompt_ids(asked))[-2:] == (5, 6)
    assert (await rendered(text, asked, folder)).startswith("once uponhi")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"tools": [FIND], "tool_choice": call_pb2.ToolChoice(mode=call_pb2.ToolChoice.MODE_REQUIRED)},
         "UNSUPPORTED_TOOL_CHOICE"),
        ({"tools": [call_pb2.Tool(name="a", strict=True)]}, "UNSUPPORTED_STRICT_TOOL"),
    ],
)  # fmt: skip
async def test_what_nothing_enforces_is_refused_by_name(text: EngineText, call: dict[str, object], reason: str) -> None:
    with pytest.raises(Unsupported) as caught:
        await text.prompt_ids(request(USER, **call))
    assert caught.value.reason == reason


async def test_the_queue_is_bounded_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_text, "WAITING_MAX", 3)
    threads, gate = TextThreads(), threading.Event()
    waiting = [asyncio.create_task(threads.run(gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(EngineRefused, match="TEXT_QUEUE_FULL"):
        await threads.run(gate.wait)
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 3
    assert await threads.run(lambda: 1) == 1
    await threads.close()


@pytest.mark.parametrize(
    ("said", "stop", "tools", "text_", "finish"),
    [
        ("It is four.", (), (), "It is four.", FinishReason.STOP),
        ("It is four.", ("fou",), (), "It is ", FinishReason.STOP),
        (f"<think>so</think>\n\n{CALL}", (), (FIND,), f"<think>so</think>\n\n{CALL}", FinishReason.TOOL_CALLS),
        (CALL, (), (), CALL, FinishReason.STOP),
        (CALL, (), (call_pb2.Tool(name="other"),), CALL, FinishReason.STOP),
    ],
)
async def test_outputs(
    text: EngineText, folder: Path, said: str, stop: tuple[str, ...], tools: tuple[call_pb2.Tool, ...], text_: str,
    finish: FinishReason,
) -> None:  # fmt: skip
    asked = request(USER, tools=tools, sampling=call_pb2.SamplingParams(stop=stop))
    ids = load_model_text(folder).tokenizer.encode(said).ids
    for stretch in (1, 5):
        decoder, shown = text.decoder(asked), b""
        for at in range(0, len(ids), stretch):
            if not decoder.stopped:
                shown += decoder.feed(ids[at : at + stretch])
        rest, ended = decoder.end(FinishReason.STOP, shown)
        assert (shown + rest, ended) == (text_.encode(), finish)
        assert decoder.stopped == bool(stop)


async def test_llamas_calls_of_tools_are_the_whole_output(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama")
    model = load_model_text(folder)
    text = EngineText(model, TextSpec("m", str(folder), "llama3-json"), TextThreads())
    for said, finish in (
        ('<|python_tag|>{"name": "find", "parameters": {"query": "a"}}', FinishReason.TOOL_CALLS),
        ('see {"name": "find", "parameters": {"query": "a"}}', FinishReason.STOP),
    ):
        decoder = text.decoder(request(USER, tools=[FIND]))
        shown = decoder.feed(model.tokenizer.encode(said).ids)
        rest, ended = decoder.end(FinishReason.STOP, shown)
        assert ((shown + rest).decode(), ended) == (said.removeprefix("<|python_tag|>"), finish)
