"""What the tests of tracker and SDK share: a real dag-tracker process and a double of scheduler and agents."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import hexagent.client
from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.scheduler.v1 import records_pb2
from hexagent.client import Client
from hexagent.core.errors import HexagentError
from hexagent.core.ids import CallId, Ticket
from hexagent.core.workflow.events import CallFinished, WorkflowStarted
from hexagent.core.workflow.graph import Node, WorkflowGraph, is_call
from hexagent.core.workflow.model import CallOutcome, CallTimes, FinishReason, NodeStatus
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.cluster_record import publish_record
from hexagent.runtime.nats_server import NatsServer
from hexagent.wire.codec import ticket_to_proto
from hexagent.wire.segments import Segment, SegmentKind, SegmentRole, segment_to_bytes
from hexagent.wire.tokens import TokenDelta, token_delta_to_bytes
from hexagent.wire.workflow import (
    event_from_bytes,
    outcome_id,
    outcome_to_bytes,
)
from tests.integration.conftest import SMALL, connect

pytestmark = pytest.mark.integration

MODEL = "llama-3.1-70b"
READY_S = 30.0


def _decided(ticket: Ticket) -> bytes:
    """The batch of decision records that says where a call runs."""
    chosen = records_pb2.Candidate(prefill_instance="demo-p0", decode_instance="demo-d0")
    record = records_pb2.DecisionRecord(
        kind=enums_pb2.DECISION_KIND_DISPATCH, ticket=ticket_to_proto(ticket), chosen=chosen
    )
    return records_pb2.DecisionBatch(records=[record]).SerializeToString()


class ClusterDouble:
    """Runs every ready call as its engine options say.

    `test.text` its output, one token a word; `test.delay_s` before each token; `test.fail` and `test.refuse` a
    cause; `test.apart` the output's body is left out of the outcome; `test.hold` runs until cancelled;
    `test.drop` publishes no delta for this token.
    """

    def __init__(self, bus: Bus, clock: ModelClock) -> None:
        self.bus = bus
        self.clock = clock
        self.started: list[CallId] = []
        self.prompts: dict[CallId, list[str]] = {}  # digests or "of:NODE"
        self._graphs: dict[str, WorkflowGraph] = {}
        self._running: dict[CallId, asyncio.Task[None]] = {}
        self._outcomes = 0

    async def run(self) -> None:
        feed = await self.bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS)
        async for batch in feed:
            for message in batch:
                self._take(message.data)

    def _take(self, data: bytes) -> None:
        event = event_from_bytes(data).event
        if isinstance(event, WorkflowStarted):
            self._graphs[event.spec.workflow_id] = WorkflowGraph(event)
            return
        graph = self._graphs[event.workflow_id]
        delta = graph.apply(event)
        if isinstance(event, CallFinished):
            task = self._running.pop(event.outcome.call, None)
            if task is not None and event.outcome.status is NodeStatus.CANCELLED:
                task.cancel()
        for node_id in delta.ready:
            node = graph.node(node_id)
            if is_call(node):
                call = CallId(graph.workflow_id, node_id)
                self.started.append(call)
                self._running[call] = asyncio.create_task(self._run(call, node))

    async def _run(self, call: CallId, node: Node) -> None:
        assert node.spec.call is not None
        request = call_pb2.CallRequest.FromString(node.spec.call.payload)
        self.prompts[call] = [s.ref.digest or f"of:{s.ref.output_of}" for s in request.segments]
        options = dict(request.engine_options)
        dispatched_us = self.clock.now_us()
        ticket = Ticket(call, 1, 1)
        self.bus.publish_core(subjects.DECISION, _decided(ticket))
        if "test.hold" in options:
            await asyncio.Event().wait()
        words = options.get("test.text", f"output of {call.node_id}").encode().split(b" ")
        tokens = [word + (b" " if i + 1 < len(words) else b"") for i, word in enumerate(words)]
        await self._generate(ticket, tokens, request.stream, options)
        await self._end(ticket, dispatched_us, b"".join(tokens), len(tokens), options)

    async def _generate(self, ticket: Ticket, tokens: list[bytes], stream: bool, options: dict[str, str]) -> None:
        delay_s = float(options.get("test.delay_s", "0"))
        for offset, text in enumerate(tokens):
            await asyncio.sleep(delay_s)
            if stream and str(offset) != options.get("test.drop"):
                delta = TokenDelta(ticket.call, 1, offset, 1, text, last=offset + 1 == len(tokens))
                await self.bus.publish_soon(subjects.token(ticket.call), token_delta_to_bytes(delta))

    async def _end(self, ticket: Ticket, dispatched_us: int, text: bytes, tokens: int, options: dict[str, str]) -> None:
        now_us = self.clock.now_us()
        times = CallTimes(dispatched_us, dispatched_us, dispatched_us + 10, 0, 0, now_us, now_us, now_us)
        outcome = CallOutcome(ticket.call, 1, NodeStatus.SUCCEEDED, FinishReason.STOP, times=times)
        if "test.fail" in options:
            outcome = outcome._replace(status=NodeStatus.FAILED, reason=options["test.fail"], message="it broke")
        elif "test.refuse" in options:
            outcome = outcome._replace(
                status=NodeStatus.REFUSED, reason=options["test.refuse"], retry_after_us=2_000_000
            )
        else:
            body = Segment(SegmentRole.ASSISTANT, SegmentKind.OUTPUT, text, tokens=tokens)
            data = segment_to_bytes(body)
            await self.bus.put_bodies([(body.digest, data)])
            outcome = outcome._replace(
                output=body.ref,
                output_body=b"" if "test.apart" in options else data,
                prompt_tokens=100,
                cached_tokens=10,
                output_tokens=tokens,
                prefill_instance="demo-p0",
                decode_instance="demo-d0",
                finish_reason=FinishReason.TOOL_CALLS if "test.tools" in options else FinishReason.STOP,
            )
        self._outcomes += 1
        await self.bus.publish(
            subjects.outcome(ticket.call.workflow_id),
            outcome_to_bytes(outcome, publisher="double", sequence=self._outcomes),
            msg_id=outcome_id(outcome),
        )


class TrackerProcess:
    """The dag-tracker as a process, for `kill` and `start` on one port."""

    def __init__(self, nats_url: str, folder: Path, **settings: object) -> None:
        self._folder = folder
        self._environ = {
            **os.environ,
            "HEXAGENT_NATS_URL": nats_url,
            "HEXAGENT_WORKFLOW_STREAM_BYTES": str(SMALL.workflow_bytes),
            "HEXAGENT_OUTCOME_STREAM_BYTES": str(SMALL.outcome_bytes),
            "HEXAGENT_TOKEN_STREAM_BYTES": str(SMALL.token_bytes),
            "HEXAGENT_DECISION_STREAM_BYTES": str(SMALL.decision_bytes),
            "HEXAGENT_SEGMENT_BUCKET_BYTES": str(SMALL.segment_bytes),
            "HEXAGENT_LISTEN_PORT": "0",
            "HEXAGENT_TICK_S": "0.2",
            **{f"HEXAGENT_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0
        self.log = folder / "dag-tracker.log"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hexagent_services.dag_tracker",
                env=self._environ, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self._process.stdout.readline()
        assert line, self.log.read_text(encoding="utf-8")[-2000:]
        self.port = int(json.loads(line)["port"])
        self._environ["HEXAGENT_LISTEN_PORT"] = str(self.port)

    async def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        assert self._process is not None
        async with asyncio.timeout(READY_S):
            return await self._process.wait()


class Stack:
    """Tracker, double and a client."""

    def __init__(self, tracker: TrackerProcess, double: ClusterDouble, bus: Bus, client: Client) -> None:
        self.tracker = tracker
        self.double = double
        self.bus = bus
        self.client = client


@contextlib.asynccontextmanager
async def running_stack(server: NatsServer, folder: Path, **settings: object) -> AsyncIterator[Stack]:
    """A fresh stack on empty streams; `settings` are the tracker's."""
    record = load_cluster("demo").record(time.time_ns())
    async with await connect(server.url) as bus:
        await bus.ensure_streams(SMALL)
        await publish_record(bus, record)
        double = ClusterDouble(bus, ModelClock(record.origin_wall_ns, record.time_scale))
        task = asyncio.create_task(double.run())
        tracker = TrackerProcess(server.url, folder, **settings)
        await tracker.start()
        try:
            async with hexagent.client.connect(tracker.address, patience_s=20) as client:
                yield Stack(tracker, double, bus, client)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await tracker.stop()


@contextlib.contextmanager
def refused(kind: type[HexagentError], reason: str, field: str = "") -> Iterator[None]:
    """Expect this error with this reason."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.reason == reason
    if field:
        assert caught.value.field == field
