"""Engines on the fake library in one process and in virtual time."""

from typing import Any, NamedTuple

from hexagent.core.instance.spec import Lora, Role
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    EngineRequest,
    Finished,
    KvPiece,
    Prefilled,
)
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from hexagent_services.worker_agent.engine_host.library import Library
from tests.contract.engines import LINK, handed_over, spec
from tests.fakes.byte_text import ByteText
from tests.fakes.local_host import LocalHost
from tests.fakes.virtual_loop import LoopClock

ADAPTER = Lora("sql", 16, "/adapters/sql")
OPTIONS = TrtllmOptions("/models/none", max_seq_tokens=2_000, transfer_timeout_s=0.5, grace_s=0.1)


class Side(NamedTuple):
    """An engine, and the host under it."""

    engine: TrtllmEngine
    host: LocalHost

    @property
    def llm(self) -> Any:
        return self.host.llm


async def started(
    name: str,
    library: Library,
    kv_blocks: int = 40,
    options: TrtllmOptions = OPTIONS,
    profile: str = "trtllm-1.2.1",
) -> Side:
    """Prefill for names with p, else decode."""
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    host = LocalHost(library)
    instance = spec(name, role, kv_blocks)._replace(profile=profile, loras=(ADAPTER,), max_loras=1)
    engine = TrtllmEngine(instance, host, ByteText(), LoopClock(), 131_072, options)
    await engine.start()
    return Side(engine, host)


async def decode(source: Side, target: Side, request: EngineRequest, prefilled: Prefilled) -> list[DecodeEvent]:
    """Reserve, pull, generate."""
    target.engine.reserve(request, source.engine.spec.instance_id, True)

    async def fetch() -> KvPiece:
        return [piece async for piece in source.engine.send_kv(request.ticket, "d", LINK)][-1]

    handed = handed_over(source.engine, request, prefilled)
    return [event async for event in target.engine.decode(request, handed, fetch)]


def finished(events: list[DecodeEvent]) -> Finished:
    end = events[-1]
    assert isinstance(end, Finished)
    return end
