"""The gateway in front of a whole stack of real processes, as the official OpenAI client sees it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletion, ChatCompletionChunk

import hexagent.client
from hexagent.cli.stack import NATS, LocalStack, StackOptions
from hexagent.client import Client, NodeStatus, WorkflowDescription, WorkflowStatus
from hexagent.core.tracing import span_id_of
from hexagent.runtime.tether import tethered

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

MODEL = "llama-3.1-70b"
BODY_BYTES_MAX = 100_000
SESSION = "x-hexagent-workflow-id"
CALL = "x-hexagent-call-id"
SPANS = "spans.jsonl"
CLUSTER = """
name = "gateway-test"
seed = 1
time_scale = 10.0
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


class Gateway(NamedTuple):
    """A running gateway and the ways to it."""

    process: asyncio.subprocess.Process
    openai: openai.AsyncOpenAI
    http: httpx.AsyncClient
    stack: Client  # of the tracker behind it
    folder: Path  # of its files

    async def describe(self, workflow_id: str) -> WorkflowDescription:
        return await self.stack.describe(workflow_id)

    async def status(self, workflow_id: str, wanted: WorkflowStatus) -> None:
        """Wait until the workflow is in this status."""

        async def reached() -> bool:
            return (await self.describe(workflow_id)).workflow.status is wanted

        await until(reached)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    cluster = folder / "cluster.toml"
    cluster.write_text(CLUSTER, encoding="utf-8")
    async with (
        LocalStack(StackOptions(str(cluster), data_dir=folder / "stack", trace_file=folder / SPANS), print) as stack,
        running_gateway(stack.addresses[NATS], stack.address, folder) as gateway,
    ):
        yield gateway


@contextlib.asynccontextmanager
async def running_gateway(
    nats_url: str, tracker_address: str, folder: Path, **settings: object
) -> AsyncIterator[Gateway]:
    """A gateway process; it must end well when told to."""
    environ = {
        **os.environ,
        "HEXAGENT_NATS_URL": nats_url,
        "HEXAGENT_TRACKER_ADDRESS": tracker_address,
        "HEXAGENT_BODY_BYTES_MAX": str(BODY_BYTES_MAX),
        "HEXAGENT_DATA_DIR": str(folder),
        **{f"HEXAGENT_{name.upper()}": str(value) for name, value in settings.items()},
    }
    log = folder / "gateway.log"
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *tethered((sys.executable, "-m", "hexagent_services.gateway")),
            env=environ, stdout=asyncio.subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        assert line, log.read_text(encoding="utf-8")[-2000:]
        url = f"http://127.0.0.1:{json.loads(line)['http_port']}"
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http,
            hexagent.client.connect(tracker_address) as tracker,
        ):
            yield Gateway(process, client, http, tracker, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await process.wait() == 0, log.read_text(encoding="utf-8")[-2000:]
    assert "Traceback" not in log.read_text(encoding="utf-8")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.02)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def scripted(text: str = "", tokens: int = 0, **more: Any) -> dict[str, Any]:
    """The extra body that makes the emulated engine say `text`, or go on for so many tokens."""
    options = {"emulated.text": text} if text else {}
    if tokens:
        options["emulated.output_tokens"] = str(tokens)
    return {"hexagent": {"engine_options": options, **more}}


async def ask(
    gateway: Gateway, messages: list[Any], headers: dict[str, str] | None = None, **more: Any
) -> tuple[ChatCompletion, httpx.Headers]:
    raw = await gateway.openai.chat.completions.with_raw_response.create(
        model=MODEL, messages=messages, extra_headers=headers, **more
    )
    return raw.parse(), httpx.Headers(dict(raw.headers))


async def read(stream: openai.AsyncStream[ChatCompletionChunk]) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# -- answers -----------------------------------------------------------------------------------------------------


async def test_models_and_health(gateway: Gateway) -> None:
    assert [model.id for model in (await gateway.openai.models.list()).data] == [MODEL]
    assert (await gateway.openai.models.retrieve(MODEL)).owned_by == "hexagent"
    assert (await gateway.http.get("/healthz")).status_code == 200
    assert (await gateway.http.get("/readyz")).json()["status"] == "ready"
    missing = await gateway.http.get("/v2/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (await gateway.http.get("/v1/chat/completions")).status_code == 405


async def test_a_whole_answer(gateway: Gateway) -> None:
    answer, headers = await ask(
        gateway, [user("hello")], {"x-request-id": "mine"}, temperature=0.5, extra_body=scripted("Grüße, Welt")
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Grüße, Welt", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert headers["x-request-id"] == "mine"
    # Without a session the request is a workflow of its own, finished with it.
    await gateway.status(headers[SESSION], WorkflowStatus.COMPLETED)
    described = await gateway.describe(headers[SESSION])
    assert [node.node_id for node in described.nodes] == [headers[CALL]]
    cut, _ = await ask(gateway, [user("hello")], max_tokens=2, extra_body=scripted("Grüße, Welt"))
    assert cut.choices[0].finish_reason == "length"


async def test_a_stream(gateway: Gateway) -> None:
    text = "Köln 東京 🚀 " * 30
    stream = await gateway.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "say"}], stream=True,
        stream_options={"include_usage": True}, extra_body=scripted(text),
    )  # fmt: skip
    chunks = await read(stream)
    assert text_of(chunks) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len(chunks) > 5


async def test_a_prompt_too_large_to_travel_in_one_piece_with_its_call(gateway: Gateway) -> None:
    answer, _ = await ask(gateway, [user("long " * 18_000)], extra_body=scripted("read"))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 20_000


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls(gateway: Gateway, stream: bool) -> None:
    calls = [{"name": "find", "arguments": {"q": "kv cache"}}, {"name": "stop", "arguments": {}}]
    options = {"emulated.tool_calls": json.dumps(calls)}
    more: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
                  for name in ("find", "stop")],
        "extra_body": {"hexagent": {"engine_options": options}},
    }  # fmt: skip
    if not stream:
        answer, _ = await ask(gateway, [user("find it")], **more)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        asked = answer.choices[0].message.tool_calls or []
        found = [(call.function.name, call.function.arguments) for call in asked if call.type == "function"]
    else:
        chunks = await read(
            await gateway.openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "find it"}], stream=True, **more
            )
        )
        assert text_of(chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        pieces: dict[int, list[str]] = {}
        for chunk in chunks:
            for piece in chunk.choices[0].delta.tool_calls or []:
                assert piece.function is not None
                pieces.setdefault(piece.index, []).append(
                    (piece.function.name or "") + (piece.function.arguments or "")
                )
        found = [(parts[0], "".join(parts[1:])) for _, parts in sorted(pieces.items())]
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        (call["name"], call["arguments"]) for call in calls
    ]


# -- sessions ----------------------------------------------------------------------------------------------------


async def test_requests_of_a_session_are_one_workflow(gateway: Gateway) -> None:
    session = {"x-dynamo-session-id": "conversation", "x-dynamo-parent-session-id": "above"}
    question = user("plan " * 400)
    plan = scripted("first do this", role="plan", workflow_class="chat", slo_scale=3)
    _, first = await ask(gateway, [question], session | {"x-dynamo-request-priority": "7"}, extra_body=plan)
    history = [question, {"role": "assistant", "content": "first do this"}, user("go on")]
    answer, second = await ask(
        gateway, history, session | {"x-dynamo-session-final": "true"}, service_tier="flex",
        extra_body=scripted("done", role="work"),
    )  # fmt: skip
    assert second[SESSION] == first[SESSION]
    await gateway.status(first[SESSION], WorkflowStatus.COMPLETED)
    described = await gateway.describe(first[SESSION])
    row = described.workflow
    assert (row.workflow_class, row.slo_scale, row.priority, row.calls) == ("chat", 3.0, -50, 2)
    assert row.metadata == {"session.schema": "dynamo", "session.id": "conversation", "session.parent": "above"}
    nodes = {node.node_id: node for node in described.nodes}
    assert (nodes[first[CALL]].role, nodes[second[CALL]].role) == ("plan", "work")
    assert nodes[second[CALL]].after == (first[CALL],)
    # The first call's prompt is a prefix of the second one's.
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 480
    # The name can be used again, for another workflow.
    _, third = await ask(gateway, [user("again")], session, extra_body=scripted("hi"))
    assert third[SESSION] == f"{first[SESSION]}.2"


async def test_tool_results_and_streams_continue_a_session(gateway: Gateway) -> None:
    session = {"x-session-id": "with tools"}
    calls = [{"name": "find", "arguments": {"q": "kv", "n": 2}}]
    options = {"hexagent": {"engine_options": {"emulated.tool_calls": json.dumps(calls)}}}
    answer, first = await ask(gateway, [user("look")], session, extra_body=options)
    history: list[Any] = [
        user("look"),
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": "x", "content": "found"},
    ]
    raw = await gateway.openai.chat.completions.with_raw_response.create(
        model=MODEL, messages=history, stream=True, extra_headers=session, extra_body=scripted("thanks"),
    )  # fmt: skip
    assert text_of(await read(raw.parse())) == "thanks"
    second = raw.headers[CALL]
    history += [{"role": "assistant", "content": "thanks"}, user("more")]
    named = scripted("x", after=[first[CALL]])
    _, third = await ask(gateway, history, session, extra_body=named)
    assert raw.headers[SESSION] == third[SESSION] == first[SESSION]
    parents = {node.node_id: node.after for node in (await gateway.describe(first[SESSION])).nodes}
    assert parents[second] == (first[CALL],)
    assert parents[third[CALL]] == tuple(sorted((first[CALL], second)))


async def test_a_session_whose_workflow_has_ended_gets_another(gateway: Gateway) -> None:
    session = {"x-workflow-id": "long lived"}
    _, first = await ask(gateway, [user("a")], session, extra_body=scripted("one"))
    await gateway.stack.cancel(first[SESSION], "from outside")
    history = [user("a"), {"role": "assistant", "content": "one"}, user("b")]
    results = await asyncio.gather(*(ask(gateway, history, session, extra_body=scripted("two")) for _ in range(3)))
    assert {headers[SESSION] for _, headers in results} == {f"{first[SESSION]}.2"}
    nodes = (await gateway.describe(f"{first[SESSION]}.2")).nodes
    assert [node.after for node in nodes] == [(), (), ()]


async def test_a_workflow_hangs_under_the_span_of_the_request_that_starts_it(gateway: Gateway) -> None:
    session, trace_id = {"x-session-id": "traced"}, "0af7651916cd43dd8448eb211c80319c"
    started = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
    later = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-dynamo-session-final": "true"}
    _, headers = await ask(gateway, [user("a")], session | started, extra_body=scripted("one"))
    await ask(gateway, [user("b")], session | later, extra_body=scripted("two"))
    spans: list[dict[str, Any]] = []

    async def ended() -> bool:
        lines = (gateway.folder / SPANS).read_text(encoding="utf-8").splitlines()
        spans[:] = [span for span in map(json.loads, lines) if span["trace_id"] == trace_id]
        return any(span["name"].startswith("invoke_workflow") for span in spans)

    await until(ended)
    root = spans[-1]
    assert root["parent_span_id"] == "00f067aa0ba902b7"
    assert root["span_id"] == f"{span_id_of(headers[SESSION]):016x}"
    assert sum(span["parent_span_id"] == root["span_id"] for span in spans) == 2


async def test_tenants_have_sessions_of_their_own(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(gateway, [user("a")], {"x-tenant-id": "nobody", "x-session-id": "s"})
    assert caught.value.code == "unknown_tenant"
    assert caught.value.param == "tenant"


# -- leaving -----------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_a_stream_cancels_its_call(gateway: Gateway) -> None:
    raw = await gateway.openai.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "talk"}], stream=True, max_tokens=20_000,
        extra_body=scripted(tokens=20_000),
    )  # fmt: skip
    stream = raw.parse()
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await gateway.status(raw.headers[SESSION], WorkflowStatus.CANCELLED)
    described = await gateway.describe(raw.headers[SESSION])
    assert described.workflow.reason == "CLIENT_DISCONNECTED"
    assert described.nodes[0].status is NodeStatus.CANCELLED


async def test_a_client_that_leaves_cancels_its_call_only(gateway: Gateway) -> None:
    session = {"x-session-id": "left"}
    _, headers = await ask(gateway, [user("a")], session, extra_body=scripted("one"))
    body = {"model": MODEL, "messages": [user("b")], "max_tokens": 20_000, **scripted(tokens=20_000)}
    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=body, headers=session, timeout=0.5)

    async def cancelled() -> bool:
        nodes = (await gateway.describe(headers[SESSION])).nodes
        return [node.status for node in nodes] == [NodeStatus.SUCCEEDED, NodeStatus.CANCELLED]

    await until(cancelled)
    assert (await gateway.http.get("/readyz")).json()["requests"] == 0
    await ask(gateway, [user("c")], session, extra_body=scripted("goes on"))


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-17"}, 404, "model"),
        ({"n": 2}, 400, "n"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"max_tokens": 5_000_000}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
         "messages[0].content[0].type"),
        ({"messages": [user("x" * BODY_BYTES_MAX)]}, 413, "body"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, 400, "tools[1].name"),
        ({"tool_choice": "required"}, 400, "tool_choice.mode"),
        ({"hexagent": {"after": ["nobody"]}}, 400, "hexagent.after[0]"),
        ({"hexagent": {"role": "two words"}}, 400, "hexagent.role"),
        ({"hexagent": {"engine_options": {"nonsense": "1"}}}, 400, "hexagent.engine_options"),
        ({"stream": True, "hexagent": {"workflow_class": "?"}}, 400, "hexagent.workflow_class"),
    ],
)  # fmt: skip
async def test_bad_requests_are_refused_by_name(
    gateway: Gateway, fields: dict[str, Any], status: int, param: str
) -> None:
    body = {"model": MODEL, "messages": [user("hi")], **fields}
    answer = await gateway.http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert "nodes[" not in error["message"]
    assert answer.headers["x-request-id"]


async def test_a_workflow_cancelled_from_outside_ends_its_stream_with_an_error(gateway: Gateway) -> None:
    raw = await gateway.openai.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "talk"}], stream=True, max_tokens=20_000,
        extra_body=scripted(tokens=20_000),
    )  # fmt: skip
    await gateway.stack.cancel(raw.headers[SESSION], "enough")
    with pytest.raises(openai.APIError) as caught:
        await read(raw.parse())
    assert caught.value.code == "workflow_cancelled"
