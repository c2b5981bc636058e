"""Watchers of one process: bounds, laziness, and messages that never split an event."""

import asyncio

import pytest

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.errors import ResourceExhausted, Unavailable
from hexagent_services.dag_tracker.relay import MESSAGE_BYTES, Relay, RelayLimits, chunks


def node(sequence: int, status: int, text: str = "") -> workflow_pb2.WorkflowUpdate:
    update = workflow_pb2.WorkflowUpdate(sequence=sequence)
    update.node.kind = enums_pb2.NODE_KIND_CALL
    update.node.status = enums_pb2.NodeStatus.ValueType(status)
    update.node.message = text
    return update


async def test_a_slow_watcher_is_ended_and_can_resume() -> None:
    relay = Relay(RelayLimits(watchers=1, queued_bytes=1_000))
    watcher = relay.attach("w", tokens=False)
    with pytest.raises(ResourceExhausted, match="watchers are open"):
        relay.attach("w", tokens=False)
    for i in range(100):
        relay.show("w", [node(i + 1, enums_pb2.NODE_STATUS_SUCCEEDED)])
    for _ in range(2):
        with pytest.raises(ResourceExhausted) as caught:
            await watcher.next()
        assert caught.value.reason == "WATCHER_TOO_SLOW"
    relay.detach(watcher)
    assert not relay.watched("w")
    relay.attach("w", tokens=False)


async def test_news_that_nobody_acts_on_waits_for_company() -> None:
    relay = Relay(RelayLimits())
    watcher = relay.attach("w", tokens=False)
    relay.show("w", [node(1, enums_pb2.NODE_STATUS_READY)])
    relay.show("w", [node(1, enums_pb2.NODE_STATUS_RUNNING)])
    reading = asyncio.create_task(watcher.next())
    await asyncio.sleep(0)
    assert not reading.done()
    relay.show("w", [node(2, enums_pb2.NODE_STATUS_SUCCEEDED)])
    assert [update.sequence for update in await reading] == [1, 1, 2]
    relay.show("w", [node(3, enums_pb2.NODE_STATUS_READY)])
    async with asyncio.timeout(5):
        assert [update.sequence for update in await watcher.next()] == [3]


async def test_tokens_reach_only_those_who_want_them() -> None:
    relay = Relay(RelayLimits())
    quiet, eager = relay.attach("w", tokens=False), relay.attach("w", tokens=True)
    relay.show_tokens("w", workflow_pb2.WorkflowUpdate())
    relay.show("w", [node(1, enums_pb2.NODE_STATUS_FAILED)])
    assert len(await quiet.next()) == 1
    assert len(await eager.next()) == 2


async def test_closing_ends_every_watcher() -> None:
    relay = Relay(RelayLimits())
    watcher = relay.attach("w", tokens=False)
    await relay.close()
    with pytest.raises(Unavailable):
        await watcher.next()
    with pytest.raises(Unavailable):
        relay.attach("w", tokens=False)


def test_one_event_is_never_split() -> None:
    large = "x" * (MESSAGE_BYTES // 2)
    updates = [node(i // 3, enums_pb2.NODE_STATUS_SUCCEEDED, large) for i in range(3, 12)]
    groups = list(chunks(updates))
    assert [update for group in groups for update in group] == updates
    assert [{update.sequence for update in group} for group in groups] == [{1}, {2}, {3}]
