"""Bodies that are deleted while they are looked for, stored or generated once more."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import cast

import pytest

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.errors import FailedPrecondition
from hexagent.core.ids import CallId
from hexagent.core.workflow.limits import Catalog
from hexagent.core.workflow.model import CallOutcome, NodeStatus
from hexagent.runtime.bus import Bus
from hexagent.wire.segments import Segment, SegmentKind, SegmentRole, segment_to_bytes, segment_to_proto
from hexagent_services.dag_tracker.consumer import ClusterConsumer
from hexagent_services.dag_tracker.reveals import Reveals
from hexagent_services.dag_tracker.segments import SegmentStore
from hexagent_services.dag_tracker.writer import Writer

SEGMENT = Segment(SegmentRole.USER, SegmentKind.TEXT, b"hello")
DIGEST = SEGMENT.digest
CATALOG = Catalog(("default",), MappingProxyType({"m": 1_000}))


class Bucket:
    """Takes effect in the order of the calls, as one connection's messages do; `meanwhile` runs before the answer."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.meanwhile: Callable[[], None] | None = None

    async def put_bodies(self, bodies: Iterable[tuple[str, bytes]]) -> None:
        self.bodies.update(bodies)
        await self._answer()

    async def get_bodies(self, digests: Sequence[str]) -> list[bytes | None]:
        found = [self.bodies.get(digest) for digest in digests]
        await self._answer()
        return found

    async def delete_bodies(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self.bodies.pop(digest, None)

    async def _answer(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def node(inline: bool) -> workflow_pb2.NodeSpec:
    part = call_pb2.PromptSegment(role=enums_pb2.SEGMENT_ROLE_USER, kind=enums_pb2.SEGMENT_KIND_TEXT)
    if inline:
        part.body.CopyFrom(segment_to_proto(SEGMENT))
    else:
        part.ref.digest = DIGEST
    request = call_pb2.CallRequest(segments=[part], sampling=call_pb2.SamplingParams(max_tokens=1))
    return workflow_pb2.NodeSpec(
        node_id="a", kind=enums_pb2.NODE_KIND_CALL, call=workflow_pb2.CallNode(request=request)
    )


async def test_a_body_deleted_behind_its_put_is_put_again() -> None:
    bucket = Bucket()
    store = SegmentStore(bucket, 10)
    deleting: list[asyncio.Task[None]] = []
    bucket.meanwhile = lambda: deleting.append(asyncio.create_task(store.delete([DIGEST])))
    await Reveals(store, CATALOG).take([node(inline=True)])
    assert deleting[0].done()
    assert DIGEST in bucket.bodies
    assert (await store.stored([DIGEST])).keys() == {DIGEST}


async def test_a_body_deleted_behind_a_look_is_missing() -> None:
    bucket = Bucket()
    store = SegmentStore(bucket, 10)
    bucket.bodies[DIGEST] = segment_to_bytes(SEGMENT)
    deleting: list[asyncio.Task[None]] = []
    bucket.meanwhile = lambda: deleting.append(asyncio.create_task(store.delete([DIGEST])))
    with pytest.raises(FailedPrecondition) as missing:
        await Reveals(store, CATALOG).take([node(inline=False)])
    assert missing.value.reason == "SEGMENTS_MISSING"


async def test_an_output_stored_by_its_agent_before_an_equal_one_was_deleted_is_stored_again() -> None:
    bucket = Bucket()
    store = SegmentStore(bucket, 10)
    body = segment_to_bytes(SEGMENT)
    consumer = ClusterConsumer(cast("Bus", bucket), cast("Writer", None), store)
    outcome = CallOutcome(CallId("w", "a"), 1, NodeStatus.SUCCEEDED, output=SEGMENT.ref, output_body=body)
    assert await consumer._fitting(outcome) == outcome
    assert bucket.bodies == {}  # its agent's business, as a rule
    await store.delete([DIGEST])
    assert await consumer._fitting(outcome) == outcome
    assert bucket.bodies == {DIGEST: body}
    assert not store.deleted(DIGEST)
