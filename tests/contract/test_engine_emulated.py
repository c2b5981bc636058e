"""What only the emulated engine does: it pushes, scripts its outputs and moves scaled bytes through the agents."""

import asyncio

import pytest

from hexagent.core.instance.spec import FlipWay, Role, RoleFlip
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import DecodeEvent, EngineRefused, Finished, KvPiece
from tests.contract.engines import CLOCK, LINK, assert_empty, decoded, emulated, handed_over, request_of, spec


async def test_scaled_bytes_of_the_kv_are_sent() -> None:
    source = emulated(spec("p", Role.PREFILL))
    request = request_of("a", prompt_tokens=40_000)
    prefilled = await source.prefill(request)
    pieces = [p async for p in source.send_kv(request.ticket, "d", LINK)]
    assert len(pieces) > 1
    assert sum(len(p.data) for p in pieces) == prefilled.kv_bytes // 4096
    await assert_empty(source)


async def test_under_push_blocks_are_reserved_while_prefill_runs() -> None:
    source, target = (
        emulated(spec(name, role)._replace(profile="push")) for name, role in (("p", Role.PREFILL), ("d", Role.DECODE))
    )
    request = request_of("a", prompt_tokens=20_000)
    began, asked = asyncio.Event(), asyncio.Event()
    prefill = asyncio.create_task(source.prefill(request, began.set))
    await began.wait()
    assert not prefill.done()
    target.reserve(request, "p", False)
    prefilled = await prefill
    assert target.load().kv_used_blocks > 0

    async def fetch() -> KvPiece:
        asked.set()
        return [piece async for piece in source.send_kv(request.ticket, "d", LINK)][-1]

    async def decode() -> list[DecodeEvent]:
        return [event async for event in target.decode(request, handed_over(source, request, prefilled), fetch)]

    decoding = asyncio.create_task(decode())
    await asyncio.sleep(0.02)
    assert not asked.is_set()
    target.kv_ready(request.ticket)
    finished = (await decoding)[-1]
    assert isinstance(finished, Finished)
    assert finished.output_tokens == 12
    await assert_empty(source, target)


async def test_scripted_tool_calls_come_out() -> None:
    source, target = emulated(spec("p", Role.PREFILL)), emulated(spec("d", Role.DECODE))
    request = request_of("a", tool_calls='[{"name": "search", "arguments": {"q": "x"}}]')
    finished = (await decoded(source, target, request, await source.prefill(request)))[-1]
    assert isinstance(finished, Finished)
    assert finished.finish is FinishReason.TOOL_CALLS
    assert finished.text == b'{"tool_calls":[{"name":"search","arguments":{"q":"x"}}]}'
    await assert_empty(source, target)


@pytest.mark.parametrize("restarts", [True, False])
async def test_another_role_takes_what_is_configured(restarts: bool) -> None:
    flip = RoleFlip(FlipWay.RESTART, 2 * US_PER_S) if restarts else None
    engine, target = emulated(spec("p", Role.DECODE)._replace(flip=flip)), emulated(spec("d", Role.DECODE))
    await decoded(engine, target, request_of("a"), await engine.prefill(request_of("a")))
    began_us = CLOCK.now_us()
    changing = asyncio.create_task(engine.change_role(Role.PREFILL))
    await asyncio.sleep(0)
    if restarts:
        with pytest.raises(EngineRefused, match="ENGINE_DOWN"):
            await engine.prefill(request_of("b"))
    await changing
    assert (CLOCK.now_us() - began_us >= 2 * US_PER_S) == restarts
    assert engine.spec.role is Role.PREFILL
    prefilled = await engine.prefill(request_of("a"))
    assert (prefilled.cached_tokens > 0) != restarts


async def test_what_an_engine_holds_is_lost_when_it_is_started_again_for_another_role() -> None:
    engine = emulated(spec("p", Role.PREFILL)._replace(flip=RoleFlip(FlipWay.RESTART, 1)))
    prefill = asyncio.create_task(engine.prefill(request_of("a", prompt_tokens=40_000)))
    await asyncio.sleep(0)
    await engine.change_role(Role.DECODE)
    with pytest.raises(EngineRefused, match="ENGINE_LOST"):
        await prefill
    await assert_empty(engine)
