"""What every engine behind the port must do; engines under test are listed in `ENGINES`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from hexagent.api.common.v1 import call_pb2
from hexagent.core.estimate.tables import load_table
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import PrefixSegment
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec, Role
from hexagent.core.workflow.model import FinishReason
from hexagent.runtime.clock import ModelClock
from hexagent_services.worker_agent.engine.emulated import EmulatedEngine
from hexagent_services.worker_agent.engine.faults import FaultyEngine, parse_faults
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    DecodeStarted,
    Engine,
    EngineAborted,
    EngineRefused,
    EngineRequest,
    Finished,
    Generated,
    HandedOver,
    KvPiece,
    Prefilled,
)

MODEL = "llama-3.1-8b"
LINK = LinkSpec(25_000_000_000, 5_000)
CLOCK = ModelClock(time.time_ns(), time_scale=20.0)  # of all engines, so that their times can be compared


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


ENGINES: dict[str, Callable[[InstanceSpec], Engine]] = {"emulated": emulated, "faulty": faulty}


@pytest.fixture(params=sorted(ENGINES))
def make(request: pytest.FixtureRequest) -> Callable[[InstanceSpec], Engine]:
    return ENGINES[request.param]


def request_of(
    node: str, prompt_tokens: int = 200, output_tokens: int = 12, max_tokens: int = 64, **options: str
) -> EngineRequest:
    call = call_pb2.CallRequest(model=MODEL, stream=options.pop("stream", "") == "yes")
    call.engine_options["emulated.output_tokens"] = str(output_tokens)
    for key, value in options.items():
        call.engine_options[f"emulated.{key}"] = value
    return EngineRequest(
        Ticket(CallId("w", node), 1, 1),
        call,
        (PrefixSegment(f"digest-{node}", prompt_tokens),),
        prompt_tokens,
        max_tokens,
        max_tokens,
        0,
    )


async def decoded(source: Engine, target: Engine, request: EngineRequest) -> tuple[Prefilled, list[DecodeEvent]]:
    """Prefill on one engine, decode on the other, KV pulled in between."""
    prefilled = await source.prefill(request)
    target.reserve(request, source.spec.instance_id, True)

    async def fetch() -> KvPiece:
        pieces = [p async for p in source.send_kv(request.ticket, target.spec.instance_id, target.spec.link)]
        assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
        assert sum(len(p.data) for p in pieces) == max(1, prefilled.kv_bytes // 4096)
        return pieces[-1]

    handed = HandedOver(source.spec.instance_id, prefilled, True)
    return prefilled, [event async for event in target.decode(request, handed, fetch)]


async def assert_empty(*engines: Engine) -> None:
    for engine in engines:
        load = engine.load()
        assert (load.kv_used_blocks, load.queued, load.pinned, load.waiting, load.decoding) == (0, 0, 0, 0, 0)
        await engine.close()


async def test_prefill_hand_off_decode(make: Callable[[InstanceSpec], Engine]) -> None:
    source, target = make(spec("p", Role.PREFILL)), make(spec("d", Role.DECODE))
    prefilled, events = await decoded(source, target, request_of("a"))
    assert prefilled.finish is FinishReason.NONE
    assert prefilled.ended_us > prefilled.started_us
    started, finished = events
    assert isinstance(started, DecodeStarted)
    assert isinstance(finished, Finished)
    assert started.transfer.kv_bytes == prefilled.kv_bytes
    assert prefilled.ended_us <= started.transfer.start_us < started.transfer.end_us <= started.at_us < finished.at_us
    assert finished.output_tokens == 12
    assert finished.finish is FinishReason.STOP
    assert finished.text.startswith(prefilled.first_text)
    samples = target.take_samples()
    assert samples.generated_tokens == 11
    assert [t.kv_bytes for t in samples.transfers] == [prefilled.kv_bytes]
    assert source.take_samples().prefilled_tokens == 200
    await assert_empty(source, target)


async def test_under_push_blocks_are_reserved_while_prefill_runs(make: Callable[[InstanceSpec], Engine]) -> None:
    source, target = (
        make(spec(name, role)._replace(profile="push")) for name, role in (("p", Role.PREFILL), ("d", Role.DECODE))
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
        return [event async for event in target.decode(request, HandedOver("p", prefilled, False), fetch)]

    decoding = asyncio.create_task(decode())
    await asyncio.sleep(0.02)
    assert not asked.is_set()
    target.kv_ready(request.ticket)
    finished = (await decoding)[-1]
    assert isinstance(finished, Finished)
    assert finished.output_tokens == 12
    await assert_empty(source, target)


async def test_streamed_pieces_are_the_begin_of_the_output_once(make: Callable[[InstanceSpec], Engine]) -> None:
    source, target = make(spec("p", Role.PREFILL)), make(spec("d", Role.DECODE))
    request = request_of("a", output_tokens=300, max_tokens=400, stream="yes")
    prefilled, events = await decoded(source, target, request)
    pieces = [e for e in events if isinstance(e, Generated)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert len(pieces) > 1
    assert 150 < 1 + sum(p.tokens for p in pieces) < finished.output_tokens == 300
    assert finished.text.startswith(prefilled.first_text + b"".join(p.text for p in pieces))
    await assert_empty(source, target)


@pytest.mark.parametrize("delivered", [1, 7, 11, 12])
async def test_a_retry_goes_on_behind_what_was_delivered(
    make: Callable[[InstanceSpec], Engine], delivered: int
) -> None:
    source, target = make(spec("p", Role.PREFILL)), make(spec("d", Role.DECODE))
    _, events = await decoded(source, target, request_of("a", stream="yes"))
    whole = events[-1]
    assert isinstance(whole, Finished)
    again = request_of("a", stream="yes")
    again = again._replace(delivered_tokens=delivered, delivered_text=whole.text[: 4 * delivered])
    prefilled = await source.prefill(again)
    text = again.delivered_text + prefilled.first_text
    if prefilled.finish is FinishReason.NONE:
        source.abort(again.ticket)
        await asyncio.sleep(0.01)
        _, events = await decoded(source, target, again)
        assert isinstance(events[-1], Finished)
        assert (events[-1].output_tokens, events[-1].text) == (12, whole.text)
        text += b"".join(e.text for e in events if isinstance(e, Generated))
    assert whole.text.startswith(text)
    await assert_empty(source, target)


async def test_first_token_may_be_the_last(make: Callable[[InstanceSpec], Engine]) -> None:
    source = make(spec("p", Role.PREFILL))
    prefilled = await source.prefill(request_of("a", output_tokens=1))
    assert prefilled.finish is FinishReason.STOP
    await assert_empty(source)


async def test_max_tokens_cuts_the_output(make: Callable[[InstanceSpec], Engine]) -> None:
    source, target = make(spec("p", Role.PREFILL)), make(spec("d", Role.DECODE))
    _, events = await decoded(source, target, request_of("a", output_tokens=50, max_tokens=8))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.output_tokens, finished.finish) == (8, FinishReason.LENGTH)
    await assert_empty(source, target)


async def test_scripted_tool_calls_come_out(make: Callable[[InstanceSpec], Engine]) -> None:
    source, target = make(spec("p", Role.PREFILL)), make(spec("d", Role.DECODE))
    request = request_of("a", tool_calls='[{"name": "search", "arguments": {"q": "x"}}]')
    _, events = await decoded(source, target, request)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.finish is FinishReason.TOOL_CALLS
    assert finished.text == b'{"tool_calls":[{"name":"search","arguments":{"q":"x"}}]}'
    await assert_empty(source, target)


async def test_local_prefill_needs_no_hand_off(make: Callable[[InstanceSpec], Engine]) -> None:
    engine = make(spec("d", Role.DECODE))
    events = [event async for event in engine.local(request_of("a"))]
    assert isinstance(events[0], Prefilled)
    assert isinstance(events[-1], Finished)
    assert events[-1].output_tokens == 12
    await assert_empty(engine)


async def test_what_can_never_fit_is_refused(make: Callable[[InstanceSpec], Engine]) -> None:
    source, target = make(spec("p", Role.PREFILL, kv_blocks=4)), make(spec("d", Role.DECODE, kv_blocks=4))
    with pytest.raises(EngineRefused, match="KV_TOO_SMALL"):
        await source.prefill(request_of("a"))
    with pytest.raises(EngineRefused, match="KV_TOO_SMALL"):
        target.reserve(request_of("a"), "p", True)
    with pytest.raises(EngineRefused, match="UNKNOWN_TICKET"):
        await anext(aiter(source.send_kv(request_of("b").ticket, "d", LINK)))
    await assert_empty(source, target)


@pytest.mark.parametrize("phase", ["queued", "pinned", "reserved", "decoding"])
async def test_abort_frees_everything_in_each_phase(make: Callable[[InstanceSpec], Engine], phase: str) -> None:
    source, target = make(spec("p", Role.PREFILL)), make(spec("d", Role.DECODE))
    request = request_of("a", prompt_tokens=20_000, output_tokens=2_000, max_tokens=4_000)
    running: asyncio.Task[object] = asyncio.create_task(_drive(source, target, request, phase))
    with pytest.raises(EngineAborted):
        await running
    source.abort(request.ticket)
    await asyncio.sleep(0.01)
    await assert_empty(source, target)


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

    events: AsyncIterator[DecodeEvent] = target.decode(request, HandedOver("p", prefilled, True), fetch)
    async for event in events:
        if isinstance(event, DecodeStarted):
            target.abort(request.ticket)
