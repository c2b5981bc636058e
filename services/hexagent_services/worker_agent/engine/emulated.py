"""The emulated engine: the pure instance model with real timers and real bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from hexagent.core.ids import Ticket
from hexagent.core.instance.io import (
    Abort,
    Ended,
    InstanceEffect,
    InstanceInput,
    InstanceLoad,
    KvArrived,
    KvLost,
    KvReady,
    KvSent,
    Prefill,
    PrefillDone,
    PrefillStarted,
    PrefixSegment,
    PullKv,
    Refused,
    Reserve,
    SendKv,
    StepDone,
    Work,
)
from hexagent.core.instance.io import DecodeStarted as ModelDecodeStarted
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.samples import SampleBuffer, Samples
from hexagent.core.instance.spec import PROFILES, FlipWay, InstanceSpec, LinkSpec, Role, RoleFlip
from hexagent.core.instance.telemetry import Incidents, TransferSample
from hexagent.core.units import NEVER_US
from hexagent.core.workflow.model import FinishReason
from hexagent.runtime.clock import ModelClock
from hexagent_services.worker_agent.engine.adapters import adapter_of
from hexagent_services.worker_agent.engine.output import EmulatedOutput
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

TIMER_S: Final = 0.001  # wall time that the event loop's timers resolve; below it they turn into a loop without pause
PIECE_S: Final = 0.02  # wall time between two pieces of a streamed output
CHUNK_BYTES: Final = 1 << 20  # of a KV transfer's messages


class _Run:
    """One attempt on this instance: what the model has said about it, and who waits for the rest."""

    __slots__ = (
        "_changed",
        "decode_started_us",
        "ended",
        "on_started",
        "output",
        "prefill_done",
        "prefill_started_us",
        "pull_granted",
        "refused",
        "request",
        "sent",
    )

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.output = EmulatedOutput(request.ticket.call, request.call, request.max_tokens)
        self.on_started: Callable[[], None] | None = None
        self.prefill_started_us = 0
        self.prefill_done: PrefillDone | None = None
        self.pull_granted = False
        self.decode_started_us = 0
        self.sent: KvSent | None = None
        self.ended: Ended | None = None
        self.refused = ""
        self._changed = asyncio.Event()

    def take(self, effect: InstanceEffect) -> None:
        match effect:
            case PrefillStarted():
                self.prefill_started_us = effect.at_us
                if self.on_started is not None:
                    self.on_started()
            case PrefillDone():
                self.prefill_done = effect
            case PullKv():
                self.pull_granted = True
            case KvSent():
                self.sent = effect
            case ModelDecodeStarted():
                self.decode_started_us = effect.at_us
            case Ended():
                self.ended = effect
            case Refused():
                self.refused = effect.reason
            case _:
                return
        self._changed.set()

    async def change(self) -> None:
        """Wait for the next effect, then raise what has gone wrong."""
        await self._changed.wait()
        self._changed.clear()
        self.check()

    async def change_within(self, wait_s: float) -> None:
        """`change`, or the end of a wait."""
        timer = asyncio.get_running_loop().call_later(wait_s, self._changed.set)
        try:
            await self.change()
        finally:
            timer.cancel()

    def check(self) -> None:
        if self.refused:
            raise EngineRefused(self.refused)
        if self.ended is not None and self.ended.aborted:
            raise EngineAborted(self.ended.output_tokens)

    def work(self, names_output: bool = False) -> Work:
        """Delivered output is part of the prompt. Where nothing is left, the one token is the end of the output.

        `names_output`: the output's KV stays here for prompts that hold the output, which only a whole one can be.
        """
        r, delivered = self.request, self.request.delivered_tokens
        prefix = (*r.prefix, PrefixSegment(f"delivered/{r.ticket.call}", delivered)) if delivered else r.prefix
        left = max(1, self.output.tokens - delivered)
        most = max(left, r.max_tokens - delivered)
        digest = self.output.digest if names_output and not delivered else ""
        return Work(r.ticket, prefix, r.prompt_tokens + delivered, most, r.reserve_output_tokens, left, digest)

    def so_far(self, generated: int) -> int:
        """Output tokens there are after this attempt has generated some."""
        return min(self.request.delivered_tokens + generated, self.output.tokens)

    @property
    def finish(self) -> FinishReason:
        return self.output.finish


class EmulatedEngine:
    """One emulated instance. `byte_divisor` scales the KV bytes that really move; reports are unscaled."""

    def __init__(
        self, spec: InstanceSpec, model: InstanceModel, clock: ModelClock, kv_bytes_per_token: int, byte_divisor: int
    ) -> None:
        self.spec = spec
        self._model = model
        self._clock = clock
        self._kv_bytes_per_token = kv_bytes_per_token
        self._byte_divisor = byte_divisor
        self._runs: dict[Ticket, _Run] = {}
        self._inbox: list[InstanceInput] = []
        self._timer: asyncio.TimerHandle | None = None
        self._samples = SampleBuffer()
        self._frozen = False
        self._down = False

    def freeze(self, frozen: bool) -> None:
        """While frozen nothing makes progress and nothing is lost; afterwards what is overdue happens at once."""
        self._frozen = frozen
        self._flush()

    def retune(self, truth: Truth) -> None:
        """Another true speed from the next step on."""
        self._model.retune(truth)

    async def start(self) -> Capabilities:
        profile = PROFILES[self.spec.profile]
        reuse = profile.block_reuse and self.spec.prefix_cache
        return Capabilities(reuse, profile.local_prefill, profile.pipelined_transfer, self._flip)

    @property
    def _flip(self) -> RoleFlip:
        """As configured; by itself the model asks no instance for its role."""
        return self.spec.flip or RoleFlip(FlipWay.MIX, 0)

    async def change_role(self, role: Role) -> Capabilities:
        restarts = self._flip.way is FlipWay.RESTART
        self.spec = self.spec._replace(role=role)
        self._model = self._model.in_role(role, started_again=restarts)
        if restarts:
            for run in self._runs.values():
                run.take(Refused(run.request.ticket, self._clock.now_us(), "ENGINE_LOST"))
            self._runs.clear()
            self._inbox.clear()
            self._down = True
            try:
                await self._clock.sleep_until(self._clock.now_us() + self._flip.cost_us)
            finally:
                self._down = False
        return await self.start()

    async def lost(self) -> str:
        """An emulated engine dies with its agent only."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def prefill(self, request: EngineRequest, started: Callable[[], None] | None = None) -> Prefilled:
        run = self._open(request)
        run.on_started = started
        self._send(Prefill(run.work(), request.rank))
        return await self._prefilled(run)

    async def send_kv(self, ticket: Ticket, to_instance: str, to_link: LinkSpec) -> AsyncIterator[KvPiece]:
        run = self._runs.get(ticket)
        if run is None or run.prefill_done is None:
            raise EngineRefused("UNKNOWN_TICKET")
        self._send(SendKv(ticket, to_instance, to_link.bytes_per_s, to_link.setup_us))
        left = max(1, self._kv_bytes(run) // self._byte_divisor)
        while left > CHUNK_BYTES:  # the bytes travel while the modelled transfer runs
            yield KvPiece(bytes(CHUNK_BYTES), False)
            left -= CHUNK_BYTES
        while run.sent is None:
            await run.change()
        yield KvPiece(bytes(left), True, run.sent.kv_bytes, run.sent.start_us, run.sent.end_us)

    def reserve(self, request: EngineRequest, source_instance: str, kv_ready: bool) -> None:
        run = self._open(request)
        self._inbox.append(Reserve(run.work(self.spec.prefix_cache), source_instance, kv_ready, request.rank))
        self._flush()
        run.check()

    def kv_ready(self, ticket: Ticket) -> None:
        self._send(KvReady(ticket))

    async def decode(self, request: EngineRequest, handed: HandedOver, fetch_kv: FetchKv) -> AsyncIterator[DecodeEvent]:
        run = self._runs.get(request.ticket)
        if run is None:
            raise EngineAborted(0)
        while not run.pull_granted:
            await run.change()
        asked_us = self._clock.now_us()
        transfer = await self._fetch(run, fetch_kv)
        duration_us = transfer.end_us - transfer.start_us
        self._samples.transfer(
            TransferSample(
                handed.source_instance,
                self.spec.instance_id,
                transfer.start_us,
                duration_us,
                transfer.kv_bytes,
                self._clock.now_us() - asked_us,
            )
        )
        while not run.decode_started_us:
            await run.change()
        yield DecodeStarted(run.decode_started_us, transfer)
        async for event in self._generate(run):
            yield event

    async def local(self, request: EngineRequest) -> AsyncIterator[DecodeEvent | Prefilled]:
        run = self._open(request)
        self._send(Prefill(run.work(self.spec.prefix_cache), request.rank, local=True))
        yield await self._prefilled(run)
        async for event in self._generate(run):
            yield event

    def abort(self, ticket: Ticket) -> None:
        if ticket in self._runs:
            self._send(Abort(ticket))

    def load(self) -> InstanceLoad:
        self._flush()
        return self._model.load(self._clock.now_us())

    def take_samples(self) -> Samples:
        return self._samples.take()

    def sampled_at_us(self) -> int:
        return 0

    def incidents(self) -> Incidents:
        return Incidents()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # --- an attempt's phases ----------------------------------------------------------------------------------
    def _open(self, request: EngineRequest) -> _Run:
        adapter_of(request.call, self.spec)  # refuses what is not served
        if self._down:
            raise EngineRefused("ENGINE_DOWN")
        run = self._runs[request.ticket] = _Run(request)
        return run

    async def _prefilled(self, run: _Run) -> Prefilled:
        while run.prefill_done is None:
            await run.change()
        done = run.prefill_done
        return Prefilled(
            started_us=run.prefill_started_us,
            ended_us=done.at_us,
            cached_tokens=done.cached_tokens,
            first_text=run.output.text(run.request.delivered_tokens, run.so_far(1)),
            finish=run.finish if done.done else FinishReason.NONE,
            kv_bytes=self._kv_bytes(run),
            opaque_state=b"",
            prompt_tokens=run.request.prompt_tokens,
        )

    async def _fetch(self, run: _Run, fetch_kv: FetchKv) -> KvPiece:
        """The model's ingress slot is answered whatever becomes of the pull."""
        ticket = run.request.ticket
        try:
            transfer = await fetch_kv()
        except BaseException:
            self._send(KvLost(ticket))
            raise
        self._send(KvArrived(ticket))
        return transfer

    async def _generate(self, run: _Run) -> AsyncIterator[DecodeEvent]:
        ticket, said = run.request.ticket, run.so_far(1)
        if run.request.call.stream:
            while run.ended is None:
                await run.change_within(PIECE_S)
                now_us = self._clock.now_us()
                tokens = run.so_far(self._model.generated(ticket, now_us))  # none once it has ended
                if tokens > said:
                    yield Generated(now_us, tokens - said, run.output.text(said, tokens))
                    said = tokens
        while run.ended is None:
            await run.change()
        total = run.so_far(run.ended.output_tokens)
        yield Finished(run.ended.at_us, total, run.finish, run.output.text(0, total), run.ended.decode_us)

    def _kv_bytes(self, run: _Run) -> int:
        return (run.request.prompt_tokens + run.request.delivered_tokens) * self._kv_bytes_per_token

    # --- the model --------------------------------------------------------------------------------------------
    def _send(self, input: InstanceInput) -> None:
        """Inputs of one turn of the event loop reach the model together, so that prompts can share a step."""
        if not self._inbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._inbox.append(input)

    def _flush(self) -> None:
        if self._frozen:
            return
        inputs, self._inbox = self._inbox, []
        now_us = self._clock.now_us()
        self._take(self._model.handle_all(inputs, now_us) if inputs else self._model.advance(now_us))
        self._arm(now_us)

    def _arm(self, now_us: int) -> None:
        """Wake at the model's next event; steps are timed to absolute deadlines, so a late timer adds no drift."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_us = self._model.next_due_us()
        if due_us < NEVER_US:
            # Somebody may wait for a first token; nobody does so closely for what a decode step brings.
            least_wait_s = TIMER_S if self.spec.role is Role.DECODE else 0.0
            delay_s = max(self._clock.to_wall_s(due_us - now_us), least_wait_s)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._flush)

    def _take(self, effects: tuple[InstanceEffect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, StepDone):
                self._samples.step(effect)
                continue
            if isinstance(effect, PrefillDone):
                self._samples.reused_tokens += effect.cached_tokens
            run = self._runs.get(effect.ticket)
            if run is None or (isinstance(effect, Refused) and effect.to_instance):
                continue
            run.take(effect)
            if isinstance(effect, Ended | Refused | KvSent):
                del self._runs[effect.ticket]  # the instance holds nothing of it; whoever waits holds the run
