"""What an agent reads back of a streamed call whose attempt was lost."""

import asyncio

import pytest

from hexagent.core.errors import Aborted
from hexagent.core.ids import CallId, Ticket
from hexagent.runtime.bus import Bus
from hexagent_services.worker_agent.requests import BodyCache
from hexagent_services.worker_agent.results import Results

pytestmark = pytest.mark.integration

CALL = CallId("w", "c")


async def stored(results: Results, bus: Bus, *deltas: tuple[int, bytes]) -> None:
    """Publish (offset, text) of one token a letter, and wait until the stream has them."""
    for offset, text in deltas:
        results.tokens(Ticket(CALL, 1, 1), offset, len(text), text, False)
    await bus.flush()
    await asyncio.sleep(0.05)


async def test_a_retry_goes_on_behind_what_was_published(bus: Bus) -> None:
    results = Results(bus, BodyCache(bus), "agent")
    assert await results.delivered(CALL) == (0, b"")
    await stored(results, bus, (0, b"abc"), (3, b"d"), (3, b"d"), (4, b"ef"))
    assert await results.delivered(CALL) == (6, b"abcdef")


async def test_a_gap_is_never_filled_with_other_tokens(bus: Bus) -> None:
    results = Results(bus, BodyCache(bus), "agent")
    await stored(results, bus, (0, b"abc"), (5, b"f"))
    with pytest.raises(Aborted, match="3 to 5") as lost:
        await results.delivered(CALL)
    assert lost.value.reason == "TOKENS_LOST"
