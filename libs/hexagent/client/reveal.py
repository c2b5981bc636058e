"""Nodes on their way to the service: what is revealed in one turn of the event loop travels in one request."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from hexagent.api.common.v1 import call_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.client.board import Stub
from hexagent.client.rpc import is_passing, minted, send
from hexagent.core.errors import HexagentError
from hexagent.wire.segments import INLINE_BODY_MAX_BYTES

NODES_MAX: Final = 1_000  # of one request
NODE_BYTES_MAX: Final = 96 * 1024  # of one request, without bodies: twice that is what one event holds
BODY_BYTES_MAX: Final = 4 * 1024 * 1024  # of one request
KNOWN_MAX: Final = 50_000  # digests

T = TypeVar("T")

_SEGMENTS_MISSING: Final = "SEGMENTS_MISSING"


class KnownBodies:
    """Digests the service has been given; a belief, which a refusal corrects."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    def add(self, digests: Iterable[str]) -> None:
        """Remember that the service has them."""
        for digest in digests:
            self._known[digest] = None
            self._known.move_to_end(digest)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def discard(self, digests: Iterable[str]) -> None:
        """Send them along again."""
        for digest in digests:
            self._known.pop(digest, None)


class Pending(NamedTuple):
    """A node to reveal; its bodies travel along where the service may not have them."""

    spec: workflow_pb2.NodeSpec
    bodies: dict[str, call_pb2.SegmentBody]
    future: "asyncio.Future[workflow_pb2.RevealedNode]"


class Timing(NamedTuple):
    """Wall seconds of one request: all attempts together, and one."""

    patience_s: float
    attempt_s: float


class Revealer:
    """The reveals of one workflow."""

    def __init__(self, stub: Stub, workflow_id: str, known: KnownBodies, timing: Timing) -> None:
        self._stub = stub
        self._workflow_id = workflow_id
        self._known = known
        self._timing = timing
        self._waiting: list[Pending] = []
        self._in_flight: dict[str, Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def soon(self, pending: Pending) -> None:
        """Reveal with everything else of this turn of the loop; `pending.future` gives the answer or the refusal.

        Where one node of several is refused, the others are revealed without it.
        """
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(pending)
        self._in_flight[pending.spec.node_id] = pending

    def withdraw(self, pending: Pending) -> bool:
        """Take back a node that is not sent yet; whether that was in time."""
        if pending not in self._waiting:
            return False
        self._waiting.remove(pending)
        self._in_flight.pop(pending.spec.node_id, None)
        pending.future.cancel()
        return True

    async def all_or_none(self, nodes: Sequence[Pending]) -> None:
        """Reveal in one request; a refusal of one is a refusal of all."""
        for pending in nodes:
            self._in_flight[pending.spec.node_id] = pending
        try:
            await self._await_parents(nodes)
            await self._request(nodes)
        except BaseException as error:
            _fail(nodes, error)
            raise
        finally:
            self._landed(nodes)

    async def settle(self) -> None:
        """Wait until nothing is in flight."""
        self._flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            task = asyncio.create_task(self._send(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[Pending]) -> None:
        try:
            await self._await_parents(batch)
            for group in _groups(batch):
                await self._send_group(group)
        except BaseException as error:
            _fail(batch, error)
            if not isinstance(error, HexagentError):
                raise
        finally:
            self._landed(batch)

    async def _send_group(self, group: list[Pending]) -> None:
        try:
            await self._request(group)
        except HexagentError as error:
            if len(group) == 1 or is_passing(error):
                _fail(group, error)
                return
            for pending in group:
                await self._send_group([pending])

    async def _request(self, nodes: Sequence[Pending]) -> None:
        """One RevealNodes, repeated with all bodies where the service misses some."""
        request = workflow_service_pb2.RevealNodesRequest(request_id=minted(), workflow_id=self._workflow_id)
        digests = {digest for pending in nodes for digest in pending.bodies}
        try:
            answer = await self._request_once(request, nodes)
        except HexagentError as error:
            if error.reason != _SEGMENTS_MISSING or digests.isdisjoint(self._known_of(digests)):
                raise
            self._known.discard(digests)
            answer = await self._request_once(request, nodes)
        self._known.add(sorted(digests))
        for pending, revealed in zip(nodes, answer.nodes, strict=True):
            if not pending.future.done():
                pending.future.set_result(revealed)

    async def _request_once(
        self, request: workflow_service_pb2.RevealNodesRequest, nodes: Sequence[Pending]
    ) -> workflow_service_pb2.RevealNodesResponse:
        del request.nodes[:]
        along: dict[str, call_pb2.SegmentBody] = {}
        ahead: dict[str, call_pb2.SegmentBody] = {}
        for pending in nodes:
            for digest, body in pending.bodies.items():
                if digest not in self._known:
                    (along if _size(body) <= INLINE_BODY_MAX_BYTES else ahead)[digest] = body
        if sum(map(_size, along.values())) > BODY_BYTES_MAX:
            ahead |= along
            along = {}
        await self._put(list(ahead.values()))
        for pending in nodes:
            spec = request.nodes.add()
            spec.CopyFrom(pending.spec)
            for segment in spec.call.request.segments if spec.HasField("call") else ():
                inline = along.pop(segment.ref.digest, None)
                if inline is not None:
                    segment.body.CopyFrom(inline)
        return await send(self._stub.RevealNodes, request, *self._timing)

    async def _put(self, bodies: Sequence[call_pb2.SegmentBody]) -> None:
        """Store bodies ahead of the nodes that name them."""
        for group in _by_bytes(bodies, _size, BODY_BYTES_MAX):
            request = workflow_service_pb2.PutSegmentsRequest(
                request_id=minted(), workflow_id=self._workflow_id, segments=group
            )
            await send(self._stub.PutSegments, request, *self._timing)
            self._known.add(body.digest for body in group)

    def _known_of(self, digests: set[str]) -> set[str]:
        return {digest for digest in digests if digest in self._known}

    async def _await_parents(self, batch: Sequence[Pending]) -> None:
        """Parents that are on their way in other requests arrive first, however those end."""
        own = {pending.spec.node_id for pending in batch}
        waits = {
            pending.future: None
            for node in batch
            for parent in _parents(node.spec)
            if parent not in own and (pending := self._in_flight.get(parent)) is not None
        }
        if waits:
            await asyncio.wait(list(waits))

    def _landed(self, nodes: Sequence[Pending]) -> None:
        for pending in nodes:
            self._in_flight.pop(pending.spec.node_id, None)


def _fail(nodes: Iterable[Pending], error: BaseException) -> None:
    for pending in nodes:
        if not pending.future.done():
            if isinstance(error, asyncio.CancelledError):
                pending.future.cancel()
            else:
                pending.future.set_exception(error)
                pending.future.exception()  # seen: `reveal` raises it, and nobody need await each handle as well


def _parents(spec: workflow_pb2.NodeSpec) -> list[str]:
    outputs = [s.ref.output_of for s in spec.call.request.segments if s.ref.output_of] if spec.HasField("call") else []
    return [*spec.after, *outputs]


def _groups(batch: Sequence[Pending]) -> Iterable[list[Pending]]:
    """Requests that stay within the limits, in order."""
    for group in _by_bytes(batch, lambda pending: pending.spec.ByteSize(), NODE_BYTES_MAX):
        for start in range(0, len(group), NODES_MAX):
            yield group[start : start + NODES_MAX]


def _by_bytes(items: Sequence[T], size: Callable[[T], int], limit: int) -> Iterable[list[T]]:
    """Runs of items of together at most `limit` bytes, or of a single larger one."""
    group: list[T] = []
    total = 0
    for item in items:
        bytes_ = size(item)
        if group and total + bytes_ > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += bytes_
    if group:
        yield group


def _size(body: call_pb2.SegmentBody) -> int:
    return len(body.text) + 4 * len(body.token_ids)
