"""The life of attempts on this agent: prefill and hand-off on one side, reserve, pull and decode on the other."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Final

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.errors import HexagentError, InvalidArgument, Unsupported
from hexagent.core.ids import Ticket
from hexagent.core.scheduling.effects import CancelAttempt
from hexagent.core.scheduling.events import HeldTicket, Phase
from hexagent.core.workflow.model import CallTimes, FinishReason, NodeStatus
from hexagent.runtime.clock import Clock
from hexagent.wire.codec import ticket_from_proto
from hexagent.wire.worker import Attempt, BindCommand, DispatchCommand, attempt_from_proto
from hexagent_services.worker_agent.accounts import Accounts
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
from hexagent_services.worker_agent.live import LiveAttempt, hand_off_request, handed_prefill
from hexagent_services.worker_agent.peers import Peers
from hexagent_services.worker_agent.push import Reservations
from hexagent_services.worker_agent.reports import Reports
from hexagent_services.worker_agent.requests import BodyCache, engine_request
from hexagent_services.worker_agent.results import Results
from hexagent_services.worker_agent.warm_up import WarmUps

log = logging.getLogger(__name__)

PERMANENT: Final = frozenset(
    {"KV_TOO_SMALL", "NO_LOCAL_PREFILL", "TOO_LONG_FOR_ENGINE"}
)  # no other attempt there would fare better


class Attempts:
    """Every attempt this agent holds, by (ticket, instance); each runs as one task."""

    def __init__(
        self,
        engines: dict[str, Engine],
        bodies: BodyCache,
        peers: Peers,
        results: Results,
        reports: Reports,
        clock: Clock,
        warm_ups: WarmUps,
        address: str,
    ) -> None:
        self._engines = engines
        self._bodies = bodies
        self._peers = peers
        self._results = results
        self._accounts = Accounts(results, reports, clock, self._forget)
        self._warm_ups = warm_ups
        self._address = address
        self._live: dict[tuple[Ticket, str], LiveAttempt] = {}
        self._reservations = Reservations(peers, address)

    # --- orders -----------------------------------------------------------------------------------------------
    async def dispatch(self, orders: list[DispatchCommand]) -> None:
        """Begin the attempts of one batch together, so that their prompts can share an engine step."""
        fresh: list[tuple[LiveAttempt, DispatchCommand]] = []
        for order in orders:
            engine = self._engines.get(order.prefill_instance)
            ticket = order.attempt.ticket
            if engine is None:
                self._accounts.lost(ticket, order.prefill_instance, "UNKNOWN_INSTANCE")
            elif (ticket, order.prefill_instance) not in self._live:
                attempt = LiveAttempt(order.attempt, engine, Phase.ACCEPTED)
                attempt.decode_instance = order.decode_instance
                self._live[ticket, order.prefill_instance] = attempt
                fresh.append((attempt, order))
        requests = await asyncio.gather(*(self._request(a.spec) for a, _ in fresh), return_exceptions=True)
        for (attempt, order), request in zip(fresh, requests, strict=True):
            if self._live.get((attempt.ticket, attempt.instance_id)) is not attempt:
                continue  # cancelled meanwhile
            if isinstance(request, EngineRequest):
                attempt.request = request
                self._start(attempt, self._prefill(attempt, request, order))
            else:
                self._start(attempt, self._fail(attempt, request))

    async def _request(self, spec: Attempt) -> EngineRequest:
        """A retry of a streamed call goes on behind what its client has."""
        request = await engine_request(spec, self._bodies)
        if request.call.stream and (spec.ticket.attempt > 1 or spec.ticket.epoch > 1):
            tokens, text = await self._results.delivered(spec.ticket.call)
            request = request._replace(delivered_tokens=tokens, delivered_text=text)
        return request

    def bind(self, order: BindCommand) -> None:
        bind = order.bind
        attempt = self._live.get((bind.ticket, bind.prefill_instance))
        if attempt is not None:
            attempt.decode_instance = bind.decode_instance
            attempt.bound.put_nowait((bind.decode_instance, order.decode_address))

    def abort(self, ticket: Ticket, instance_id: str) -> bool:
        """Stop the attempt here; False if it is not here."""
        attempt = self._live.pop((ticket, instance_id), None)
        if attempt is None:
            return False
        attempt.engine.abort(ticket)
        if attempt.task is not None:
            attempt.task.cancel()
        return True

    def cancel(self, order: CancelAttempt) -> None:
        """The scheduler no longer wants the attempt: stop it on this agent, on either side."""
        for instance_id in dict.fromkeys((order.prefill_instance, order.decode_instance)):
            self.abort(order.ticket, instance_id)

    async def hand_off(self, request: pb.HandOffRequest, draining: bool) -> str:
        """Take over a prefilled call for decoding: "" or the reason for a no. Idempotent by ticket.

        Draining it takes none that is not here already.

        Under push it comes twice: when prefill begins, and `kv_ready` when it has ended.

        `InvalidArgument` for a payload that is no request.
        """
        engine = self._engines.get(request.target_instance)
        spec = attempt_from_proto(request.attempt)
        ticket = spec.ticket
        if engine is None:
            return "UNKNOWN_INSTANCE"
        held = self._live.get((ticket, request.target_instance))
        if held is not None:
            if request.kv_ready and held.kv_ready is not None and not held.kv_ready.done():
                held.kv_ready.set_result(request)
            return ""
        if draining:
            return "DRAINING"
        attempt = LiveAttempt(spec, engine, Phase.PREFILLED if request.kv_ready else Phase.ACCEPTED)
        if not request.kv_ready:
            attempt.kv_ready = asyncio.get_running_loop().create_future()
        attempt.decode_instance = request.target_instance
        self._live[ticket, request.target_instance] = attempt
        try:
            attempt.request = (await engine_request(spec, None))._replace(
                prompt_tokens=request.prompt_tokens,
                delivered_tokens=request.first_tokens - 1,
            )
            engine.reserve(attempt.request, request.source_instance, request.kv_ready)
        except (EngineRefused, HexagentError) as error:
            self._live.pop((ticket, request.target_instance), None)
            if isinstance(error, InvalidArgument):
                raise
            return error.reason
        self._start(attempt, self._decode(attempt, attempt.request, request))
        return ""

    async def send_kv(self, request: pb.PullKvRequest) -> AsyncIterator[KvPiece]:
        """Hand the KV over; with the last piece this agent holds nothing of the attempt any more."""
        ticket = ticket_from_proto(request.ticket)
        attempt = self._live.get((ticket, request.from_instance))
        if attempt is None:
            raise EngineRefused("UNKNOWN_TICKET")
        link = attempt.engine.spec.link._replace(
            bytes_per_s=request.to_link.bytes_per_s, setup_us=request.to_link.setup_us
        )
        async for piece in attempt.engine.send_kv(ticket, request.to_instance, link):
            if piece.last:
                self._live.pop((ticket, request.from_instance), None)
            yield piece

    def report_unbound(self) -> None:
        """Say again which attempts wait to be bound: a scheduler that attaches has not heard it."""
        for attempt in self._live.values():
            if attempt.unbound:
                self._accounts.unbound(attempt)

    def _unbound(self, attempt: LiveAttempt, reason: str) -> None:
        attempt.unbound = reason
        self._accounts.unbound(attempt)

    def _forget(self, attempt: LiveAttempt) -> None:
        self._live.pop((attempt.ticket, attempt.instance_id), None)

    def held(self) -> tuple[HeldTicket, ...]:
        """What this agent has, for a scheduler that attaches."""
        return tuple(
            HeldTicket(
                a.ticket,
                a.phase,
                a.instance_id,
                a.spec.prompt_tokens,
                a.spec.reserve_output_tokens,
                0,
                a.decode_instance,
            )
            for a in self._live.values()
        )

    async def drained(self) -> None:
        """Return when nothing is held any more."""
        while self._live:  # noqa: ASYNC110 - once in a life, and every end would have to remember an event
            await asyncio.sleep(0.05)

    # --- both sides -------------------------------------------------------------------------------------------
    def _start(self, attempt: LiveAttempt, life: Coroutine[None, None, None]) -> None:
        attempt.task = asyncio.create_task(self._guard(attempt, life))

    async def _guard(self, attempt: LiveAttempt, life: Coroutine[None, None, None]) -> None:
        """Whatever goes wrong with an attempt, its scheduler hears of it once."""
        try:
            await life
        except asyncio.CancelledError:
            raise
        except EngineAborted:
            self._forget(attempt)
        except EngineRefused as error:
            await self._refused(attempt, error.reason)
        except (InvalidArgument, Unsupported) as error:
            await self._fail(attempt, error)  # what the client asked for can never run
        except Exception:
            log.exception("attempt %s failed on %s", attempt.ticket, attempt.instance_id)
            self._forget(attempt)
            attempt.engine.abort(attempt.ticket)
            self._accounts.lost(attempt.ticket, attempt.instance_id, "AGENT_ERROR")

    async def _refused(self, attempt: LiveAttempt, reason: str) -> None:
        if reason in PERMANENT:
            await self._accounts.failed(attempt, NodeStatus.REFUSED, reason)
            return
        self._forget(attempt)
        self._accounts.lost(attempt.ticket, attempt.instance_id, reason)

    async def _fail(self, attempt: LiveAttempt, error: BaseException) -> None:
        """The attempt cannot even begin: the call is refused for what it asks for, else it fails."""
        if not isinstance(error, HexagentError):
            raise error
        refused = isinstance(error, InvalidArgument | Unsupported)
        status = NodeStatus.REFUSED if refused else NodeStatus.FAILED
        await self._accounts.failed(attempt, status, error.reason, error.message)

    # --- prefill side -----------------------------------------------------------------------------------------
    async def _prefill(self, attempt: LiveAttempt, request: EngineRequest, order: DispatchCommand) -> None:
        if order.decode_instance == order.prefill_instance:
            await self._local(attempt, request)
            return
        reservation = self._reservations.of(attempt, request, order, partial(self._unbound, attempt))
        try:
            prefilled = await attempt.engine.prefill(request, reservation.begin if reservation is not None else None)
        except BaseException:
            self._reservations.give_up(reservation)
            raise
        self._accounts.prefilled(attempt, request, prefilled)
        if prefilled.finish is not FinishReason.NONE:
            self._reservations.give_up(reservation)
            text = request.delivered_text + prefilled.first_text
            tokens = request.delivered_tokens + bool(prefilled.first_text)
            finished = Finished(prefilled.ended_us, tokens, prefilled.finish, text)
            await self._accounts.succeeded(attempt, prefilled, attempt.instance_id, finished, CallTimes())
            return
        if reservation is None or await reservation.made():
            await self._offer(attempt, request, prefilled, order)

    async def _offer(
        self, attempt: LiveAttempt, request: EngineRequest, prefilled: Prefilled, order: DispatchCommand
    ) -> None:
        """Hand over to the decode side; where it says no, to whichever the scheduler binds next."""
        decode_instance, address = order.decode_instance, order.decode_address
        while True:
            if decode_instance:
                offer = hand_off_request(attempt, request, prefilled, decode_instance, self._address)
                reason = self._warm_ups.refusal(attempt.instance_id, decode_instance)
                reason = reason or await self._peers.hand_off(address, offer)
                if not reason:
                    return
                self._unbound(attempt, reason)
            decode_instance, address = await attempt.bound.get()
            attempt.unbound = ""

    # --- decode side ------------------------------------------------------------------------------------------
    async def _decode(self, attempt: LiveAttempt, request: EngineRequest, handed: pb.HandOffRequest) -> None:
        if attempt.kv_ready is not None:
            handed = await attempt.kv_ready
            attempt.phase = Phase.PREFILLED
            attempt.engine.kv_ready(attempt.ticket)
        prefilled = handed_prefill(handed)

        async def fetch_kv() -> KvPiece:
            return await self._peers.pull(
                handed.source_address, attempt.ticket, handed.source_instance, attempt.engine.spec
            )

        events = attempt.engine.decode(request, HandedOver(handed.source_instance, prefilled, True), fetch_kv)
        await self._generate(attempt, prefilled, handed.source_instance, events)

    async def _local(self, attempt: LiveAttempt, request: EngineRequest) -> None:
        events = attempt.engine.local(request)
        prefilled = await anext(events)
        assert isinstance(prefilled, Prefilled)
        self._accounts.prefilled(attempt, request, prefilled)
        # Its output goes on where the prompt was computed, unless the first token ended it.
        times = CallTimes(decode_start_us=0 if prefilled.finish is not FinishReason.NONE else prefilled.ended_us)
        await self._generate(attempt, prefilled, attempt.instance_id, events, times)

    async def _generate(
        self,
        attempt: LiveAttempt,
        prefilled: Prefilled,
        source: str,
        events: AsyncIterator[DecodeEvent] | AsyncIterator[DecodeEvent | Prefilled],
        times: CallTimes = CallTimes(),
    ) -> None:
        offset = attempt.request.delivered_tokens + 1 if attempt.request else 1
        async for event in events:
            match event:
                case DecodeStarted():
                    times = times._replace(
                        transfer_start_us=event.transfer.start_us,
                        transfer_end_us=event.transfer.end_us,
                        decode_start_us=event.at_us,
                    )
                    self._accounts.decoding(attempt, event)
                case Generated():
                    self._accounts.generated(attempt, offset, event)
                    offset += event.tokens
                case Finished():
                    await self._accounts.succeeded(attempt, prefilled, source, event, times)
