"""The body store: prompt segments by digest, put before any event names them."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from hexagent.core.workflow.model import CallOutcome
from hexagent.wire.segments import Segment, segment_from_bytes, segment_to_bytes

# Half the lifetime of a body: what is known was stored recently enough to outlive the call that names it.
TRUSTED_S: Final = 12 * 3600.0
# An agent may have stored the same output just before a deletion; its outcome is here before this is over.
DELETED_S: Final = 60.0


class Bodies(Protocol):
    """What the store needs of the bus."""

    async def put_bodies(self, bodies: Iterable[tuple[str, bytes]]) -> None:
        """Store bodies by digest."""

    async def get_bodies(self, digests: Sequence[str]) -> list[bytes | None]:
        """Read bodies by digest."""

    async def delete_bodies(self, digests: Sequence[str]) -> None:
        """Remove bodies by digest; what is put afterwards stays."""


class SegmentStore:
    """Bodies in the bucket, with a bounded memory of which are there and how many tokens they have."""

    def __init__(self, bus: Bodies, known_max: int) -> None:
        self.deletions = 0  # a reveal that has looked at bodies before one of them looks again
        self._bus = bus
        self._known_max = known_max
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()  # digest -> tokens, when it was stored
        self._deleted: OrderedDict[str, float] = OrderedDict()  # digest -> when it was, within `DELETED_S`

    async def stored(self, digests: Sequence[str]) -> Mapping[str, int]:
        """Token counts of those that are stored. `Unavailable` when the bucket does not answer."""
        found: dict[str, int] = {}
        unknown = []
        for digest in digests:
            tokens = self._recall(digest)
            if tokens is None:
                unknown.append(digest)
            else:
                found[digest] = tokens
        if unknown:
            for digest, body in zip(unknown, await self._bus.get_bodies(unknown), strict=True):
                if body is not None and not self.deleted(digest):
                    # Its age is unknown, so it is not remembered: the next reveal that names it looks again.
                    found[digest] = segment_from_bytes(body).counted_tokens
        return found

    async def put(self, segments: Mapping[str, Segment]) -> None:
        """Store what is not known to be there. `ResourceExhausted` (STREAM_FULL), `Unavailable`."""
        new = {digest: segment for digest, segment in segments.items() if self._recall(digest) is None}
        if not new:
            return
        deletions = self.deletions
        await self._bus.put_bodies([(digest, segment_to_bytes(segment, digest)) for digest, segment in new.items()])
        if deletions == self.deletions:  # else it may have been one of these
            for digest, segment in new.items():
                self._remember(digest, segment.counted_tokens)

    async def get(self, digest: str) -> Segment | None:
        """The body, None where it is not stored or has expired."""
        (body,) = await self._bus.get_bodies([digest])
        return None if body is None else segment_from_bytes(body)

    async def put_raw(self, digest: str, body: bytes) -> None:
        """Store an output's body as its agent serialised it."""
        self._deleted.pop(digest, None)
        await self._bus.put_bodies([(digest, body)])

    async def delete(self, digests: Sequence[str]) -> None:
        """Remove bodies that nobody names. `Unavailable`."""
        self.deletions += 1
        now_s = time.monotonic()
        while self._deleted and now_s - next(iter(self._deleted.values())) > DELETED_S:
            self._deleted.popitem(last=False)
        for digest in digests:
            self._known.pop(digest, None)
            self._deleted[digest] = now_s
            self._deleted.move_to_end(digest)
        await self._bus.delete_bodies(digests)

    def deleted(self, digest: str) -> bool:
        """Whether the body was deleted a moment ago and not stored again from here."""
        return digest in self._deleted

    def know(self, outcome: CallOutcome) -> None:
        """An output that an agent has stored may be part of a prompt."""
        if outcome.output.digest:
            self._remember(outcome.output.digest, outcome.output.tokens or outcome.output_tokens)

    def _recall(self, digest: str) -> int | None:
        known = self._known.get(digest)
        if known is None or time.monotonic() - known[1] > TRUSTED_S:
            return None
        self._known.move_to_end(digest)
        return known[0]

    def _remember(self, digest: str, tokens: int) -> None:
        self._deleted.pop(digest, None)
        self._known[digest] = (tokens, time.monotonic())
        self._known.move_to_end(digest)
        if len(self._known) > self._known_max:
            self._known.popitem(last=False)
