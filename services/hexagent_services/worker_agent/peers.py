"""What this agent asks of others: hand-offs, pulls and aborts, over one channel an address."""

import asyncio
from typing import Final

import grpc

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.api.worker.v1 import worker_service_pb2_grpc as stubs
from hexagent.core.ids import Ticket
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.scheduling.events import UNREACHABLE
from hexagent.runtime.grpc_client import open_channel
from hexagent.wire.cluster import link_to_proto
from hexagent.wire.codec import ticket_to_proto
from hexagent_services.worker_agent.engine.port import EngineRefused, KvPiece
from hexagent_services.worker_agent.line import Line

HAND_OFF_S: Final = 5.0  # wall time; the peer only queues the call
ABSENT_S: Final = 0.25  # before a peer that cannot be reached counts as a no: one that starts again takes seconds
PULL_S: Final = 300.0  # behind everything else that its holder may have to send
ABORT_S: Final = 2.0
WARM_UP_S: Final = 90.0  # longer than engines wait for KV by default; some connections are made for the first time


class Peer:
    """One agent."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.stub: stubs.WorkerServiceAsyncStub = stubs.WorkerServiceStub(self.channel)
        self.offers = Line[pb.HandOffRequest, pb.HandOffResponse](self.stub.HandOff)
        self.pulls = Line[pb.PullKvRequest, pb.PullKvResponse](self.stub.PullKv, lambda chunk: chunk.last)


class Peers:
    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def _peer(self, address: str) -> Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address)
        return peer

    async def hand_off(self, address: str, request: pb.HandOffRequest) -> str:
        """Offer a prefilled call; "" when it was taken, else why not. An agent that does not answer says no."""
        try:
            async with asyncio.timeout(HAND_OFF_S):
                response = await self._peer(address).offers.ask(request)
        except TimeoutError:
            return f"{UNREACHABLE}DEADLINE_EXCEEDED"
        except ConnectionError as error:
            await asyncio.sleep(ABSENT_S)
            return f"{UNREACHABLE}{error}"
        return "" if response.accepted else response.reason

    async def pull(self, address: str, ticket: Ticket, source: str, target: InstanceSpec) -> KvPiece:
        """Fetch the KV that `source` holds; returns the transfer's measurements. `EngineRefused` (KV_LOST_...)."""
        request = pb.PullKvRequest(
            ticket=ticket_to_proto(ticket),
            from_instance=source,
            to_instance=target.instance_id,
            to_link=link_to_proto(target.link),
        )
        try:
            async with asyncio.timeout(PULL_S):
                end = await self._peer(address).pulls.ask(request)
        except TimeoutError:
            raise EngineRefused("KV_LOST_DEADLINE_EXCEEDED") from None
        except ConnectionError as error:
            raise EngineRefused(f"KV_LOST_{error}") from error
        if end.reason:
            raise EngineRefused(f"KV_LOST_{end.reason}")
        return KvPiece(b"", True, end.kv_bytes, end.start_us, end.end_us)

    async def runs(self, address: str, instance_id: str) -> bool:
        """Whether an agent is there to stay, and the engine of an instance of it runs."""
        try:
            answer = await self._peer(address).stub.DescribeAgent(pb.DescribeAgentRequest(), timeout=HAND_OFF_S)
        except grpc.aio.AioRpcError:
            return False
        return not answer.agent.draining and instance_id not in answer.agent.down

    async def warm_up(self, address: str, request: pb.HandOffRequest) -> tuple[str, int]:
        """Have a prompt pulled that nobody waits for: why that failed, "" = it did not, and how long it took."""
        try:
            answer = await self._peer(address).stub.WarmUp(pb.WarmUpRequest(hand_off=request), timeout=WARM_UP_S)
        except grpc.aio.AioRpcError as error:
            return f"{UNREACHABLE}{error.code().name}", 0
        return answer.reason, answer.transfer_us

    async def abort(self, address: str, ticket: Ticket, instance_id: str, reason: str) -> None:
        """Tell a peer that an attempt is over; a peer that does not answer finds out by itself."""
        request = pb.AbortCallRequest(ticket=ticket_to_proto(ticket), instance_id=instance_id, reason=reason)
        try:
            await self._peer(address).stub.AbortCall(request, timeout=ABORT_S)
        except grpc.aio.AioRpcError:
            return

    async def close(self) -> None:
        for peer in self._peers.values():
            await peer.channel.close()
