"""What only the emulated engine does: it pushes, scripts its outputs and moves scaled bytes through the agents."""

import asyncio

from hexagent.core.instance.spec import Role
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import DecodeEvent, Finished, KvPiece
from tests.contract.engines import LINK, assert_empty, decoded, emulated, handed_over, request_of, spec


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
