"""What a client reveals: its bodies stored, its nodes checked and small enough for one event."""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from typing import Final

from hexagent.api.common.v1 import call_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.core.errors import InvalidArgument
from hexagent.core.workflow.limits import Catalog, Limits
from hexagent.core.workflow.model import NodeSpec
from hexagent.runtime.streams import EVENT_BYTES_MAX
from hexagent.wire.edge import Reveal, nodes_from_proto, referenced_digests
from hexagent.wire.segments import segment_from_proto
from hexagent_services.dag_tracker.segments import SegmentStore

NODES_MAX: Final = Limits().nodes_per_reveal
EVENT_ROOM: Final = 4_096  # of an event, for what is not a node
NODE_ROOM: Final = 256  # of a node, for its numbers, tags and lengths
REF_ROOM: Final = 24  # of a segment reference, likewise
PUT_BYTES_MAX: Final = 4 * 1024 * 1024  # bodies of one PutSegments


class Reveals:
    """Turns a request's nodes into core values, with their bodies in the store by then."""

    def __init__(self, segments: SegmentStore, catalog: Catalog) -> None:
        self._segments = segments
        self._models = tuple(catalog.largest_kv_tokens)

    async def take(self, messages: Sequence[workflow_pb2.NodeSpec]) -> Reveal:
        """The checked nodes. A call without a model gets the cluster's only one.

        `InvalidArgument`, `FailedPrecondition` (SEGMENTS_MISSING), `ResourceExhausted`, `Unavailable`.
        """
        if len(messages) > NODES_MAX:
            raise InvalidArgument(
                f"nodes: {len(messages)} in one reveal, the limit is {NODES_MAX}",
                reason="TOO_MANY_NODES",
                field="nodes",
                details={"limit": str(NODES_MAX)},
            )
        for i, message in enumerate(messages):
            if message.HasField("call") and not message.call.request.model:
                message.call.request.model = self._only_model(f"nodes[{i}].call.request.model")
        while True:
            deletions = self._segments.deletions
            stored = await self._segments.stored(referenced_digests(messages))
            reveal = nodes_from_proto(messages, stored=stored)
            _check_size(reveal.nodes)
            await self._segments.put(reveal.bodies)
            if deletions == self._segments.deletions:
                return reveal

    def _only_model(self, field: str) -> str:
        """`InvalidArgument` BAD_NAME where there are several."""
        if len(self._models) == 1:
            return self._models[0]
        message = f"{field}: is required: one of {', '.join(self._models)}"
        raise InvalidArgument(message, reason="BAD_NAME", field=field)

    async def put(self, messages: Sequence[call_pb2.SegmentBody]) -> list[call_pb2.SegmentRef]:
        """Store bodies; gives their references. `InvalidArgument`, `ResourceExhausted`, `Unavailable`."""
        bodies = [segment_from_proto(message, f"segments[{i}]") for i, message in enumerate(messages)]
        size = sum(len(body.text) + 4 * len(body.token_ids) for body in bodies)
        if size > PUT_BYTES_MAX:
            raise InvalidArgument(
                f"segments: {size} bytes in one request, the limit is {PUT_BYTES_MAX}",
                reason="TOO_MANY_BYTES",
                field="segments",
                details={"limit": str(PUT_BYTES_MAX)},
            )
        refs = [body.ref for body in bodies]
        await self._segments.put({ref.digest: body for ref, body in zip(refs, bodies, strict=True)})
        return [call_pb2.SegmentRef(digest=ref.digest, tokens=ref.tokens) for ref in refs]


def minted_id(request_id: str) -> str:
    """A workflow id; the same request always gets the same one."""
    return f"wf-{hashlib.sha256(request_id.encode()).hexdigest()[:24] if request_id else uuid.uuid4().hex[:24]}"


def _check_size(nodes: Iterable[NodeSpec]) -> None:
    """Refuse what would not fit into one event: once handled, an event must be stored."""
    limit = EVENT_BYTES_MAX - EVENT_ROOM
    size = 0
    for node in nodes:
        size += NODE_ROOM + len(node.node_id) + len(node.role) + len(node.template)
        size += sum(len(parent) + 2 for parent in node.after)
        if node.call is not None:
            call = node.call
            size += len(call.payload) + len(call.model) + len(call.lora) + len(call.cache_salt)
            size += sum(len(ref.digest) + len(ref.output_of) + REF_ROOM for ref in node.call.segments)
    if size > limit:
        raise InvalidArgument(
            f"nodes: about {size} bytes in one reveal, the limit is {limit}; reveal fewer at a time",
            reason="PAYLOAD_TOO_LARGE",
            field="nodes",
            details={"limit": str(limit)},
        )
