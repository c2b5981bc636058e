"""TensorRT-LLM behind the port: the agent's side, which queues, counts blocks and speaks to the engine host.

KV is pulled by the decode side's engine, through its own transceiver. What is known of the engine and kept here:

- It takes blocks for the prompt and the longest output before it pulls (GUARANTEED_NO_EVICT); so does the ledger. Where
  the scheduler reserves less, the engine is asked for less output, and again behind what came: a lease.
- A prefilled prompt holds its blocks until it is pulled, or until the transfer timeout; nobody can free them sooner.
- An abort while KV is on its way leaks; the host makes it wait for the first token. A request that does not end long
  after its abort, blocks that nobody holds, or work that does not move mean a broken engine: everything on it is
  refused, and it starts again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from hexagent.core.ids import Ticket
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.samples import Samples
from hexagent.core.instance.spec import PROFILES, FlipWay, InstanceSpec, LinkSpec, Role, RoleFlip
from hexagent.core.instance.telemetry import Incidents
from hexagent.core.workflow.model import FinishReason
from hexagent.runtime.clock import Clock
from hexagent_services.worker_agent.engine.adapters import lora_request_of
from hexagent_services.worker_agent.engine.held import USED_UP, Held
from hexagent_services.worker_agent.engine.host_process import Host
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.port import (
    Capabilities,
    DecodeEvent,
    DecodeStarted,
    EngineAborted,
    EngineRefused,
    EngineRequest,
    FetchKv,
    Finished,
    Generated,
    HandedOver,
    KvPiece,
    Prefilled,
)
from hexagent_services.worker_agent.engine.run import Kind, Phase, Run, request_id
from hexagent_services.worker_agent.engine.sampling import (
    ending_ids,
    lease_of,
    response_format_of,
    retention_of,
    sampling_arguments,
)
from hexagent_services.worker_agent.engine.text import Decoder, Text
from hexagent_services.worker_agent.engine_host.frames import Frame

log = logging.getLogger(__name__)

RELEASE_S: Final = 5.0  # wall time for telling the holder that its KV has been pulled
_FINISH: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "not_finished": FinishReason.NONE}
_ROLES: Final = {1: "prefill", 2: "decode", 3: "both"}


class TrtllmEngine:
    """One instance. Times are those of a model clock that runs as wall time does."""

    def __init__(
        self, spec: InstanceSpec, host: Host, text: Text, clock: Clock, kv_bytes_per_token: int, options: TrtllmOptions
    ) -> None:
        self.spec = spec
        self._text = text
        self._clock = clock
        self._kv_bytes_per_token = kv_bytes_per_token
        self._options = options
        self._held = Held(spec, host, clock, options)
        self._guided = False  # the engine can hold outputs to a form
        self._takes_loras = False
        self._overlap = False  # it was built with the overlap scheduler
        self._pipelined = False
        self._load_us = 0  # that took

    # --- the engine's life ------------------------------------------------------------------------------------
    async def start(self) -> Capabilities:
        began_us = self._clock.now_us()
        self._overlap = not self._options.arguments.get("disable_overlap_scheduler", self.spec.role is Role.PREFILL)
        said = await self._held.link.start(self._load_order(), self._options.load_timeout_s)
        found = said["capabilities"]
        log.info("%s: TensorRT-LLM %s, %s", self.spec.instance_id, said["version"], found)
        self._guided = found.get("guided_decoding", False)
        self._takes_loras = found.get("lora", True)
        self._held.watch()
        self._load_us = self._clock.now_us() - began_us
        self._pipelined = found["pipelined_transfer"]
        return self._capabilities()

    async def change_role(self, role: Role) -> Capabilities:
        flip = self._flip()
        restarts = flip is None or flip.way is FlipWay.RESTART or not self._held.link.up
        self.spec = self.spec._replace(role=role)
        if not restarts:
            return self._capabilities()
        await self.close()
        return await self.start()

    def _capabilities(self) -> Capabilities:
        return Capabilities(self.spec.prefix_cache, True, self._pipelined, self._flip())

    def _flip(self) -> RoleFlip | None:
        """The overlap scheduler is what prompts for a hand-off may not have, and what decoding is slower without."""
        prefills = self.spec.role is Role.PREFILL
        if self._overlap and not (prefills or PROFILES[self.spec.profile].overlapped_context):
            return RoleFlip(FlipWay.RESTART, self._load_us) if self._options.restarts else None
        return RoleFlip(FlipWay.MIX if self._overlap or not prefills else FlipWay.OVERLAP_OFF, 0)

    async def lost(self) -> str:
        return await self._held.link.lost()

    async def close(self) -> None:
        await self._held.link.close()

    def _load_order(self) -> dict[str, Any]:
        spec, options = self.spec, self._options
        return {
            "op": "load",
            "model": options.model_dir,
            "role": _ROLES[spec.role],
            "tp": spec.tp,
            "max_batch": spec.max_batch,
            "max_step_tokens": spec.max_step_tokens,
            "max_seq_tokens": options.max_seq_tokens,
            "kv_tokens": spec.kv_tokens,
            "block_tokens": spec.block_tokens,
            "prefix_cache": spec.prefix_cache,
            "equal_progress": PROFILES[spec.profile].equal_progress,
            "pipelined": PROFILES[spec.profile].pipelined_transfer,
            "transceiver": options.transceiver,
            "transfer_timeout_ms": round(options.transfer_timeout_s * 1000),
            "loras": [lora._asdict() for lora in spec.loras],
            "max_loras": spec.max_loras,
            "arguments": dict(options.arguments),
        }

    # --- attempts ---------------------------------------------------------------------------------------------
    async def prefill(self, request: EngineRequest, started: Callable[[], None] | None = None) -> Prefilled:
        run = self._held.open(request, Kind.PREFILL)
        try:
            run.prompt_ids = await self._text.prompt_ids(request)
            if run.tokens_left < 1:
                self._held.release(run)
                return self._prefilled(run, {}, (), b"", FinishReason.LENGTH)
            decoder = self._text.decoder(request)
            if run.tokens_left == 1:
                return await self._only_token(run, decoder)
            # A prompt above the transceiver's buffer can stop every transfer for good, so it is never begun; nor is one
            # whose output would have no room behind it, as decode engines would refuse what was computed.
            if len(run.prompt_ids) + run.tokens_left > self._options.max_seq_tokens:
                raise EngineRefused("TOO_LONG_FOR_ENGINE")
            self._held.claim(run, len(run.prompt_ids) + 1, decodes=False)
            await run.room()
            order = {"op": "prefill", "request_id": request_id(run.ticket)}
            frame = await self._submit(run, order, Phase.COMPUTING)
            text, finish = self._fed(run, decoder, frame.ids), FinishReason.NONE
            if decoder.stopped or self._finish(run, frame) is FinishReason.STOP:
                rest, finish = decoder.end(FinishReason.STOP, request.delivered_text + text)
                text += rest
                self._held.drop(run)
            return self._prefilled(run, frame.body, frame.ids, text, finish)
        except BaseException:
            self._held.leave(run)
            raise

    async def send_kv(self, ticket: Ticket, to_instance: str, to_link: LinkSpec) -> AsyncIterator[KvPiece]:
        run = self._held.runs.get(ticket)
        if run is None or run.phase is not Phase.PINNED:
            raise EngineRefused("UNKNOWN_TICKET")
        self._held.release(run)
        yield KvPiece(b"", True, self._kv_bytes(run))

    def reserve(self, request: EngineRequest, source_instance: str, kv_ready: bool) -> None:
        run = self._held.open(request, Kind.DECODE)
        try:
            run.lease = lease_of(request)
            self._held.claim(run, request.prompt_tokens + run.lease, decodes=True)
        except EngineRefused:
            self._held.leave(run)
            raise

    def kv_ready(self, ticket: Ticket) -> None:
        """Told under push only, which this engine does not do."""

    async def decode(self, request: EngineRequest, handed: HandedOver, fetch_kv: FetchKv) -> AsyncIterator[DecodeEvent]:
        run, prefilled = self._held.runs.get(request.ticket), handed.prefilled
        if run is None:
            raise EngineAborted(0)
        try:
            run.prompt_ids = prefilled.prompt_token_ids
            run.output_ids = list(prefilled.first_token_ids)
            await self._room_to_pull(run, prefilled)
            await self._pulled(run, prefilled)
            transfer = KvPiece(b"", True, prefilled.kv_bytes, run.submitted_us, self._clock.now_us())
            await _let_go(fetch_kv)
            yield DecodeStarted(self._clock.now_us(), transfer)
            decoder = self._text.decoder(request)
            self._fed(run, decoder, prefilled.first_token_ids)
            async for event in self._generate(run, decoder, prefilled.first_text):
                if isinstance(event, Finished):
                    transfer = _measured(run, transfer)
                    if not request.warm_up:
                        self._held.observed.transferred(handed.source_instance, transfer)
                    event = event._replace(transfer=transfer)
                yield event
        finally:
            self._held.leave(run)

    async def local(self, request: EngineRequest) -> AsyncIterator[DecodeEvent | Prefilled]:
        run = self._held.open(request, Kind.LOCAL)
        try:
            run.prompt_ids = await self._text.prompt_ids(request)
            run.lease = lease_of(request)
            self._held.claim(run, len(run.prompt_ids) + run.leased_tokens, decodes=True)
            await run.room()
            frame = await self._submit(run, {"op": "local"}, Phase.COMPUTING)
            decoder = self._text.decoder(request)
            text = self._fed(run, decoder, frame.ids)
            yield self._prefilled(run, frame.body, frame.ids, text, FinishReason.NONE)
            async for event in self._generate(run, decoder, request.delivered_text + text):
                yield event
        finally:
            self._held.leave(run)

    def abort(self, ticket: Ticket) -> None:
        self._held.abort(ticket)

    # --- an attempt's phases ----------------------------------------------------------------------------------
    async def _submit(self, run: Run, order: dict[str, Any], phase: Phase) -> Frame:
        """Give it to the engine and wait for the first answer."""
        call = run.request.call
        order |= {
            "sampling": sampling_arguments(run.request, self._text.end_token_ids, run.leased_tokens),
            "response_format": response_format_of(run.request, self._guided),
            "retention": retention_of(call),
            "lora": lora_request_of(call, self.spec, self._takes_loras),
            "stream": call.stream or bool(call.sampling.stop),  # a stop text is seen only as it comes
        }
        self._held.submit(run, order, phase)
        return await self._said(run)

    async def _said(self, run: Run) -> Frame:
        """The engine's next word. `EngineRefused` where it is that the request has failed."""
        frame = await run.said()
        finish = frame.body.get("finish", "")
        if finish == "refused":
            log.warning("%s: %s refused: %s", self.spec.instance_id, run.ticket, frame.body["message"])
            raise EngineRefused("KV_LOST_ENGINE" if run.phase is Phase.PULLING else "ENGINE_REFUSED")
        if finish and finish not in _FINISH:  # cancelled, or a time limit that nobody has set here
            raise EngineRefused("ENGINE_CANCELLED")
        return frame

    async def _only_token(self, run: Run, decoder: Decoder) -> Prefilled:
        """One token is wanted: run it to its end, as no KV has to stay."""
        self._held.claim(run, len(run.prompt_ids) + 1, decodes=False)
        await run.room()
        first = await self._submit(run, {"op": "local"}, Phase.COMPUTING)
        text = self._fed(run, decoder, first.ids)
        ended = await self._said(run)
        rest, finish = decoder.end(self._finish(run, ended), run.request.delivered_text + text)
        return self._prefilled(run, {**first.body, **ended.body}, first.ids, text + rest, finish)

    async def _room_to_pull(self, run: Run, prefilled: Prefilled) -> None:
        """Wait for room as long as the holder keeps the KV: engines may hang that pull from one who has let go."""
        left_s = self._options.transfer_timeout_s - (self._clock.now_us() - prefilled.ended_us) / 1e6
        try:
            async with asyncio.timeout(left_s):
                await run.room()
        except TimeoutError:
            left_s = 0
        if left_s <= 0:
            raise EngineRefused("HAND_OFF_EXPIRED")

    async def _pulled(self, run: Run, prefilled: Prefilled) -> None:
        """The engine has the KV. It may wait for ever for a sender that has died, the attempt does not."""
        try:
            async with asyncio.timeout(self._options.hand_off_s):
                await self._submit(run, {"op": "decode", "state": prefilled.opaque_state.decode()}, Phase.PULLING)
        except TimeoutError:
            raise EngineRefused("KV_LOST_TIMEOUT") from None

    async def _generate(self, run: Run, decoder: Decoder, text: bytes) -> AsyncIterator[Generated | Finished]:
        """From behind the first token, whose text and all before it is `text`, to the end."""
        finish, told = FinishReason.STOP, run.output_tokens
        while not decoder.stopped:
            frame = await self._said(run)
            piece = self._fed(run, decoder, frame.ids)
            text += piece
            if frame.body["event"] == "ended":
                finish = self._finish(run, frame)
                break
            if frame.body["event"] == USED_UP and not decoder.stopped:
                if self._over(run):
                    break
                more = await self._renewed(run, decoder)
                piece, text = piece + more, text + more
            if run.request.call.stream and piece:
                yield Generated(self._clock.now_us(), run.output_tokens - told, piece)
                told = run.output_tokens
        rest, finish = decoder.end(finish, text)
        yield Finished(self._clock.now_us(), run.output_tokens, finish, text + rest)

    async def _renewed(self, run: Run, decoder: Decoder) -> bytes:
        """More of an output whose lease is used up: the text of the next token. What there is of KV may be cached."""
        await run.room()
        frame = await self._submit(run, {"op": "local"}, Phase.COMPUTING)
        self._held.observed.samples.reused_tokens += frame.body["cached_tokens"]
        return self._fed(run, decoder, frame.ids)

    def _fed(self, run: Run, decoder: Decoder, ids: Sequence[int]) -> bytes:
        """The text of new ids; those that only end an output are not counted."""
        ends = ending_ids(run.request, self._text.end_token_ids)
        shown = [i for i in ids if i not in ends]
        run.output_tokens += len(shown)
        return decoder.feed(shown)

    def _over(self, run: Run) -> bool:
        """The last token ends the output, which engines do not say of most at the limit of tokens."""
        return run.last_id in ending_ids(run.request, self._text.end_token_ids)

    def _finish(self, run: Run, frame: Frame) -> FinishReason:
        return FinishReason.STOP if self._over(run) else _FINISH[frame.body["finish"]]

    def _prefilled(
        self, run: Run, body: Mapping[str, Any], ids: Sequence[int], text: bytes, finish: FinishReason
    ) -> Prefilled:
        now_us = self._clock.now_us()
        cached_tokens = body.get("cached_tokens", 0)
        self._held.observed.samples.reused_tokens += cached_tokens
        compute_us = body.get("timing", {}).get("compute_us", now_us - run.submitted_us)
        return Prefilled(
            started_us=max(now_us - compute_us, run.arrived_us),
            ended_us=now_us,
            cached_tokens=cached_tokens,
            first_text=text,
            finish=finish,
            kv_bytes=self._kv_bytes(run),
            opaque_state=body.get("state", "").encode(),
            prompt_tokens=len(run.prompt_ids) - run.request.delivered_tokens,
            prompt_token_ids=run.prompt_ids,
            first_token_ids=ids,
        )

    def _kv_bytes(self, run: Run) -> int:
        return len(run.prompt_ids) * self._kv_bytes_per_token

    # --- what it tells ----------------------------------------------------------------------------------------
    def load(self) -> InstanceLoad:
        return self._held.load()

    def take_samples(self) -> Samples:
        return self._held.observed.samples.take()

    def sampled_at_us(self) -> int:
        return self._held.observed.sampled_at_us

    def incidents(self) -> Incidents:
        return self._held.incidents()


async def _let_go(fetch_kv: FetchKv) -> None:
    """Tell the holder that the KV was pulled; one that cannot be told lets go after its timeout."""
    try:
        async with asyncio.timeout(RELEASE_S):
            await fetch_kv()
    except (EngineRefused, TimeoutError) as error:
        log.info("the holder of pulled KV was not told: %r", error)


def _measured(run: Run, transfer: KvPiece) -> KvPiece:
    """The transfer by the engine's own measurements, where it took some."""
    timing = run.timing
    if "transfer_us" not in timing:
        return transfer
    start_us = run.submitted_us + timing["transfer_delay_us"]
    end_us = min(start_us + timing["transfer_us"], transfer.end_us)
    return transfer._replace(kv_bytes=timing["kv_bytes"] or transfer.kv_bytes, start_us=start_us, end_us=end_us)
