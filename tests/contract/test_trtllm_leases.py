"""Outputs that an engine is asked for in parts: the same text, fewer blocks at a time, nothing left behind."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hexagent.api.common.v1 import call_pb2
from hexagent.core.ids import Ticket
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.admission import FIRST_RANK
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    EngineAborted,
    EngineRefused,
    EngineRequest,
    Generated,
    Prefilled,
)
from hexagent_services.worker_agent.engine.sampling import LEASE_MIN, lease_of, sampling_arguments
from tests.contract.engines import is_empty, request_of
from tests.contract.trtllm.session import Side, decode, finished, started
from tests.fakes.local_host import fake_library
from tests.fakes.tensorrt_llm.model import END_ID
from tests.fakes.virtual_loop import run_virtually

LIBRARY = fake_library()
OUTPUT = 300


def play(scene: Callable[[Side, Side], Awaitable[None]]) -> None:
    async def run() -> None:
        source, target = await started("p", LIBRARY), await started("d", LIBRARY)
        await scene(source, target)
        await asyncio.sleep(3)
        assert is_empty(target.engine), target.engine.load()
        assert not target.engine._held.by_number
        assert target.llm.blocks.used == 0
        for side in (source, target):
            await side.engine.close()

    run_virtually(run())


def leased(node: str, stream: str = "") -> EngineRequest:
    """Of `OUTPUT` tokens, up to 900; room for 70 is kept at first."""
    request = request_of(node, output_tokens=OUTPUT, max_tokens=900, stream=stream)
    return request._replace(reserve_output_tokens=70)


async def local(side: Side, request: EngineRequest) -> list[DecodeEvent]:
    return [event async for event in side.engine.local(request) if not isinstance(event, Prefilled)]


@pytest.mark.parametrize("stream", ["", "yes"])
def test_the_output_is_that_of_one_request(stream: str) -> None:
    async def scene(source: Side, target: Side) -> None:
        whole = finished(await local(target, request_of("a", output_tokens=OUTPUT, max_tokens=900)))
        asked = len(target.llm.retentions)
        request = leased("a", stream)
        prefilled = await source.engine.prefill(request)
        events = await decode(source, target, request, prefilled)
        end = finished(events)
        assert (end.text, end.output_tokens, end.finish) == (whole.text, OUTPUT, whole.finish)
        assert len(target.llm.retentions) - asked == 4  # 70, 140, 280, 560
        pieces = [event for event in events if isinstance(event, Generated)]
        assert bool(pieces) == bool(stream)
        told = prefilled.first_text + b"".join(piece.text for piece in pieces)
        assert end.text.startswith(told)
        assert 1 + sum(piece.tokens for piece in pieces) == len(told) or not stream
        assert end.transfer is not None
        assert end.transfer.kv_bytes == prefilled.kv_bytes
        assert end.transfer.start_us == prefilled.ended_us
        assert target.engine.take_samples().reused_tokens >= 3 * 192  # whole blocks of what there was

    play(scene)


@pytest.mark.parametrize("output_tokens", [0, 1, 69, 70, 139])
def test_an_output_ends_with_an_end_token_wherever_it_comes(output_tokens: int) -> None:
    async def scene(source: Side, target: Side) -> None:
        for side in (source, target):
            side.engine._text.end_token_ids = (END_ID + 1, END_ID)  # at a limit engines look for the first only
        request = request_of("a", output_tokens=output_tokens, max_tokens=900)._replace(reserve_output_tokens=70)
        prefilled = await source.engine.prefill(request)
        assert (prefilled.finish is FinishReason.STOP) == (output_tokens == 0)
        if prefilled.finish is FinishReason.NONE:
            end = finished(await decode(source, target, request, prefilled))
            assert (end.output_tokens, len(end.text), end.finish) == (output_tokens, output_tokens, FinishReason.STOP)

    play(scene)


def test_no_end_token_ends_what_is_to_go_on_past_them() -> None:
    request = leased("a")
    assert sampling_arguments(request, (7, 8), 70)["stop_token_ids"] == [8]
    request.call.sampling.ignore_eos = True
    assert "stop_token_ids" not in sampling_arguments(request, (7, 8), 70)
    request.call.sampling.stop_token_ids.append(9)
    assert sampling_arguments(request, (7, 8), 70)["stop_token_ids"] == [9]


def test_more_calls_decode_at_a_time() -> None:
    async def most(side: Side, requests: list[EngineRequest]) -> int:
        calls = asyncio.gather(*(local(side, request) for request in requests))
        decoding = 0
        while not calls.done():
            decoding = max(decoding, side.engine.load().decoding)
            await asyncio.sleep(0.001)
        assert {finished(events).output_tokens for events in await calls} == {OUTPUT}
        return decoding

    async def scene(source: Side, target: Side) -> None:
        names = [f"n{i}" for i in range(5)]
        assert await most(target, [request_of(n, output_tokens=OUTPUT, max_tokens=900) for n in names]) == 1
        assert await most(target, [leased(name) for name in names]) >= 3

    play(scene)


async def renewal(side: Side) -> Ticket:
    """Of a call that waits to go on."""
    held = side.engine._held
    while True:
        for claim in held.admission._waiting:
            if claim.rank == FIRST_RANK:
                return held.by_number[claim.number].ticket
        await asyncio.sleep(0.001)


def test_what_has_begun_goes_on_before_what_has_not() -> None:
    async def scene(source: Side, target: Side) -> None:
        rank = -3_000_000  # a call that takes three times its solo time, by the paper's order
        requests = [leased(f"n{i}")._replace(rank=rank) for i in range(6)]
        calls = [asyncio.create_task(local(target, request)) for request in requests]
        ticket = await renewal(target)
        held = target.engine._held
        assert held.runs[ticket].arrived_us > max(r.arrived_us for r in held.runs.values() if not r.renewed)
        assert [claim.rank for claim in held.admission._waiting][-1] == rank
        for call in calls:
            assert finished(await call).output_tokens == OUTPUT

    play(scene)


def test_an_abort_or_a_loss_between_two_leases_leaves_nothing() -> None:
    async def scene(source: Side, target: Side) -> None:
        for lose in (False, True):
            calls = {name: asyncio.create_task(local(target, leased(name))) for name in ("a", "b", "c", "d", "e")}
            ticket = await renewal(target)
            if lose:
                target.engine._held.link.give_up("lost")
            else:
                target.engine.abort(ticket)
            with pytest.raises(EngineRefused if lose else EngineAborted):
                await calls[ticket.call.node_id]
            await asyncio.gather(*calls.values(), return_exceptions=True)
        await target.engine.start()

    play(scene)


def test_leases_are_for_outputs_that_depend_on_their_text_alone() -> None:
    request = leased("a")
    assert lease_of(request) == 70
    assert lease_of(request._replace(reserve_output_tokens=3)) == LEASE_MIN
    assert lease_of(request._replace(delivered_tokens=200)) == 200 + LEASE_MIN
    assert lease_of(request._replace(reserve_output_tokens=1_000)) == 900
    for name in ("seed", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        request = leased("a")
        setattr(request.call.sampling, name, 1)
        assert lease_of(request) == 900
    request = leased("a")
    request.call.response_format.kind = call_pb2.ResponseFormat.KIND_JSON_OBJECT
    assert lease_of(request) == 900


def test_what_cannot_fit_at_its_longest_is_refused_at_once() -> None:
    async def scene(source: Side, target: Side) -> None:
        request = leased("a")._replace(max_tokens=1_250)
        with pytest.raises(EngineRefused, match="KV_TOO_SMALL"):
            target.engine.reserve(request, "p", True)

    play(scene)
