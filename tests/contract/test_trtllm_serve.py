"""`trtllm-serve` as an engine host: what it is asked, what it costs to leave it, and how its end is noticed."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import Unsupported
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.port import (
    DecodeStarted,
    Engine,
    EngineAborted,
    EngineRefused,
    Finished,
    KvPiece,
)
from hexagent_services.worker_agent.engine.sampling import response_format_of
from hexagent_services.worker_agent.engine.supervision import bring_up
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from hexagent_services.worker_agent.engine.trtllm_serve import api, host
from hexagent_services.worker_agent.engine.trtllm_serve.api import Refused, ServeApi, completion, params_of, state_of
from hexagent_services.worker_agent.engine.trtllm_serve.host import ServeHost
from hexagent_services.worker_agent.engine.trtllm_serve.process import ServeProcess, configuration
from hexagent_services.worker_agent.engine.trtllm_serve.readers import PerfMetrics
from hexagent_services.worker_agent.engine_host.frames import Frame
from tests.contract import test_engine_conformance as suite
from tests.contract.engines import (
    MODEL,
    WALL_CLOCK,
    assert_empty,
    decoded,
    eventually,
    handed_over,
    is_empty,
    request_of,
    spec,
    trtllm,
)
from tests.fakes.byte_text import ByteText
from tests.fakes.tensorrt_llm.kv import BYTES_PER_TOKEN
from tests.fakes.trtllm_serve import InThisProcess

Make = Callable[..., Awaitable[TrtllmEngine]]
OPTIONS = TrtllmOptions("/models/none", max_seq_tokens=64_000, transfer_timeout_s=1.0, grace_s=0.05)


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    engines: list[TrtllmEngine] = []

    async def made(
        role: Role, launcher: InThisProcess | None = None, options: TrtllmOptions = OPTIONS, **more: Any
    ) -> TrtllmEngine:
        server = ServeHost(launcher or InThisProcess(), **more)
        kv_bytes = load_table("h100", MODEL, 1).kv_bytes_per_token
        engine = TrtllmEngine(spec(role.name.lower(), role), server, ByteText(), WALL_CLOCK, kv_bytes, options)
        engines.append(engine)
        await engine.start()
        return engine

    yield made
    for engine in engines:
        await engine.close()


class Launched(InThisProcess):
    """Knows where it listens, and what became of it."""

    url = ""

    async def start(self, order: Any) -> str:
        self.url = await super().start(order)
        return self.url

    async def holds(self) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False) as http:
            found: dict[str, Any] = (await http.get(f"{self.url}/fake")).json()
            return found

    async def fault(self, **faults: Any) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            await http.post(f"{self.url}/fake", json=faults)


async def test_leaving_frees_the_engine_within_a_second_and_interrupts_no_transfer(make: Make) -> None:
    server = Launched()
    source, target = await make(Role.PREFILL), await make(Role.DECODE, server)
    request = request_of("a", output_tokens=20_000, max_tokens=30_000)
    prefilled = await source.prefill(request)
    await server.fault(pull_s=0.1)
    events = target.decode(request, handed_over(source, request, prefilled), _fetch(source, request))
    target.reserve(request, "prefill", True)
    waiting = asyncio.ensure_future(anext(aiter(events)))
    await asyncio.sleep(0.05)
    target.abort(request.ticket)  # while its KV is on the way
    with pytest.raises(EngineAborted):
        await waiting
    assert not is_empty(target)
    await eventually(lambda: is_empty(target))
    held = await server.holds()
    assert (held["used_blocks"], held["cancelled"], held["interrupted_transfers"]) == (0, 1, 0)


async def test_servers_in_processes_of_their_own_conform(tmp_path: Path) -> None:
    """The suite's own tests of hand-off, local prefill and limits, over HTTP between processes."""
    engines: dict[str, TrtllmEngine] = {}
    command = (sys.executable, "-m", "tests.fakes.trtllm_serve")
    kv_bytes = load_table("h100", MODEL, 1).kv_bytes_per_token

    async def started(instance: InstanceSpec) -> Engine:
        name = instance.instance_id
        if name not in engines:
            environ = {"PYTHONPATH": str(Path(__file__).parents[2])}
            server = ServeHost(ServeProcess(command, environ, tmp_path / name))
            engines[name] = TrtllmEngine(instance, server, ByteText(), WALL_CLOCK, kv_bytes, OPTIONS)
            await bring_up(engines[name])
        return engines[name]

    await suite.test_local_prefill_needs_no_hand_off_and_reuses_what_is_there(started)
    await suite.test_prefill_hand_off_decode(started)
    await suite.test_max_tokens_cuts_the_output(started)
    await suite.test_the_first_token_may_be_the_last(started)
    await assert_empty(*engines.values())
    for engine in engines.values():
        await engine.close()


def _fetch(source: TrtllmEngine, request: Any) -> Callable[[], Awaitable[KvPiece]]:
    async def fetch() -> KvPiece:
        return [piece async for piece in source.send_kv(request.ticket, "decode", source.spec.link)][-1]

    return fetch


async def test_transfers_are_measured_by_the_engine(make: Make) -> None:
    server = Launched()
    source, target = await make(Role.PREFILL), await make(Role.DECODE, server)
    await server.fault(pull_s=0.05)
    request = request_of("a")
    events = await decoded(source, target, request, await source.prefill(request))
    started, finished = events[0], events[-1]
    assert isinstance(started, DecodeStarted)
    assert isinstance(finished, Finished)
    assert finished.transfer is not None
    assert finished.transfer.kv_bytes == 200 * BYTES_PER_TOKEN
    assert 50_000 <= finished.transfer.end_us - finished.transfer.start_us < 150_000


async def test_hand_offs_between_a_host_and_a_server(make: Make) -> None:
    """Both pass on the same state."""
    hosts = [trtllm(spec(role.name, role)) for role in (Role.PREFILL, Role.DECODE)]
    await asyncio.gather(*(engine.start() for engine in hosts))
    servers = [await make(role) for role in (Role.PREFILL, Role.DECODE)]
    for source, target in ((hosts[0], servers[1]), (servers[0], hosts[1])):
        request = request_of(source.spec.instance_id)
        finished = (await decoded(source, target, request, await source.prefill(request)))[-1]
        assert isinstance(finished, Finished)
        assert finished.output_tokens == 12
    await asyncio.gather(*(engine.close() for engine in hosts))


async def test_a_server_that_hangs_is_lost_whatever_health_says(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "HEALTH_S", 0.04)
    server = Launched()
    engine = await make(Role.BOTH, server, options=OPTIONS._replace(stall_s=0.4))
    await server.fault(step_s=0.1)  # slow is not hung
    slow = engine.local(request_of("a", output_tokens=8, stream="yes"))
    assert isinstance([event async for event in slow][-1], Finished)
    await server.fault(wedged=True)
    with pytest.raises(EngineRefused, match="ENGINE_LOST"):
        await anext(aiter(engine.local(request_of("b"))))
    assert await engine.lost() == "no progress within 0.4 s on 1 requests"


async def test_a_server_that_ends_is_lost_at_once(make: Make) -> None:
    server = Launched()
    engine = await make(Role.PREFILL, server)
    running = asyncio.create_task(engine.prefill(request_of("a", prompt_tokens=60_000)))
    await asyncio.sleep(0.02)
    await server.stop()
    with pytest.raises(EngineRefused, match="ENGINE_"):
        await running
    async with asyncio.timeout(1):
        await engine.lost()


async def test_a_server_that_somebody_else_has_started_is_used_left_and_used_again(make: Make) -> None:
    server = InThisProcess()
    url = await server.start((await make(Role.BOTH))._load_order())
    for _ in range(2):
        kv_bytes = load_table("h100", MODEL, 1).kv_bytes_per_token
        engine = TrtllmEngine(spec("d", Role.DECODE), ServeHost(url), ByteText(), WALL_CLOCK, kv_bytes, OPTIONS)
        await engine.start()
        assert isinstance([event async for event in engine.local(request_of("a"))][-1], Finished)
        await engine.close()
    await server.stop()


async def test_hand_offs_are_signed_where_the_server_wants_it(make: Make) -> None:
    source = await make(Role.PREFILL)
    target = await make(Role.DECODE, InThisProcess("secret"), auth_key="wrong")
    request = request_of("a")
    with pytest.raises(EngineRefused, match="KV_LOST_ENGINE"):
        await decoded(source, target, request, await source.prefill(request))


async def test_outputs_are_held_to_a_form_on_both_sides(make: Make) -> None:
    servers = Launched(), Launched()
    source, target = await make(Role.PREFILL, servers[0]), await make(Role.DECODE, servers[1])
    request = request_of("a")
    request.call.response_format.kind = call_pb2.ResponseFormat.KIND_JSON_SCHEMA
    request.call.response_format.definition = '{"type": "object"}'
    await decoded(source, target, request, await source.prefill(request))
    for server in servers:
        assert (await server.holds())["formats"] == [{"type": "json", "schema": {"type": "object"}}]
    other = await make(Role.PREFILL, Launched(), guided=False)
    with pytest.raises(Unsupported, match="response_format"):
        await other.prefill(request)
    with pytest.raises(Unsupported, match="cannot be continued"):
        await source.prefill(request._replace(delivered_tokens=1, delivered_text=b"{"))


@pytest.mark.parametrize(("kind", "definition", "wanted"), [
    ("KIND_TEXT", "", None),
    ("KIND_JSON_OBJECT", "", {"type": "json_object"}),
    ("KIND_REGEX", "a+", {"type": "regex", "regex": "a+"}),
    ("KIND_GRAMMAR", 'root ::= "a"', {"type": "ebnf", "ebnf": 'root ::= "a"'}),
])  # fmt: skip
def test_forms_as_the_server_takes_them(kind: str, definition: str, wanted: dict[str, Any] | None) -> None:
    request = request_of("a")
    request.call.response_format.kind = call_pb2.ResponseFormat.Kind.Value(kind)
    request.call.response_format.definition = definition
    assert response_format_of(request, guided=True) == wanted


async def test_a_sample_that_is_older_than_an_end_shows_no_leak() -> None:
    engine = TrtllmEngine(spec("d", Role.DECODE), ServeHost("http://127.0.0.1:1"), ByteText(), WALL_CLOCK, 1, OPTIONS)
    for active, leaked in ((1, 0), (0, 3000)):
        blocks = {"used_blocks": 3000, "max_blocks": 4000, "cached_blocks": 0, "event_gaps": 0}
        blocks |= {"drafted_tokens": 0, "accepted_tokens": 0}
        stats = {"event": "stats", "steps": [], "active": active, **blocks}
        for _ in range(8):
            engine._held.hear(Frame(stats, ()))
        assert engine._held.admission.leaked_blocks == leaked


class OnceApi:
    """Counts readings; each gives what has ended when the server gets to it."""

    def __init__(self, *ended: int) -> None:
        self.readings = 0
        self.ended = list(ended)

    async def perf_metrics(self) -> list[dict[str, Any]]:
        self.readings += 1
        taken, self.ended = self.ended, []
        await asyncio.sleep(0.01)
        times = {"first_scheduled_time": 1.0, "first_token_time": 1.25, "arrival_time": 0.5}
        return [{"ctx_request_id": i, "perf_metrics": {"timing_metrics": times}} for i in taken]


async def test_those_who_ask_for_metrics_at_a_time_share_one_reading() -> None:
    api: Any = OnceApi(1, 2, 3)
    metrics = PerfMetrics(api)
    waiting = [asyncio.create_task(metrics.timing(request)) for request in (1, 2, 3, 4)]
    await asyncio.sleep(0.005)
    api.ended = [4]  # too late for the reading that all have joined
    assert await asyncio.gather(*waiting) == [{"compute_us": 250_000}] * 4
    assert api.readings == 2
    assert await metrics.timing(5) == {}
    assert await metrics.timing(None) == {}


async def test_a_server_that_keeps_no_metrics_is_not_asked_again() -> None:
    api: Any = OnceApi()
    metrics = PerfMetrics(api)
    assert await metrics.timing(1) == {}
    assert await metrics.timing(2) == {}
    assert api.readings == 1


def test_a_completion_takes_ids_and_gives_ids() -> None:
    sampling = {
        "temperature": 0.5,
        "end_id": 7,
        "pad_id": 7,
        "stop_token_ids": [8],
        "ignore_eos": False,
        "max_tokens": 3,
    }
    body = completion("m", [1, 2], sampling)
    assert body["stop_token_ids"] == [7, 8]
    assert (body["prompt"], body["detokenize"], body["max_tokens"], body["temperature"]) == ([1, 2], False, 3, 0.5)
    assert not {"end_id", "pad_id"} & body.keys()
    assert completion("m", [1], sampling | {"ignore_eos": True})["stop_token_ids"] == [8]


def test_states_are_those_of_an_engine_host() -> None:
    given = {"request_type": "context_only", "ctx_request_id": 5, "encoded_opaque_state": "AAE=", "draft_tokens": None}
    state = state_of(given)
    assert json.loads(state) == {"ctx_request_id": 5, "opaque_state": {"base64": "AAE="}}
    known = frozenset({"request_type", "ctx_request_id", "encoded_opaque_state"})
    assert params_of(state, known) == {
        "request_type": "generation_only", "ctx_request_id": 5, "encoded_opaque_state": "AAE=",
    }  # fmt: skip
    with pytest.raises(Refused, match="ctx_request_id"):
        params_of(state, known - {"ctx_request_id"})


def test_the_configuration_is_what_a_host_gives_the_constructor() -> None:
    order = {
        "model": "m", "role": "prefill", "tp": 4, "max_batch": 8, "max_step_tokens": 4096, "max_seq_tokens": 9000,
        "kv_tokens": 64_000, "block_tokens": 32, "prefix_cache": True, "pipelined": False, "transceiver": "UCX",
        "transfer_timeout_ms": 60_000, "equal_progress": True, "arguments": {"max_batch_size": 3}, "max_loras": 1,
        "loras": [{"name": "chess", "rank": 8, "directory": "/chess"}, {"name": "sql", "rank": 16, "directory": "/a"}],
    }  # fmt: skip
    config = json.loads(json.dumps(configuration(order)))
    assert config["cache_transceiver_config"] == {
        "backend": "UCX", "max_tokens_in_buffer": 9000, "kv_transfer_timeout_ms": 60_000,
    }  # fmt: skip
    assert (config["disable_overlap_scheduler"], config["max_batch_size"]) == (True, 3)
    assert config["scheduler_config"] == {
        "capacity_scheduler_policy": "GUARANTEED_NO_EVICT", "context_chunking_policy": "EQUAL_PROGRESS",
    }  # fmt: skip
    assert (config["return_perf_metrics"], config["enable_iter_perf_stats"]) == (True, True)
    lora_config = {"lora_dir": ["/chess"], "max_lora_rank": 16, "max_loras": 1, "max_cpu_loras": 2}
    assert config["lora_config"] == lora_config
    assert "lora_config" not in configuration(order | {"loras": []})
    assert config["perf_metrics_max_requests"] > 0
    assert not {"model", "backend", "skip_tokenizer_init"} & config.keys()


async def test_more_statistics_than_are_worth_reading_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps([json.dumps({"iter": i}) for i in range(100)]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server = ServeApi(f"http://127.0.0.1:{port}", "")
    assert [item["iter"] for item in await server.iterations()] == list(range(100))
    monkeypatch.setattr(api, "TAKEN_BYTES_MAX", 100)
    assert await server.iterations() == []
    await server.close()
    listening.close()
