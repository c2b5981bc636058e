"""Dispatches and hand-offs as engine requests: references resolved, bodies fetched."""

import asyncio
from collections import OrderedDict
from typing import Final

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import FailedPrecondition
from hexagent.core.instance.io import PrefixSegment, salt
from hexagent.runtime.bus import Bus
from hexagent.wire.codec import parse
from hexagent.wire.segments import segment_ref_to_proto
from hexagent.wire.worker import Attempt
from hexagent_services.worker_agent.engine.port import EngineRequest

CACHED_BYTES_MAX: Final = 256 << 20  # of segment bodies in memory
BODY_WAITS_S: Final = (0.0, 0.02, 0.1, 0.5)  # an output's body may be stored a moment after its outcome is


class BodyCache:
    """Segment bodies by digest, read from the bucket once; the least recently used leave first."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    async def get(self, digests: list[str]) -> dict[str, bytes]:
        """Stored bodies of the digests; `FailedPrecondition` (MISSING_SEGMENTS) lists those that are not there."""
        found: dict[str, bytes] = {}
        for digest in digests:
            body = self._bodies.get(digest)
            if body is not None:
                self._bodies.move_to_end(digest)
                found[digest] = body
        for wait_s in BODY_WAITS_S:
            missing = [d for d in dict.fromkeys(digests) if d not in found]
            if not missing:
                return found
            await asyncio.sleep(wait_s)
            for digest, fetched in zip(missing, await self._bus.get_bodies(missing), strict=True):
                if fetched is not None:
                    found[digest] = fetched
                    self.put(digest, fetched)
        missing = [d for d in dict.fromkeys(digests) if d not in found]
        if missing:
            raise FailedPrecondition(
                f"{len(missing)} segments are not in the store, the first is {missing[0]}",
                reason="MISSING_SEGMENTS",
                details={"digests": ",".join(missing[:16])},
            )
        return found

    def put(self, digest: str, body: bytes) -> None:
        if digest not in self._bodies:
            self._bodies[digest] = body
            self._bytes += len(body)
            while self._bytes > CACHED_BYTES_MAX:
                _, oldest = self._bodies.popitem(last=False)
                self._bytes -= len(oldest)


async def engine_request(attempt: Attempt, bodies: BodyCache | None) -> EngineRequest:
    """The attempt with its references resolved and its bodies in place; without `bodies` they are left out, for a
    decode side that gets the prompt as KV.

    The prefix chain begins with what sets it apart from equal text elsewhere: tenant, model and adapter.
    """
    call = parse(call_pb2.CallRequest, attempt.payload)
    for segment in call.segments:
        if segment.ref.output_of:
            segment.ref.CopyFrom(segment_ref_to_proto(attempt.outputs[segment.ref.output_of]))
    if bodies is not None:
        stored = await bodies.get([s.ref.digest for s in call.segments])
        for segment in call.segments:
            segment.body.MergeFromString(stored[segment.ref.digest])
    return EngineRequest(
        ticket=attempt.ticket,
        call=call,
        prefix=(
            salt(attempt.tenant, call.model, call.lora, call.cache_salt),
            *(PrefixSegment(s.ref.digest, s.ref.tokens) for s in call.segments),
        ),
        prompt_tokens=attempt.prompt_tokens,
        max_tokens=attempt.max_tokens,
        reserve_output_tokens=attempt.reserve_output_tokens,
        rank=attempt.rank,
    )
