"""Engines under test, and calls that each of them answers alike."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.core.estimate.tables import load_table
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import PrefixSegment
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec, Role
from hexagent.runtime.clock import ModelClock
from hexagent_services.worker_agent.engine.emulated import EmulatedEngine
from hexagent_services.worker_agent.engine.faults import FaultyEngine, parse_faults
from hexagent_services.worker_agent.engine.host_process import HostProcess
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    Engine,
    EngineRequest,
    HandedOver,
    KvPiece,
    Prefilled,
)
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from hexagent_services.worker_agent.engine.trtllm_serve.host import ServeHost
from tests.fakes.byte_text import ByteText
from tests.fakes.trtllm_serve import InThisProcess

MODEL = "llama-3.1-8b"
LINK = LinkSpec(25_000_000_000, 5_000)
CLOCK = ModelClock(time.time_ns(), time_scale=20.0)  # of all engines, so that their times can be compared
SETTLE_S = 5.0  # wall time


def spec(instance_id: str, role: Role, kv_blocks: int = 4_000) -> InstanceSpec:
    return InstanceSpec(
        instance_id, "h100", 1, role, MODEL, "bf16", "bf16", kv_blocks, 32, 128, 8192, LINK, "trtllm-1.2.1", True
    )


def emulated(instance: InstanceSpec) -> EmulatedEngine:
    table = load_table("h100", MODEL, 1)
    model = InstanceModel(
        instance, PROFILES[instance.profile], table, table.kv_bytes_per_token, Truth(seed=7, noise_ppm=50_000)
    )
    return EmulatedEngine(instance, model, CLOCK, table.kv_bytes_per_token, byte_divisor=4096)


def faulty(instance: InstanceSpec) -> Engine:
    """Under a plan whose faults are not due; the port must not show it."""
    faults = parse_faults("drop-hand-off:*=1@1000, lie:*=3@1000, stall-transfer:p=9@1000")
    return FaultyEngine(emulated(instance), faults, Truth(seed=7), ModelClock(time.time_ns()))


FAKES = Path(__file__).parents[1] / "fakes"
WALL_CLOCK = ModelClock(time.time_ns())
_FOLDER = tempfile.TemporaryDirectory(prefix="hexagent-hosts-")
LOGS = Path(_FOLDER.name)


def trtllm(instance: InstanceSpec) -> TrtllmEngine:
    """TensorRT-LLM in its host, which finds the fake one."""
    environ = {"PYTHONPATH": str(FAKES)}
    host = HostProcess(sys.executable, environ, LOGS / f"{instance.instance_id}.log")
    options = TrtllmOptions("/models/none", max_seq_tokens=64_000, transfer_timeout_s=1.5, grace_s=0.1)
    kv_bytes = load_table("h100", MODEL, 1).kv_bytes_per_token
    return TrtllmEngine(instance, host, ByteText(), WALL_CLOCK, kv_bytes, options)


def trtllm_serve(instance: InstanceSpec) -> TrtllmEngine:
    """The fake `trtllm-serve`, spoken to over HTTP."""
    host = ServeHost(InThisProcess("secret"), "secret")
    # The server looks once a second whether a client has left.
    options = TrtllmOptions("/models/none", max_seq_tokens=64_000, transfer_timeout_s=1.0, grace_s=0.05)
    kv_bytes = load_table("h100", MODEL, 1).kv_bytes_per_token
    return TrtllmEngine(instance, host, ByteText(), WALL_CLOCK, kv_bytes, options)


ENGINES: dict[str, Callable[[InstanceSpec], Engine]] = {
    "emulated": emulated,
    "faulty": faulty,
    "trtllm": trtllm,
    "trtllm-serve": trtllm_serve,
}


def request_of(
    node: str, prompt_tokens: int = 200, output_tokens: int = 12, max_tokens: int = 64, **options: str
) -> EngineRequest:
    """A call of `output_tokens`. The emulated engine is told how many by an option, models that read are by the end of
    the prompt, which is text of one byte a token."""
    call = call_pb2.CallRequest(model=MODEL, stream=options.pop("stream", "") == "yes")
    call.sampling.max_tokens = max_tokens
    call.engine_options["emulated.output_tokens"] = str(output_tokens)
    for key, value in options.items():
        call.engine_options[f"emulated.{key}"] = value
    mark = f"[[{output_tokens}]]"
    text = (f"{node} " * prompt_tokens)[: prompt_tokens - len(mark)] + mark
    body = call_pb2.SegmentBody(
        role=enums_pb2.SEGMENT_ROLE_USER, kind=enums_pb2.SEGMENT_KIND_TEXT, text=text.encode(), tokens=prompt_tokens
    )
    call.segments.add(role=body.role, kind=body.kind, body=body)
    return EngineRequest(
        Ticket(CallId("w", node), 1, 1),
        call,
        (PrefixSegment(f"digest-{node}", prompt_tokens),),
        prompt_tokens,
        max_tokens,
        max_tokens,
        0,
    )


def handed_over(source: Engine, request: EngineRequest, prefilled: Prefilled) -> HandedOver:
    whole = prefilled._replace(first_text=request.delivered_text + prefilled.first_text)
    return HandedOver(source.spec.instance_id, whole, True)


async def decoded(source: Engine, target: Engine, request: EngineRequest, prefilled: Prefilled) -> list[DecodeEvent]:
    """Reserve, ask for the KV, generate."""
    target.reserve(request, source.spec.instance_id, True)

    async def fetch() -> KvPiece:
        pieces = [p async for p in source.send_kv(request.ticket, target.spec.instance_id, target.spec.link)]
        assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
        return pieces[-1]

    return [event async for event in target.decode(request, handed_over(source, request, prefilled), fetch)]


async def eventually(condition: Callable[[], bool]) -> None:
    """Within `SETTLE_S`; for what an engine tells a little later."""
    async with asyncio.timeout(SETTLE_S):
        while not condition():  # noqa: ASYNC110 - an engine has no event for every one of them
            await asyncio.sleep(0.005)


def is_empty(engine: Engine) -> bool:
    load = engine.load()
    return (load.kv_used_blocks, load.queued, load.pinned, load.waiting, load.decoding, load.transferring) == (0,) * 6


async def assert_empty(*engines: Engine) -> None:
    for engine in engines:
        await eventually(lambda engine=engine: is_empty(engine))  # type: ignore[misc]
