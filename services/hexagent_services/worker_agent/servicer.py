"""The agent's gRPC service: the scheduler's session, and other agents' hand-offs, pulls and aborts."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from hexagent.api.common.v1 import ids_pb2
from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.api.worker.v1 import worker_service_pb2_grpc as stubs
from hexagent.core.errors import Aborted, HexagentError, InvalidArgument, Unavailable
from hexagent.core.scheduling.effects import CancelAttempt, ChangeRole
from hexagent.core.scheduling.events import HeldTicket, InstanceUp
from hexagent.runtime.clock import Clock
from hexagent.runtime.grpc_server import guarded
from hexagent.wire.codec import bad, ticket_from_proto
from hexagent.wire.telemetry import announcement_to_proto
from hexagent.wire.worker import (
    BindCommand,
    CordonCommand,
    DispatchCommand,
    command_from_proto,
    held_to_proto,
    welcome_to_proto,
)
from hexagent_services.worker_agent.agent import Agent
from hexagent_services.worker_agent.engine.port import EngineAborted, EngineRefused

Context = grpc.aio.ServicerContext[Any, Any]
Chunks = asyncio.Queue[pb.PullKvResponse | HexagentError | None]  # an error or None is the end

log = logging.getLogger(__name__)

CHUNKS_MAX: Final = 8  # of KV that wait to be sent on one stream; about 1 MiB each


@guarded
class WorkerServicer(stubs.WorkerServiceServicer):
    """Answers UNAVAILABLE until `serve` has given it its agent, whose address is that of a listening server."""

    def __init__(self, clock: Clock) -> None:
        self._served: Agent | None = None
        self._clock = clock

    def serve(self, agent: Agent) -> None:
        self._served = agent

    @property
    def _agent(self) -> Agent:
        if self._served is None:
            raise Unavailable("the agent is starting", reason="STARTING")
        return self._served

    async def Session(
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        requests = aiter(request_iterator)
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            return
        session = self._agent.attach(first.hello.epoch, first.HasField("hello"))
        log.info("scheduler %s attached with epoch %d", first.hello.scheduler_id, first.hello.epoch)
        yield pb.SessionResponse(welcome=self._welcome())
        self._agent.attempts.report_unbound()
        self._agent.report_closed()
        reader = asyncio.create_task(self._read(requests, session))
        try:
            while (reports := await self._agent.reports.next_batch(session)) is not None:
                yield pb.SessionResponse(reports=reports)
            if not reader.done():
                raise Aborted("a newer session took over", reason="SESSION_REPLACED")
            if (refused := await reader) is not None:
                raise refused
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.SessionRequest], session: int) -> HexagentError | None:
        """Obey until the scheduler ends its side, or says what this agent does not understand."""
        try:
            async for request in requests:
                await self._obey(request)
        except HexagentError as error:
            return error
        finally:
            self._agent.reports.close(session)
        return None

    async def _obey(self, request: pb.SessionRequest) -> None:
        attempts = self._agent.attempts
        dispatches: list[DispatchCommand] = []
        for message in request.commands:
            match command := command_from_proto(message):
                case DispatchCommand():
                    dispatches.append(command)
                case BindCommand():
                    attempts.bind(command)
                case CancelAttempt():
                    dispatches = [d for d in dispatches if d.attempt.ticket != command.ticket]
                    attempts.cancel(command)
                case CordonCommand():
                    self._agent.cordon(command.instance_id, command.cordoned)
                case ChangeRole():
                    self._agent.change_role(command)
        if dispatches:
            await attempts.dispatch(dispatches)

    def _welcome(self) -> pb.Welcome:
        held: dict[str, list[HeldTicket]] = {}
        for ticket in self._agent.attempts.held():
            held.setdefault(ticket.instance_id, []).append(ticket)
        agent, now_us = self._agent, self._clock.now_us()
        ups = tuple(
            InstanceUp(
                spec,
                tuple(held.get(spec.instance_id, ())),
                now_us,
                spec.instance_id in agent.cordoned,
                wanted_role=agent.wanted_roles.get(spec.instance_id),
            )
            for spec in agent.up
        )
        return welcome_to_proto(agent.agent_id, ups)

    async def HandOff(
        self, request_iterator: AsyncIterator[pb.HandOffRequest], context: Context
    ) -> AsyncIterator[pb.HandOffResponse]:
        async for request in request_iterator:
            try:
                reason = await self._hand_off(request)
            except InvalidArgument as error:
                log.warning("no hand-off: %s", error)
                reason = error.reason
            yield pb.HandOffResponse(accepted=not reason, reason=reason, number=request.number)

    async def _hand_off(self, request: pb.HandOffRequest) -> str:
        _check_ticket(request.attempt.ticket, "attempt.ticket")
        if request.first_tokens < 1:
            raise bad("NO_TOKEN", "first_tokens", "a hand-off comes with its first token")
        return await self._agent.attempts.hand_off(request, self._agent.draining)

    async def PullKv(
        self, request_iterator: AsyncIterator[pb.PullKvRequest], context: Context
    ) -> AsyncIterator[pb.PullKvResponse]:
        chunks: Chunks = asyncio.Queue(CHUNKS_MAX)
        reader = asyncio.create_task(self._send_pulled(request_iterator, chunks))
        try:
            while (chunk := await chunks.get()) is not None:
                if isinstance(chunk, HexagentError):
                    raise chunk
                yield chunk
        finally:
            reader.cancel()

    async def _send_pulled(self, requests: AsyncIterator[pb.PullKvRequest], chunks: Chunks) -> None:
        """Answer every request, several at a time; what is no message at all is the end."""
        sending: set[asyncio.Task[None]] = set()
        try:
            async for request in requests:
                task = asyncio.create_task(self._send_kv(request, chunks))
                sending.add(task)
                task.add_done_callback(sending.discard)
            await asyncio.gather(*sending)
            await chunks.put(None)
        except HexagentError as error:
            await chunks.put(error)
        finally:
            for task in sending:
                task.cancel()

    async def _send_kv(self, request: pb.PullKvRequest, chunks: Chunks) -> None:
        offset, reason = 0, ""
        try:
            _check_pull(request)
            async for piece in self._agent.attempts.send_kv(request):
                await chunks.put(
                    pb.PullKvResponse(
                        offset=offset,
                        data=piece.data,
                        last=piece.last,
                        kv_bytes=piece.kv_bytes,
                        start_us=piece.start_us,
                        end_us=piece.end_us,
                        number=request.number,
                    )
                )
                offset += len(piece.data)
        except (EngineRefused, InvalidArgument) as error:
            reason = error.reason
        except EngineAborted:
            reason = "ABORTED"
        except Exception:
            log.exception("the KV of %s cannot be sent", ticket_from_proto(request.ticket))
            reason = "AGENT_ERROR"
        if reason:
            await chunks.put(pb.PullKvResponse(last=True, reason=reason, number=request.number))

    async def WarmUp(self, request: pb.WarmUpRequest, context: Context) -> pb.WarmUpResponse:
        _check_ticket(request.hand_off.attempt.ticket, "hand_off.attempt.ticket")
        if self._agent.draining:
            return pb.WarmUpResponse(reason="DRAINING")
        reason, transfer_us = await self._agent.warm_ups.pull(request.hand_off)
        return pb.WarmUpResponse(reason=reason, transfer_us=transfer_us)

    async def AbortCall(self, request: pb.AbortCallRequest, context: Context) -> pb.AbortCallResponse:
        _check_ticket(request.ticket, "ticket")
        ticket = ticket_from_proto(request.ticket)
        instances = [request.instance_id] if request.instance_id else [i.instance_id for i in self._agent.instances]
        held = [self._agent.attempts.abort(ticket, instance_id) for instance_id in instances]
        return pb.AbortCallResponse(held=any(held))

    async def DescribeAgent(self, request: pb.DescribeAgentRequest, context: Context) -> pb.DescribeAgentResponse:
        return pb.DescribeAgentResponse(
            agent=announcement_to_proto(self._agent.announcement()),
            held=[held_to_proto(held) for held in self._agent.attempts.held()],
        )


def _check_pull(request: pb.PullKvRequest) -> None:
    _check_ticket(request.ticket, "ticket")
    if request.to_link.bytes_per_s < 1:
        text = f"must be at least 1; got {request.to_link.bytes_per_s}"
        raise bad("BAD_LINK", "to_link.bytes_per_s", text)


def _check_ticket(ticket: ids_pb2.Ticket, field: str) -> None:
    """`InvalidArgument` (NO_TICKET) for one that no scheduler can have minted."""
    if ticket.epoch < 1 or ticket.attempt < 1 or not (ticket.call.workflow_id and ticket.call.node_id):
        raise bad("NO_TICKET", field, "must name a call, an attempt and an epoch")
