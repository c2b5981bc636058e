"""A real nats-server for the whole session, and buses on streams that start empty in each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import nats.js.errors
import pytest
import pytest_asyncio

from hexagent.runtime.bus import Bus, BusOptions
from hexagent.runtime.nats_server import NatsServer
from hexagent.runtime.streams import StreamLimits, stream_configs

SMALL = StreamLimits(
    workflow_bytes=64 * 2**20,
    outcome_bytes=64 * 2**20,
    token_bytes=32 * 2**20,
    decision_bytes=32 * 2**20,
    segment_bytes=64 * 2**20,
)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server on a free port; use `bus` or `wiped_streams` so that tests do not see each other's messages.

    Started on an event loop of its own, which has to stay the current child watcher's for as long as it runs.
    """
    server = NatsServer(tmp_path_factory.mktemp("nats"), limits=SMALL)
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield server
        runner.run(server.stop())


@pytest_asyncio.fixture
async def wiped_streams(nats_server: NatsServer) -> NatsServer:
    """The session's server without any stream or bucket."""
    await wipe(nats_server.url)
    return nats_server


@pytest_asyncio.fixture
async def bus(wiped_streams: NatsServer) -> AsyncIterator[Bus]:
    """A bus with fresh, empty streams and buckets."""
    async with await connect(wiped_streams.url) as bus:
        await bus.ensure_streams(SMALL)
        yield bus


@pytest_asyncio.fixture
async def crashing_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server of this test alone, for `kill` and `start`."""
    server = NatsServer(tmp_path / "nats", limits=SMALL)
    await server.start()
    yield server
    await server.stop()


async def connect(url: str, name: str = "test", deadline_s: float = 10.0) -> Bus:
    """One more connection."""
    return await Bus.connect(BusOptions(url, name, deadline_s=deadline_s))


async def wipe(url: str) -> None:
    """Remove every stream and bucket."""
    connection = await nats.connect(url)
    try:
        jetstream = connection.jetstream()
        for config in stream_configs(SMALL):
            try:
                await jetstream.delete_stream(config.name or "")
            except nats.js.errors.NotFoundError:
                continue
    finally:
        await connection.close()
