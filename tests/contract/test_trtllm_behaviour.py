"""What is known to go wrong with TensorRT-LLM, one by one, and what becomes of it behind the port."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from hexagent.core.errors import Unsupported
from hexagent.core.instance.telemetry import Incidents, SpeculationSample
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    EngineAborted,
    EngineRefused,
    EngineRequest,
    Generated,
    Prefilled,
)
from hexagent_services.worker_agent.engine_host.library import Library, capabilities
from tests.contract.engines import handed_over, is_empty, request_of
from tests.contract.trtllm.manifest import load_manifest
from tests.contract.trtllm.session import OPTIONS, Side, decode, finished, started
from tests.fakes.byte_text import ByteDecoder
from tests.fakes.local_host import fake_library
from tests.fakes.virtual_loop import run_virtually

Scene = Callable[[Side, Side], Awaitable[None]]
LIBRARY = fake_library()


def play(scene: Scene, kv_blocks: int = 40, library: Library = LIBRARY) -> None:
    """Between a prefill and a decode engine, which are empty in the end."""

    async def run() -> None:
        source, target = await started("p", library, kv_blocks), await started("d", library, kv_blocks)
        async with asyncio.timeout(60):
            await scene(source, target)
            await asyncio.sleep(3)
        for side in (source, target):
            assert is_empty(side.engine), side.engine.load()
            assert side.llm.interrupted_transfers == 0
            await side.engine.close()

    run_virtually(run())


async def refused(work: Awaitable[object]) -> str:
    with pytest.raises(EngineRefused) as caught:
        await work
    return caught.value.reason


def test_kv_that_nobody_pulls_is_held_until_the_timeout_and_counted() -> None:
    async def scene(source: Side, target: Side) -> None:
        await source.engine.prefill(request_of("a"))
        source.engine.abort(request_of("a").ticket)
        await asyncio.sleep(0.3)
        assert source.engine.load().kv_used_blocks == source.llm.blocks.used == 7
        await asyncio.sleep(0.5)
        assert source.engine.load().kv_used_blocks == source.llm.blocks.used == 0
        assert source.engine.incidents().dropped_hand_offs == 1

    play(scene)


def test_prompts_wait_while_kv_of_others_is_pinned() -> None:
    async def scene(source: Side, target: Side) -> None:
        first = await source.engine.prefill(request_of("a", prompt_tokens=700))
        second = asyncio.create_task(source.engine.prefill(request_of("b", prompt_tokens=700)))
        await asyncio.sleep(0.1)
        assert not second.done()
        assert (source.engine.load().queued, source.llm.blocks.used) == (1, 22)
        await decode(source, target, request_of("a", prompt_tokens=700), first)
        await asyncio.sleep(0.02)
        assert second.done()
        await decode(source, target, request_of("b", prompt_tokens=700), await second)

    play(scene)


def test_leaked_blocks_are_not_given_again_and_end_in_a_restart() -> None:
    async def scene(source: Side, target: Side) -> None:
        source.llm.faults.leaks = True
        for turn in range(4):
            await source.engine.prefill(request_of(f"a{turn}", prompt_tokens=180))
            source.engine.abort(request_of(f"a{turn}").ticket)
        await asyncio.sleep(1)
        # Only an engine that works shows what it holds; each of these is one more look.
        for turn in range(14):
            request = request_of(f"b{turn}", prompt_tokens=64, max_tokens=1)
            try:
                await source.engine.prefill(request)
            except EngineRefused:
                break
            await asyncio.sleep(0.2)
        assert await source.engine.lost() == "24 KV blocks leaked"
        await source.engine.start()
        await source.engine.prefill(request_of("c", max_tokens=1))

    play(scene)


def test_blocks_that_are_leaked_are_told() -> None:
    async def scene(source: Side, target: Side) -> None:
        source.llm.faults.leaks = True
        await source.engine.prefill(request_of("a", prompt_tokens=180))
        source.engine.abort(request_of("a").ticket)
        await asyncio.sleep(1)
        for turn in range(14):
            await source.engine.prefill(request_of(f"b{turn}", prompt_tokens=64, max_tokens=1))
            await asyncio.sleep(0.2)
        assert source.engine.incidents() == Incidents(dropped_hand_offs=1, leaked_blocks=6)

    play(scene)


def test_an_engine_that_got_less_memory_is_given_less() -> None:
    async def scene(source: Side, target: Side) -> None:
        source.llm.blocks.capacity = 20
        assert source.engine.load().kv_free_blocks == 40
        await source.engine.prefill(request_of("a", prompt_tokens=64, max_tokens=1))
        await asyncio.sleep(0.2)
        load = source.engine.load()
        assert load.kv_free_blocks + load.kv_cached_blocks == 20
        assert await refused(source.engine.prefill(request_of("b", prompt_tokens=700))) == "KV_SHRUNK"

    play(scene)


def test_what_is_aborted_before_the_host_begins_it_never_reaches_the_engine() -> None:
    async def scene(source: Side, target: Side) -> None:
        running = asyncio.create_task(_all(target, request_of("a")))
        await asyncio.sleep(0)  # the order is on its way
        target.engine.abort(request_of("a").ticket)
        with pytest.raises(EngineAborted):
            await running
        await asyncio.sleep(0.1)
        assert target.llm.retentions == []

    play(scene)


def test_a_dead_sender_loses_the_call_and_nothing_else() -> None:
    async def scene(source: Side, target: Side) -> None:
        prefilled = await source.engine.prefill(request_of("a"))
        await source.host.kill()
        assert await refused(decode(source, target, request_of("a"), prefilled)) == "KV_LOST_ENGINE"
        assert target.llm.blocks.used == 0
        assert await source.engine.lost() == "the engine host has ended"

    play(scene)


def test_decoders_are_told_the_whole_output_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []

    def end(decoder: ByteDecoder, finish: FinishReason, shown: bytes) -> tuple[bytes, FinishReason]:
        told.append(shown)
        return b"", finish

    monkeypatch.setattr(ByteDecoder, "end", end)

    async def scene(source: Side, target: Side) -> None:
        for delivered in (b"", b"so far "):
            for max_tokens in (64, len(delivered) + 1):
                request = request_of("a", max_tokens=max_tokens)
                request = request._replace(delivered_tokens=len(delivered), delivered_text=delivered)
                whole = finished(await _all(target, request)).text
                prefilled = await source.engine.prefill(request)
                if prefilled.finish is FinishReason.NONE:
                    assert finished(await decode(source, target, request, prefilled)).text == whole
                assert told == [whole, whole]
                told.clear()

    play(scene)


def test_what_its_holder_has_let_go_of_is_not_pulled() -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.blocks_on_death = True
        busy = asyncio.create_task(_all(target, request_of("busy", output_tokens=900, max_tokens=1000)))
        await asyncio.sleep(0.01)
        request = request_of("a", prompt_tokens=700)
        prefilled = await source.engine.prefill(request)
        assert await refused(decode(source, target, request, prefilled)) == "HAND_OFF_EXPIRED"
        assert not busy.done(), "it does not wait for room in vain"
        await busy
        assert await refused(decode(source, target, request, prefilled)) == "HAND_OFF_EXPIRED", "nor is it pulled"
        assert len(target.llm.retentions) == 1

    play(scene)


def test_an_engine_that_waits_for_a_dead_sender_for_ever_is_ended() -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.blocks_on_death = True
        prefilled = await source.engine.prefill(request_of("a"))
        other = asyncio.create_task(_all(target, request_of("b", output_tokens=900, max_tokens=1000)))
        await asyncio.sleep(0.01)
        await source.host.kill()
        assert await refused(decode(source, target, request_of("a"), prefilled)) == "KV_LOST_TIMEOUT"
        assert await refused(other) == "ENGINE_LOST"
        assert "does not end" in await target.engine.lost()

    play(scene, kv_blocks=80)


def test_a_wedged_engine_is_ended_once_an_abort_has_no_effect() -> None:
    async def scene(source: Side, target: Side) -> None:
        source.llm.faults.wedged = True
        prefill = asyncio.create_task(source.engine.prefill(request_of("a")))
        await asyncio.sleep(1)
        assert not prefill.done()
        source.engine.abort(request_of("a").ticket)
        with pytest.raises(EngineAborted):
            await prefill
        assert source.engine.load().kv_used_blocks == 7
        assert "does not end" in await source.engine.lost()
        assert await refused(source.engine.prefill(request_of("b"))) == "ENGINE_DOWN"
        await source.engine.start()
        assert (await source.engine.prefill(request_of("b", max_tokens=1))).first_text

    play(scene)


def test_a_wedged_engine_is_ended_though_nobody_aborts_anything() -> None:
    async def scene(source: Side, target: Side) -> None:
        watched = await started("d", LIBRARY, options=OPTIONS._replace(stall_s=1.0))
        request = request_of("a", output_tokens=300, max_tokens=400)
        running = asyncio.create_task(_all(watched, request))
        await asyncio.sleep(0.1)
        watched.llm.faults.wedged = True
        began_s = asyncio.get_running_loop().time()
        assert await refused(running) == "ENGINE_LOST"
        assert 0.9 <= asyncio.get_running_loop().time() - began_s <= 1.2
        assert await watched.engine.lost() == "no progress within 1 s on 1 requests"
        await watched.engine.start()
        assert finished(await _all(watched, request)).output_tokens == 300
        await watched.engine.close()

    play(scene)


@pytest.mark.parametrize("statistics", [True, False])
def test_an_engine_that_is_only_slow_is_left_alone(statistics: bool) -> None:
    """Steps of a second with an output that nobody reads as it comes, and a pull that takes longer than a stall may."""
    arguments = {"enable_iter_perf_stats": statistics}
    options = OPTIONS._replace(stall_s=3.0, transfer_timeout_s=20.0, arguments=arguments)

    async def run() -> None:
        source, target = [await started(name, LIBRARY, options=options) for name in ("p", "d")]
        target.llm.faults.step_s = 1.0
        target.llm.faults.pull_s = 10.0
        request = request_of("a", output_tokens=8)
        events = await decode(source, target, request, await source.engine.prefill(request))
        assert finished(events).output_tokens == 8
        assert (source.host.starts, target.host.starts) == (1, 1)
        for side in (source, target):
            await side.engine.close()

    run_virtually(run())


def test_a_broken_engine_refuses_everything_on_it_at_once() -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.crash = True
        assert await refused(_all(target, request_of("a"))) == "ENGINE_LOST"

    play(scene)


def test_an_abort_waits_until_the_kv_has_come() -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.pull_s = 0.2
        request = request_of("a")
        decoding = asyncio.create_task(decode(source, target, request, await source.engine.prefill(request)))
        await asyncio.sleep(0.05)
        target.engine.abort(request.ticket)
        with pytest.raises(EngineAborted):
            await decoding
        assert (target.engine.load().transferring, target.llm.blocks.used) == (1, 9)
        await asyncio.sleep(0.3)
        assert target.llm.blocks.used == 0

    play(scene)


def test_an_abort_between_room_and_order_leaves_nothing_on_the_engine() -> None:
    async def scene(source: Side, target: Side) -> None:
        engine, late = target.engine, request_of("late", prompt_tokens=700, output_tokens=60)
        first = asyncio.create_task(_all(target, request_of("a", prompt_tokens=700)))
        await asyncio.sleep(0.005)
        waiting = asyncio.create_task(_all(target, late))
        await asyncio.sleep(0)
        pump = engine._held._pump

        def pump_and_abort() -> None:
            """It gets room, and is aborted before it can make use of it."""
            pump()
            if engine._held.admission.used_blocks and not engine.load().decoding:
                engine.abort(late.ticket)

        engine._held._pump = pump_and_abort  # type: ignore[method-assign]
        await first
        with pytest.raises(EngineAborted):
            await waiting
        await asyncio.sleep(0.01)
        assert (target.llm.blocks.used, target.llm._active) == (0, [])

    play(scene)


def test_tokens_without_text_of_their_own_are_counted_with_the_next_that_have_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def feed(decoder: ByteDecoder, token_ids: Sequence[int]) -> bytes:
        """As if every third token were the end of a character."""
        decoder.held = [*getattr(decoder, "held", []), *token_ids]  # type: ignore[attr-defined]
        whole = len(decoder.held) // 3 * 3  # type: ignore[attr-defined]
        text, decoder.held = bytes(decoder.held[:whole]), decoder.held[whole:]  # type: ignore[attr-defined]
        return text

    monkeypatch.setattr(ByteDecoder, "feed", feed)

    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.step_s = 0.015
        request = request_of("a", output_tokens=60, stream="yes")
        events = await _all(target, request)
        pieces = [event for event in events if isinstance(event, Generated)]
        assert len(pieces) > 3
        counted = 1  # the first, which has no text yet
        for piece in pieces:
            counted += piece.tokens
            assert counted // 3 * 3 == sum(len(p.text) for p in pieces[: pieces.index(piece) + 1])

    play(scene)


def test_a_slow_pull_holds_the_kv_on_both_sides() -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.pull_s = 0.3
        request = request_of("a")
        decoding = asyncio.create_task(decode(source, target, request, await source.engine.prefill(request)))
        await asyncio.sleep(0.1)
        assert (source.engine.load().pinned, target.engine.load().transferring) == (1, 1)
        transfer = finished(await decoding).transfer
        assert transfer is not None
        assert 299_000 <= transfer.end_us - transfer.start_us <= 301_000
        assert source.engine.incidents().dropped_hand_offs == 0

    play(scene)


def test_a_request_that_the_engine_refuses_is_the_only_one_lost() -> None:
    async def scene(source: Side, target: Side) -> None:
        source.llm.faults.refuse = 1
        assert await refused(source.engine.prefill(request_of("a"))) == "ENGINE_REFUSED"
        request = request_of("b")
        await decode(source, target, request, await source.engine.prefill(request))

    play(scene)


@pytest.mark.parametrize("reason", [None, "cancelled", "timeout"])
def test_an_end_that_nobody_asked_for_is_a_loss_however_it_is_called(reason: str | None) -> None:
    async def scene(source: Side, target: Side) -> None:
        running = asyncio.create_task(_all(target, request_of("a", output_tokens=60)))
        await asyncio.sleep(0.02)
        target.llm._finish(target.llm._active[0], reason)
        assert await refused(running) == "ENGINE_CANCELLED"

    play(scene)


def test_an_end_token_first_needs_no_decode() -> None:
    async def scene(source: Side, target: Side) -> None:
        prefilled = await source.engine.prefill(request_of("a", output_tokens=0))
        assert (prefilled.finish, prefilled.first_text) == (FinishReason.STOP, b"")
        assert source.engine.load().kv_used_blocks == 7  # the engine keeps it for a hand-off all the same

    play(scene)


def test_prompts_above_the_transfer_buffer_are_never_begun_nor_those_without_room_for_their_output() -> None:
    async def scene(source: Side, target: Side) -> None:
        long = request_of("a", prompt_tokens=OPTIONS.max_seq_tokens + 1)
        assert await refused(source.engine.prefill(long)) == "TOO_LONG_FOR_ENGINE"
        talkative = request_of("a", max_tokens=OPTIONS.max_seq_tokens - 199)
        assert await refused(source.engine.prefill(talkative)) == "TOO_LONG_FOR_ENGINE"
        assert source.llm.retentions == []
        buffer = source.llm.arguments["cache_transceiver_config"].max_tokens_in_buffer
        assert buffer == OPTIONS.max_seq_tokens
        assert not source.llm.stuck

    play(scene, kv_blocks=400)


def test_a_stop_text_ends_the_output_and_the_request() -> None:
    async def scene(source: Side, target: Side) -> None:
        whole = finished(await _all(target, request_of("a", output_tokens=200, max_tokens=300)))
        request = request_of("b", output_tokens=200, max_tokens=300)
        request.call.segments[0].body.text = request_of("a", output_tokens=200).call.segments[0].body.text
        request.call.sampling.stop.append(chr(whole.text[20]))
        end = finished(await _all(target, request))
        assert (end.finish, end.text) == (FinishReason.STOP, whole.text[:20])

    play(scene)


@pytest.mark.parametrize("field", ["sampling.n", "sampling.logprobs", "sampling.logit_bias", "lora", "response_format"])
def test_what_the_engine_cannot_do_is_refused_by_name(field: str) -> None:
    async def scene(source: Side, target: Side) -> None:
        request = request_of("a")
        call = request.call
        if field == "lora":
            call.lora = "adapter"
        elif field == "response_format":
            call.response_format.kind = call.response_format.KIND_JSON_OBJECT
        elif field == "sampling.logit_bias":
            call.sampling.logit_bias[5] = 1.0
        else:
            setattr(call.sampling, field.partition(".")[2], 2 if field == "sampling.n" else True)
        with pytest.raises(Unsupported, match=field):
            await source.engine.prefill(request)

    play(scene)


def test_what_newer_versions_have_is_found_and_used(tmp_path: Path) -> None:
    manifest = load_manifest()
    arguments = manifest["tensorrt_llm/llmapi/llm_args.py"]["fields"]
    manifest["tensorrt_llm/llmapi/llm.py"]["methods"]["BaseLLM.generate_async"]["params"].append("priority")
    manifest["tensorrt_llm/disaggregated_params.py"]["fields"]["DisaggregatedParams"]["disagg_request_id"] = "None"
    arguments["CacheTransceiverConfig"]["enable_pipelined_transfer"] = "False"
    arguments["SchedulerConfig"]["waiting_queue_policy"] = "None"
    (tmp_path / "newer.json").write_text(json.dumps(manifest))

    async def run() -> None:
        source, target = await started("p", newer), await started("d", newer)
        prefilled = await source.engine.prefill(request_of("a"))
        assert json.loads(prefilled.opaque_state)["disagg_request_id"] > 1 << 32
        assert finished(await decode(source, target, request_of("a"), prefilled)).output_tokens == 12

    newer = fake_library(tmp_path / "newer.json")
    assert set(capabilities(newer).values()) == {True}
    assert set(capabilities(LIBRARY).values()) == {False}
    run_virtually(run())


@pytest.mark.parametrize(("drafts", "token_us", "told"), [(0, 1_000, None), (4, 250, SpeculationSample(40, 30))])
def test_what_a_step_accepts_of_its_drafts_is_told_and_its_time_is_shared_out(
    drafts: int, token_us: int, told: SpeculationSample | None
) -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.drafts = drafts
        assert finished(await _all(target, request_of("a", output_tokens=40))).output_tokens == 40
        await asyncio.sleep(0.2)
        samples = target.engine.take_samples()
        (decode,) = (step for step in samples.steps if not step.prefill_tokens)
        # The first token is of the prompt's step; the one that ends the output counts as a step's.
        assert (samples.generated_tokens, samples.speculation) == (40, told)
        assert decode.duration_us // decode.steps == token_us
        assert target.engine.sampled_at_us() > 0

    play(scene)


def test_gaps_of_events_are_survived_and_statistics_read_once() -> None:
    async def scene(source: Side, target: Side) -> None:
        target.llm.faults.lose_events = True
        for turn in range(4):
            await _all(target, request_of(f"a{turn}"))
        await asyncio.sleep(0.3)
        samples = target.engine.take_samples()
        assert samples.prefilled_tokens == 800
        assert target.engine.take_samples().prefilled_tokens == 0
        assert 0 < target.engine.load().kv_cached_blocks <= 40
        gaps = target.engine.incidents().event_gaps
        assert gaps > 0
        await target.host.kill()
        await target.engine.lost()
        assert target.engine.incidents().event_gaps == gaps
        await target.engine.start()

    play(scene)


async def test_an_agent_whose_source_is_gone_decodes_all_the_same() -> None:
    async def scene(source: Side, target: Side) -> None:
        request = request_of("a", stream="yes")
        prefilled = await source.engine.prefill(request)
        target.engine.reserve(request, "p", True)

        async def unreachable() -> None:
            raise EngineRefused("KV_LOST_UNAVAILABLE")

        handed = handed_over(source.engine, request, prefilled)
        events = [e async for e in target.engine.decode(request, handed, unreachable)]  # type: ignore[arg-type]
        assert finished(events).output_tokens == 12
        text = prefilled.first_text + b"".join(e.text for e in events if isinstance(e, Generated))
        assert finished(events).text.startswith(text)

    await asyncio.to_thread(play, scene)


async def _all(side: Side, request: EngineRequest) -> list[DecodeEvent]:
    return [e async for e in side.engine.local(request) if not isinstance(e, Prefilled)]
