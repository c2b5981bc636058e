"""What every engine behind the port must do; engines under test are listed in `engines.ENGINES`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from hexagent.core.errors import Unsupported
from hexagent.core.instance.samples import Samples
from hexagent.core.instance.spec import InstanceSpec, Lora, Role
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    DecodeStarted,
    Engine,
    EngineAborted,
    EngineRefused,
    EngineRequest,
    Finished,
    Generated,
    KvPiece,
    Prefilled,
)
from hexagent_services.worker_agent.engine.supervision import bring_up
from tests.contract.engines import ENGINES, LINK, assert_empty, decoded, eventually, handed_over, request_of, spec

Make = Callable[[InstanceSpec], Awaitable[Engine]]


@pytest_asyncio.fixture(params=sorted(ENGINES))
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Brings engines up, and at the end sees that they hold nothing."""
    engines: list[Engine] = []

    async def made(instance: InstanceSpec) -> Engine:
        engine = ENGINES[request.param](instance)
        engines.append(engine)
        await bring_up(engine)
        return engine

    yield made
    await assert_empty(*engines)
    for engine in engines:
        await engine.close()


async def pair(make: Make, kv_blocks: int = 4_000) -> tuple[Engine, Engine]:
    first, second = spec("p", Role.PREFILL, kv_blocks), spec("d", Role.DECODE, kv_blocks)
    source, target = await asyncio.gather(make(first), make(second))
    return source, target


async def samples_of(engine: Engine, enough: Callable[[list[Samples]], bool]) -> list[Samples]:
    """All that the engine gathers until it is enough."""
    taken: list[Samples] = []

    def more() -> bool:
        taken.append(engine.take_samples())
        return enough(taken)

    await eventually(more)
    return taken


async def test_prefill_hand_off_decode(make: Make) -> None:
    source, target = await pair(make)
    request = request_of("a")
    prefilled = await source.prefill(request)
    assert prefilled.finish is FinishReason.NONE
    assert prefilled.ended_us > prefilled.started_us
    assert (prefilled.prompt_tokens, prefilled.cached_tokens) == (200, 0)
    assert source.load().pinned == 1
    started, finished = await decoded(source, target, request, prefilled)
    assert isinstance(started, DecodeStarted)
    assert isinstance(finished, Finished)
    transfer = finished.transfer or started.transfer
    assert transfer.kv_bytes == prefilled.kv_bytes
    assert prefilled.ended_us <= transfer.start_us < transfer.end_us <= started.at_us < finished.at_us
    assert finished.output_tokens == 12
    assert finished.finish is FinishReason.STOP
    assert finished.text.startswith(prefilled.first_text)
    taken = await samples_of(target, lambda taken: sum(s.generated_tokens for s in taken) >= 11)
    assert [t.kv_bytes for s in taken for t in s.transfers] == [prefilled.kv_bytes]
    await samples_of(source, lambda taken: sum(s.prefilled_tokens for s in taken) == 200)


async def test_streamed_pieces_are_the_begin_of_the_output_once(make: Make) -> None:
    source, target = await pair(make)
    request = request_of("a", output_tokens=300, max_tokens=400, stream="yes")
    prefilled = await source.prefill(request)
    events = await decoded(source, target, request, prefilled)
    pieces = [e for e in events if isinstance(e, Generated)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert len(pieces) > 1
    assert 150 < 1 + sum(p.tokens for p in pieces) <= finished.output_tokens == 300
    assert finished.text.startswith(prefilled.first_text + b"".join(p.text for p in pieces))


@pytest.mark.parametrize("delivered", [1, 7, 11, 12])
async def test_a_retry_goes_on_behind_what_was_delivered(make: Make, delivered: int) -> None:
    source, target = await pair(make)
    request = request_of("a", stream="yes")
    whole = (await decoded(source, target, request, await source.prefill(request)))[-1]
    assert isinstance(whole, Finished)
    cut = delivered * len(whole.text) // whole.output_tokens
    again = request._replace(delivered_tokens=delivered, delivered_text=whole.text[:cut])
    prefilled = await source.prefill(again)
    text = again.delivered_text + prefilled.first_text
    if prefilled.finish is FinishReason.NONE:
        events = await decoded(source, target, again, prefilled)
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert (finished.output_tokens, finished.text) == (12, whole.text)
        text += b"".join(e.text for e in events if isinstance(e, Generated))
    assert whole.text.startswith(text)


async def test_the_first_token_may_be_the_last(make: Make) -> None:
    source = await make(spec("p", Role.PREFILL))
    prefilled = await source.prefill(request_of("a", max_tokens=1))
    assert prefilled.finish is FinishReason.LENGTH
    assert prefilled.first_text


async def test_max_tokens_cuts_the_output(make: Make) -> None:
    source, target = await pair(make)
    request = request_of("a", output_tokens=50, max_tokens=8)
    finished = (await decoded(source, target, request, await source.prefill(request)))[-1]
    assert isinstance(finished, Finished)
    assert (finished.output_tokens, finished.finish) == (8, FinishReason.LENGTH)


async def test_local_prefill_needs_no_hand_off_and_reuses_what_is_there(make: Make) -> None:
    engine = await make(spec("d", Role.DECODE))
    first = request_of("a", prompt_tokens=320, stream="yes")
    longer = request_of("b", prompt_tokens=640, stream="yes")
    text = longer.call.segments[0].body
    text.text = first.call.segments[0].body.text + text.text[320:]
    longer = longer._replace(prefix=(*first.prefix, longer.prefix[0]._replace(tokens=320)))
    for request, cached in ((first, 0), (longer, 320)):
        events = [event async for event in engine.local(request)]
        prefilled, finished = events[0], events[-1]
        assert isinstance(prefilled, Prefilled)
        assert isinstance(finished, Finished)
        assert (prefilled.cached_tokens, prefilled.prompt_tokens) == (cached, request.prompt_tokens)
        assert (finished.output_tokens, finished.transfer) == (12, None)
        pieces = [e for e in events[1:] if isinstance(e, Generated)]
        assert 1 + sum(p.tokens for p in pieces) <= 12
        assert finished.text.startswith(prefilled.first_text + b"".join(p.text for p in pieces))
    taken = await samples_of(engine, lambda taken: sum(s.generated_tokens for s in taken) >= 22)
    assert not any(s.transfers for s in taken)
    assert sum(s.reused_tokens for s in taken) == 320


async def test_what_can_never_fit_is_refused(make: Make) -> None:
    source, target = await pair(make, kv_blocks=4)
    with pytest.raises(EngineRefused, match="KV_TOO_SMALL"):
        await source.prefill(request_of("a"))
    with pytest.raises(EngineRefused, match="KV_TOO_SMALL"):
        target.reserve(request_of("a"), "p", True)
    with pytest.raises(EngineRefused, match="UNKNOWN_TICKET"):
        await anext(aiter(source.send_kv(request_of("b").ticket, "d", LINK)))


async def test_calls_run_with_adapters_that_the_instance_serves(make: Make) -> None:
    adapters = {"loras": (Lora("chess", 8, "/adapters/chess"), Lora("sql", 16, "/adapters/sql")), "max_loras": 1}
    source, target = [
        await make(spec(name, role)._replace(**adapters))  # type: ignore[arg-type]
        for name, role in (("p", Role.PREFILL), ("d", Role.DECODE))
    ]
    request = request_of("a")
    request.call.lora = "sql"
    finished = (await decoded(source, target, request, await source.prefill(request)))[-1]
    assert isinstance(finished, Finished)
    assert finished.output_tokens == 12
    other = request_of("b")
    other.call.lora = "go"
    with pytest.raises(Unsupported, match="lora: p does not serve 'go'"):
        await source.prefill(other)


@pytest.mark.parametrize("phase", ["queued", "pinned", "reserved", "decoding"])
async def test_abort_frees_everything_in_each_phase(make: Make, phase: str) -> None:
    source, target = await pair(make)
    request = request_of("a", prompt_tokens=20_000, output_tokens=2_000, max_tokens=4_000)
    with pytest.raises(EngineAborted):
        await _drive(source, target, request, phase)
    source.abort(request.ticket)


async def _drive(source: Engine, target: Engine, request: EngineRequest, phase: str) -> None:
    """Take the call as far as `phase` and abort it there on both sides."""
    if phase == "queued":
        prefill = asyncio.create_task(source.prefill(request))
        await asyncio.sleep(0.005)
        source.abort(request.ticket)
        await prefill
    prefilled = await source.prefill(request)
    if phase == "pinned":
        source.abort(request.ticket)
        await asyncio.sleep(0)
        raise EngineAborted(0)
    target.reserve(request, "p", True)

    async def fetch() -> KvPiece:
        if phase == "reserved":
            target.abort(request.ticket)
            await asyncio.sleep(0)
            raise EngineAborted(0)
        return [p async for p in source.send_kv(request.ticket, "d", LINK)][-1]

    events: AsyncIterator[DecodeEvent] = target.decode(request, handed_over(source, request, prefilled), fetch)
    async for event in events:
        if isinstance(event, DecodeStarted):
            target.abort(request.ticket)
