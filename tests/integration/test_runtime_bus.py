"""The bus against a real nats-server: order, once, across crashes."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

import pytest

from hexagent.core.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from hexagent.core.ids import CallId
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus, BusOptions, Feed, Message
from hexagent.runtime.connection import Arrival, Connection
from hexagent.runtime.nats_server import NatsServer
from hexagent.runtime.publisher import AckedPublisher
from hexagent.runtime.streams import EVENT_BYTES_MAX, MESSAGE_BYTES_MAX, StreamLimits
from tests.integration.conftest import SMALL, connect

pytestmark = pytest.mark.integration


async def _read(bus: Bus, stream: str, subject: str, start_sequence: int = 1) -> list[bytes]:
    """Everything stored, in order."""
    found: list[bytes] = []
    async with await bus.follow(stream, subject, start_sequence) as feed:
        async for batch in feed.backlog():
            found += [message.data for message in batch]
    return found


async def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  the condition is about another part's state
            await asyncio.sleep(0.005)


async def _drain(feed: Feed) -> None:
    async for _ in feed:
        pass


def _collector(into: list[Message]) -> Callable[[Sequence[Message]], Awaitable[None]]:
    async def handle(batch: Sequence[Message]) -> None:
        into.extend(batch)

    return handle


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def test_what_is_published_is_read_in_order_with_its_sequence(bus: Bus) -> None:
    sequences = [await bus.publish(subjects.workflow(f"w{i % 3}"), b"%d" % i) for i in range(20)]

    assert sequences == list(range(1, 21))
    assert await _read(bus, subjects.WORKFLOW, subjects.ALL_WORKFLOWS) == [b"%d" % i for i in range(20)]
    assert await _read(bus, subjects.WORKFLOW, subjects.workflow("w1")) == [b"%d" % i for i in range(1, 20, 3)]
    assert await _read(bus, subjects.WORKFLOW, subjects.ALL_WORKFLOWS, start_sequence=19) == [b"18", b"19"]


async def test_a_message_id_stores_once(bus: Bus) -> None:
    first = await bus.publish(subjects.outcome("w"), b"one", msg_id="w/a#1")
    second = await bus.publish(subjects.outcome("w"), b"two", msg_id="w/a#1")

    assert first == second
    assert await _read(bus, subjects.OUTCOMES, subjects.ALL_OUTCOMES) == [b"one"]


async def test_an_expected_sequence_guards_a_subject(bus: Bus) -> None:
    sequence = await bus.publish(subjects.workflow("w"), b"a", expected_sequence=0)
    await bus.publish(subjects.workflow("other"), b"b", expected_sequence=0)
    await bus.publish(subjects.workflow("w"), b"c", msg_id="c", expected_sequence=sequence)

    with pytest.raises(Aborted) as refused:
        await bus.publish(subjects.workflow("w"), b"d", expected_sequence=sequence)

    assert refused.value.reason == "WRONG_SEQUENCE"
    last = await bus.last(subjects.WORKFLOW, subjects.workflow("w"))
    assert last is not None
    assert (last.data, last.sequence) == (b"c", 3)
    assert await bus.last(subjects.WORKFLOW, subjects.workflow("nobody")) is None


async def test_a_lost_answer_is_no_conflict(bus: Bus, wiped_streams: NatsServer) -> None:
    """The second sending of a guarded message finds the first one in its way, and that is success."""

    class Deaf(AckedPublisher):
        answers = 0

        def _on_answer(self, message: Arrival) -> None:
            self.answers += 1
            if self.answers > 1:
                super()._on_answer(message)

    connection = Connection()
    await connection.connect(wiped_streams.url)
    publisher = Deaf(connection, 16)
    await publisher.start()
    headers = {"Nats-Msg-Id": "a", "Nats-Expected-Last-Subject-Sequence": "0"}
    future = await publisher.send(subjects.workflow("w"), b"a", headers, 10.0)

    assert await future == 1
    assert publisher.answers == 2
    assert await _read(bus, subjects.WORKFLOW, subjects.ALL_WORKFLOWS) == [b"a"]
    await publisher.close()
    await connection.close()


async def test_messages_above_the_limits_are_refused(bus: Bus) -> None:
    with pytest.raises(ResourceExhausted) as above_stream:
        await bus.publish(subjects.workflow("w"), bytes(EVENT_BYTES_MAX + 1))
    with pytest.raises(ResourceExhausted) as above_server:
        await bus.publish(subjects.DECISION, bytes(MESSAGE_BYTES_MAX + 1))

    assert above_stream.value.reason == above_server.value.reason == "MESSAGE_TOO_LARGE"
    await bus.publish(subjects.workflow("w"), b"still alive")


@pytest.mark.parametrize("poll_s", [0.0, 0.05])
async def test_a_replay_goes_on_with_what_comes(bus: Bus, wiped_streams: NatsServer, poll_s: float) -> None:
    for i in range(1000):
        await bus.publish_soon(subjects.workflow("w"), b"%d" % i)
    await bus.flush()
    async with await connect(wiped_streams.url) as reader:
        feed = await reader.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS, batch_max=64, poll_s=poll_s)
        backlog = [message async for batch in feed.backlog() for message in batch]
        live: list[Message] = []

        async def follow() -> None:
            async for batch in feed:
                live.extend(batch)

        task = asyncio.create_task(follow())
        for i in range(1000, 1100):
            await bus.publish(subjects.workflow("w"), b"%d" % i)
        await _until(lambda: len(live) == 100)
        await feed.close()
        await asyncio.wait_for(task, 1)

    assert [int(message.data) for message in backlog] == list(range(1000))
    assert [int(message.data) for message in live] == list(range(1000, 1100))
    assert [message.sequence for message in backlog + live] == list(range(1, 1101))


async def test_the_backlog_of_an_empty_stream_is_empty(bus: Bus) -> None:
    assert await _read(bus, subjects.WORKFLOW, subjects.ALL_WORKFLOWS) == []


async def test_a_consumer_goes_on_behind_what_it_acknowledged(bus: Bus, wiped_streams: NatsServer) -> None:
    seen: list[Message] = []
    consuming = asyncio.create_task(
        bus.consume(subjects.OUTCOMES, "tracker", subjects.ALL_OUTCOMES, _collector(seen), batch_max=7)
    )
    for i in range(50):
        await bus.publish(subjects.outcome("w"), b"%d" % i)
    await _until(lambda: len(seen) == 50)
    await asyncio.sleep(0.05)  # for the last acknowledgement, which nothing waits for
    await _cancel(consuming)
    await bus.publish(subjects.outcome("w"), b"50")

    async with await connect(wiped_streams.url) as second:
        later: list[Message] = []
        consuming = asyncio.create_task(
            second.consume(subjects.OUTCOMES, "tracker", subjects.ALL_OUTCOMES, _collector(later))
        )
        await _until(lambda: len(later) == 1)
        await _cancel(consuming)

    assert [int(message.data) for message in seen] == list(range(50))
    assert [int(message.data) for message in later] == [50]


async def test_an_unfinished_batch_is_delivered_again_at_once(bus: Bus, wiped_streams: NatsServer) -> None:
    async def fail(batch: Sequence[Message]) -> None:
        raise ValueError("handler")

    for i in range(5):
        await bus.publish(subjects.outcome("w"), b"%d" % i)
    with pytest.raises(ValueError, match="handler"):
        await asyncio.wait_for(bus.consume(subjects.OUTCOMES, "tracker", subjects.ALL_OUTCOMES, fail), 5)

    async with await connect(wiped_streams.url) as second:
        seen: list[Message] = []
        started_s = asyncio.get_running_loop().time()
        consuming = asyncio.create_task(
            second.consume(subjects.OUTCOMES, "tracker", subjects.ALL_OUTCOMES, _collector(seen))
        )
        await _until(lambda: len(seen) == 5)
        took_s = asyncio.get_running_loop().time() - started_s
        await _cancel(consuming)

    assert [int(message.data) for message in seen] == list(range(5))
    assert took_s < 2


async def test_core_messages_reach_who_listens(bus: Bus, wiped_streams: NatsServer) -> None:
    heard: list[str] = []

    def on_report(message: Message) -> None:
        if message.data == b"bad":
            raise ValueError("a handler's error does not end its subscription")
        heard.append(message.subject)

    async with await connect(wiped_streams.url) as listener:
        await listener.subscribe_core(subjects.ALL_TELEMETRY, on_report)
        bus.publish_core(subjects.telemetry("p-h100-0"), b"bad")
        bus.publish_core(subjects.telemetry("p-h100-0"), b"x")
        bus.publish_core(subjects.telemetry("d.a:1"), b"y")
        await _until(lambda: len(heard) == 2)

    assert heard == [subjects.telemetry("p-h100-0"), subjects.telemetry("d.a:1")]


async def test_bucket_operations(bus: Bus) -> None:
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    key = subjects.agent_key("agent-1.local:9")
    assert await bucket.get(key) is None

    created = await bucket.create(key, b"one")
    with pytest.raises(AlreadyExists):
        await bucket.create(key, b"two")
    updated = await bucket.update(key, b"three", created)
    with pytest.raises(Aborted):
        await bucket.update(key, b"four", created)
    entry = await bucket.get(key)
    assert entry is not None
    assert (entry.value, entry.revision) == (b"three", updated)

    await bucket.delete(key)
    assert await bucket.get(key) is None
    await bucket.create(key, b"")
    empty = await bucket.get(key)
    assert empty is not None
    assert empty.value == b""


async def test_only_one_of_many_writers_wins(bus: Bus) -> None:
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    results = await asyncio.gather(*(bucket.create("leader", b"%d" % i) for i in range(20)), return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, AlreadyExists) for result in results) == 19


async def test_a_watch_begins_with_what_is_there(bus: Bus) -> None:
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    await bucket.put("agent.a", b"1")
    await bucket.put("agent.b", b"1")
    await bucket.put("agent.a", b"2")
    await bucket.put(subjects.CLUSTER_RECORD_KEY, b"record")
    async with await bucket.watch(subjects.ALL_AGENTS_KEY) as watch:
        present = [(entry.key, entry.value) async for entry in watch.backlog()]
        await bucket.delete("agent.b")
        await bucket.put("agent.c", b"3")
        changes: list[tuple[str, bytes | None]] = []
        async for entry in watch:
            changes.append((entry.key, entry.value))
            if len(changes) == 2:
                break

    assert present == [("agent.b", b"1"), ("agent.a", b"2")]
    assert changes == [("agent.b", None), ("agent.c", b"3")]
    assert [entry.key for entry in await bucket.entries("agent.*")] == ["agent.a", "agent.c"]


async def test_bodies_are_kept_by_digest_until_deleted(bus: Bus) -> None:
    bodies = [(f"{i:064x}", b"%d" % i * 1000) for i in range(40)]
    await bus.put_bodies(bodies)
    digests = [digest for digest, _ in bodies]

    assert await bus.get_bodies([*digests, "f" * 64]) == [*(body for _, body in bodies), None]
    await bus.delete_bodies(digests[:2])
    assert await bus.get_bodies(digests[:3]) == [None, None, bodies[2][1]]
    with pytest.raises(InvalidArgument) as refused:
        await bus.put_bodies([("0" * 64, bytes(1024 * 1024 + 1))])
    assert refused.value.reason == "BODY_TOO_LARGE"


async def test_a_full_bucket_refuses_and_keeps_what_it_has(wiped_streams: NatsServer) -> None:
    async with await connect(wiped_streams.url) as bus:
        await bus.ensure_streams(SMALL._replace(segment_bytes=2**20))
        await bus.put_bodies([("a" * 64, bytes(600_000))])
        with pytest.raises(ResourceExhausted) as refused:
            await bus.put_bodies([("b" * 64, bytes(600_000))])
        assert refused.value.reason == "STREAM_FULL"
        assert await bus.get_bodies(["a" * 64]) == [bytes(600_000)]


async def test_streams_can_be_ensured_by_all_at_once_and_changed_later(wiped_streams: NatsServer) -> None:
    buses = [await connect(wiped_streams.url) for _ in range(4)]
    try:
        await asyncio.gather(*(bus.ensure_streams(SMALL) for bus in buses))
        await buses[0].publish(subjects.workflow("w"), b"kept")
        await buses[1].ensure_streams(SMALL._replace(workflow_age_s=3600.0))
        with pytest.raises(FailedPrecondition) as refused:
            await buses[1].ensure_streams(SMALL._replace(workflow_bytes=2**50))
        assert refused.value.reason == "STREAM_CONFLICT"
        assert await _read(buses[2], subjects.WORKFLOW, subjects.ALL_WORKFLOWS) == [b"kept"]
    finally:
        for bus in buses:
            await bus.close()


async def test_missing_streams_and_servers_are_typed_errors(wiped_streams: NatsServer) -> None:
    async with await connect(wiped_streams.url, deadline_s=0.5) as bus:
        with pytest.raises(FailedPrecondition) as missing:
            await bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS)
        with pytest.raises(Unavailable):
            await bus.publish(subjects.workflow("w"), b"nobody stores this")
        with pytest.raises(Unavailable):
            await bus.bucket(subjects.CLUSTER_BUCKET).get("record")
    assert missing.value.reason == "STREAM_MISSING"
    with pytest.raises(Unavailable) as unreachable:
        await Bus.connect(BusOptions("nats://127.0.0.1:1", "test", connect_s=0.3))
    assert unreachable.value.reason == "BUS_UNAVAILABLE"


async def test_publishing_waits_when_too_many_are_in_flight(wiped_streams: NatsServer) -> None:
    async with await Bus.connect(BusOptions(wiped_streams.url, "test", in_flight_max=8)) as bus:
        await bus.ensure_streams(SMALL)
        futures = [await bus.publish_soon(subjects.workflow("w"), b"%d" % i) for i in range(500)]
        assert await asyncio.gather(*futures) == list(range(1, 501))


async def test_a_crashed_server_loses_nothing_acknowledged(crashing_server: NatsServer) -> None:
    """Three kills under load: every message once, in order, to a follower, a consumer and a later replay."""
    publisher = await connect(crashing_server.url, "publisher", deadline_s=20)
    reader = await connect(crashing_server.url, "reader")
    await publisher.ensure_streams(SMALL)
    port = crashing_server.port
    followed: list[Message] = []
    consumed: list[Message] = []
    feed = await reader.follow(subjects.OUTCOMES, subjects.ALL_OUTCOMES)

    async def follow() -> None:
        async for batch in feed:
            followed.extend(batch)

    tasks = [
        asyncio.create_task(follow()),
        asyncio.create_task(reader.consume(subjects.OUTCOMES, "t", subjects.ALL_OUTCOMES, _collector(consumed))),
    ]
    futures: list[asyncio.Future[int]] = []

    async def publish() -> None:
        for i in range(3000):
            futures.append(await publisher.publish_soon(subjects.outcome("w"), b"%d" % i, msg_id=f"m{i}"))
            if i % 10 == 0:
                await asyncio.sleep(0.002)

    publishing = asyncio.create_task(publish())
    for _ in range(3):
        await asyncio.sleep(0.15)
        await crashing_server.kill()
        await crashing_server.start()
        assert crashing_server.port == port
    await publishing
    sequences = await asyncio.gather(*futures)
    await _until(lambda: len(followed) >= 3000 and len(consumed) >= 3000, 20)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    expected = list(range(3000))
    assert sequences == list(range(1, 3001))
    assert [int(message.data) for message in followed] == expected
    assert [int(message.data) for message in consumed] == expected
    assert [int(data) for data in await _read(publisher, subjects.OUTCOMES, subjects.ALL_OUTCOMES)] == expected
    await publisher.close()
    await reader.close()


async def test_a_restarted_server_keeps_buckets_and_watches(crashing_server: NatsServer) -> None:
    async with await connect(crashing_server.url) as bus:
        await bus.ensure_streams(SMALL)
        bucket = bus.bucket(subjects.CLUSTER_BUCKET)
        await bucket.put("agent.a", b"1")
        async with await bucket.watch(subjects.ALL_AGENTS_KEY) as watch:
            assert [entry.key async for entry in watch.backlog()] == ["agent.a"]
            await crashing_server.kill()
            writing = asyncio.create_task(bucket.put("agent.b", b"2"))
            await crashing_server.start()
            await writing
            async for entry in watch:
                assert (entry.key, entry.value) == ("agent.b", b"2")
                break
        kept = await bucket.get("agent.a")
        assert kept is not None
        assert kept.value == b"1"


async def test_a_stream_in_memory_is_there_again_after_a_crash(crashing_server: NatsServer) -> None:
    async with await connect(crashing_server.url) as bus:
        await bus.ensure_streams(SMALL)
        await crashing_server.kill()
        await crashing_server.start()
        await bus.publish(subjects.token(CallId("w", "n")), b"later")
        assert await _read(bus, subjects.TOKENS, subjects.ALL_TOKENS) == [b"later"]


async def test_a_wiped_server_is_noticed_not_followed(crashing_server: NatsServer) -> None:
    """A reader that has state from a stream that begins anew must not go on as if nothing were missing."""
    async with await connect(crashing_server.url) as bus:
        await bus.ensure_streams(SMALL)
        feed = await bus.follow(subjects.TOKENS, subjects.ALL_TOKENS)  # in memory: gone after a crash
        for i in range(3):
            await bus.publish(subjects.token(CallId("w", "n")), b"%d" % i)
        assert len(await feed.next_batch()) > 0
        await crashing_server.kill()
        await crashing_server.start()
        await bus.ensure_streams(SMALL)
        reading = asyncio.create_task(_drain(feed))
        with pytest.raises(FailedPrecondition) as noticed:
            await asyncio.wait_for(reading, 10)
    assert noticed.value.reason in ("STREAM_RESET", "STREAM_MISSING")


async def test_one_server_a_data_folder(crashing_server: NatsServer) -> None:
    second = NatsServer(crashing_server.data_dir, limits=StreamLimits())
    with pytest.raises(FailedPrecondition) as refused:
        await second.start()
    assert refused.value.reason == "DATA_FOLDER_IN_USE"


async def test_the_port_of_a_data_folder_is_kept(crashing_server: NatsServer) -> None:
    port = crashing_server.port
    await crashing_server.stop()
    async with NatsServer(crashing_server.data_dir, limits=SMALL) as again:
        assert again.port == port
        third = NatsServer(crashing_server.data_dir.parent / "third", port=port, limits=SMALL)
        with pytest.raises(Unavailable) as taken:
            await third.start()
    assert taken.value.reason == "NATS_SERVER_FAILED"
    assert "address already in use" in taken.value.message


async def test_what_nobody_answers_is_bounded_while_the_server_does_not_read(
    crashing_server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hexagent.runtime.bus.UNSENT_BYTES_MAX", 1 << 20)
    async with await connect(crashing_server.url) as bus:
        assert crashing_server.pid is not None
        os.kill(crashing_server.pid, signal.SIGSTOP)
        try:
            for _ in range(400):
                bus.publish_core("anything", bytes(64 << 10))
                await asyncio.sleep(0)
            # The socket's own buffers took some of the 25 MiB.
            assert bus._connection.unsent_bytes < 2 << 20
            assert "NATS has not read" in caplog.text
        finally:
            os.kill(crashing_server.pid, signal.SIGCONT)
