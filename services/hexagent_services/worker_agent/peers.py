"""Calls to other agents: hand-offs, pulls and aborts, over one channel an address."""

from typing import Final

import grpc

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.api.worker.v1 import worker_service_pb2_grpc as stubs
from hexagent.core.ids import Ticket
from hexagent.core.instance.spec import InstanceSpec
from hexagent.runtime.grpc_client import open_channel
from hexagent.wire.cluster import link_to_proto
from hexagent.wire.codec import ticket_to_proto
from hexagent.wire.status import from_rpc_error
from hexagent_services.worker_agent.engine.port import EngineRefused, KvPiece

HAND_OFF_S: Final = 5.0  # wall time; the peer only queues the call
ABORT_S: Final = 2.0


class Peers:
    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, stubs.WorkerServiceAsyncStub] = {}

    def _stub(self, address: str) -> "stubs.WorkerServiceAsyncStub":
        stub = self._stubs.get(address)
        if stub is None:
            channel = self._channels[address] = open_channel(address)
            stub = self._stubs[address] = stubs.WorkerServiceStub(channel)
        return stub

    async def hand_off(self, address: str, request: pb.HandOffRequest) -> str:
        """Offer a prefilled call; "" when it was taken, else why not. An agent that does not answer says no."""
        try:
            response = await self._stub(address).HandOff(request, timeout=HAND_OFF_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return from_rpc_error(error).reason
            return f"UNREACHABLE_{error.code().name}"
        return "" if response.accepted else response.reason

    async def pull(self, address: str, ticket: Ticket, source: str, target: InstanceSpec) -> KvPiece:
        """Fetch the KV that `source` holds; returns the transfer's measurements. `EngineRefused` (KV_LOST)."""
        request = pb.PullKvRequest(
            ticket=ticket_to_proto(ticket),
            from_instance=source,
            to_instance=target.instance_id,
            to_link=link_to_proto(target.link),
        )
        try:
            async for piece in self._stub(address).PullKv(request):
                if piece.last:
                    return KvPiece(b"", True, piece.kv_bytes, piece.start_us, piece.end_us)
        except grpc.aio.AioRpcError as error:
            raise EngineRefused(f"KV_LOST_{error.code().name}") from error
        raise EngineRefused("KV_LOST")

    async def abort(self, address: str, ticket: Ticket, instance_id: str, reason: str) -> None:
        """Tell a peer that an attempt is over; a peer that does not answer finds out by itself."""
        request = pb.AbortCallRequest(ticket=ticket_to_proto(ticket), instance_id=instance_id, reason=reason)
        try:
            await self._stub(address).AbortCall(request, timeout=ABORT_S)
        except grpc.aio.AioRpcError:
            return

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
