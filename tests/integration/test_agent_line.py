"""What agents ask of each other, on long streams."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.api.worker.v1 import worker_service_pb2_grpc as stubs
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import Role
from hexagent.runtime.grpc_server import GrpcServer
from hexagent_services.worker_agent.engine.port import EngineRefused
from hexagent_services.worker_agent.peers import Peers
from tests.contract.engines import spec

pytestmark = pytest.mark.integration

Context = grpc.aio.ServicerContext[Any, Any]
TARGET = spec("d", Role.DECODE)


class Agent(stubs.WorkerServiceServicer):
    """Answers pulls two at a time, the later one first; `break` ends the stream."""

    def __init__(self) -> None:
        self.streams = 0

    async def PullKv(
        self, request_iterator: AsyncIterator[pb.PullKvRequest], context: Context
    ) -> AsyncIterator[pb.PullKvResponse]:
        self.streams += 1
        held: list[pb.PullKvRequest] = []
        async for request in request_iterator:
            if request.from_instance == "break":
                await context.abort(grpc.StatusCode.UNAVAILABLE)
            held.insert(0, request)
            if len(held) < 2:
                continue
            for one in held:
                yield pb.PullKvResponse(data=b"a chunk ahead", number=one.number)
            for one in held:
                reason = "UNKNOWN_TICKET" if one.from_instance == "nobody" else ""
                kv_bytes = len(one.from_instance)
                yield pb.PullKvResponse(last=True, number=one.number, reason=reason, kv_bytes=kv_bytes)
            held.clear()


@pytest_asyncio.fixture
async def agent() -> AsyncIterator[tuple[Agent, Peers, str]]:
    server = GrpcServer("127.0.0.1", 0, [pb.DESCRIPTOR.services_by_name["WorkerService"]])
    agent, peers = Agent(), Peers()  # type: ignore[abstract]  # the other methods are not called
    stubs.add_WorkerServiceServicer_to_server(agent, server.raw)
    yield agent, peers, f"127.0.0.1:{await server.start()}"
    await peers.close()
    await server.stop(0)


async def pull(peers: Peers, address: str, source: str) -> int | str:
    """KV bytes, or why there are none."""
    try:
        return (await peers.pull(address, Ticket(CallId("w", source), 1, 1), source, TARGET)).kv_bytes
    except EngineRefused as error:
        return error.reason


async def test_answers_find_their_requests_on_one_stream_that_is_opened_again(agent: tuple[Agent, Peers, str]) -> None:
    served, peers, address = agent

    async def pulls(*sources: str) -> list[int | str]:
        return await asyncio.gather(*(pull(peers, address, source) for source in sources))

    assert await pulls("p", "p-2", "nobody", "p-long") == [1, 3, "KV_LOST_UNKNOWN_TICKET", 6]
    assert served.streams == 1
    assert await pulls("p", "break") == ["KV_LOST_UNAVAILABLE"] * 2, "who waits on a stream that breaks is told"
    assert await pulls("p", "p-2") == [1, 3]
    assert served.streams == 2


async def test_an_agent_that_is_not_there_says_no() -> None:
    peers = Peers()
    assert await peers.hand_off("127.0.0.1:1", pb.HandOffRequest()) == "UNREACHABLE_UNAVAILABLE"
    await peers.close()


async def test_a_holder_that_never_answers_is_waited_for_only_so_long(
    agent: tuple[Agent, Peers, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, peers, address = agent
    monkeypatch.setattr("hexagent_services.worker_agent.peers.PULL_S", 0.2)
    assert await pull(peers, address, "alone") == "KV_LOST_DEADLINE_EXCEEDED"
    rest = await asyncio.gather(*(pull(peers, address, source) for source in ("p", "p-2", "p-long")))
    assert rest == [1, 3, 6], "the stream goes on, and the late answer is nobody's"
    assert served.streams == 1
