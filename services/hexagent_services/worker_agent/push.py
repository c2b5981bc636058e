"""Push hand-off on the prefill side: decode blocks are asked for when prefill starts, KV is offered when it ends."""

import asyncio
from collections.abc import Callable

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.instance.spec import PROFILES, HandOff
from hexagent.wire.codec import ticket_from_proto
from hexagent.wire.worker import DispatchCommand
from hexagent_services.worker_agent.engine.port import EngineRequest
from hexagent_services.worker_agent.live import LiveAttempt, hand_off_request
from hexagent_services.worker_agent.peers import Peers


class Reservations:
    """Makes those of this agent's attempts; `address` is where KV is pulled from."""

    def __init__(self, peers: Peers, address: str) -> None:
        self.peers = peers
        self._address = address
        self._giving_up: set[asyncio.Task[None]] = set()

    def of(
        self, attempt: LiveAttempt, request: EngineRequest, order: DispatchCommand, refused: Callable[[str], None]
    ) -> "Reservation | None":
        """None under pull. `refused` is told why the decode side says no, upon which the scheduler ends the attempt."""
        if PROFILES[attempt.engine.spec.profile].hand_off is not HandOff.PUSH:
            return None
        offer = hand_off_request(attempt, request, None, order.decode_instance, self._address)
        return Reservation(self, order.decode_address, offer, refused)

    def give_up(self, reservation: "Reservation | None") -> None:
        """No KV will come: the decode side is told, behind what it was asked."""
        if reservation is not None:
            task = asyncio.create_task(reservation.cancel())
            self._giving_up.add(task)
            task.add_done_callback(self._giving_up.discard)


class Reservation:
    """Of one attempt."""

    def __init__(
        self, owner: Reservations, address: str, offer: pb.HandOffRequest, refused: Callable[[str], None]
    ) -> None:
        self._peers = owner.peers
        self._address = address
        self._offer = offer
        self._refused = refused
        self._asking: asyncio.Task[bool] | None = None

    def begin(self) -> None:
        """Ask the decode side; the engine calls this when prefill starts."""
        self._asking = asyncio.create_task(self._ask())

    async def made(self) -> bool:
        """Whether the decode side holds blocks, or waits for some."""
        return self._asking is not None and await asyncio.shield(self._asking)

    async def cancel(self) -> None:
        if await self.made():
            ticket = ticket_from_proto(self._offer.attempt.ticket)
            await self._peers.abort(self._address, ticket, self._offer.target_instance, "NO_KV")

    async def _ask(self) -> bool:
        reason = await self._peers.hand_off(self._address, self._offer)
        if reason:
            self._refused(reason)
        return not reason
