"""Bodies of prompt segments: their canonical form, digest and token estimate, and references to them.

The canonical form is the bytes `hxs1`, role and kind as one byte each, the length of the text as 8 bytes big-endian,
the text, the number of token ids as 8 bytes big-endian, and each id as 4 bytes big-endian. Lengths come before
what they measure, so no two bodies share a form. The declared token count stays outside: it is a belief about the
body, not a part of it.
"""

from enum import IntEnum
from hashlib import sha256
from typing import NamedTuple

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.core.errors import ResourceExhausted
from hexagent.core.units import ceil_div
from hexagent.core.workflow.model import SegmentRef
from hexagent.wire.codec import bad, check_json_object, enum_of, parse, to_bytes

BODY_MAX_BYTES = 1 << 20  # text bytes plus 4 a token id; longer texts are sent as several segments
INLINE_BODY_MAX_BYTES = 256 << 10  # the same, inside a reveal: a prompt of 64,000 tokens needs no request ahead of it
BYTES_PER_TOKEN = 4  # of UTF-8 text in common tokenizers, on the low side for code and non-Latin scripts

_MAGIC = b"hxs1"


class SegmentRole(IntEnum):
    """Who speaks."""

    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    RAW = 5  # outside any chat template


class SegmentKind(IntEnum):
    """What a body is made of."""

    TEXT = 1
    TOKEN_IDS = 2
    OUTPUT = 3  # of a call: text, token ids or both
    MESSAGE = 4  # JSON of a chat message that is more than its content


class Segment(NamedTuple):
    """A body; its digest follows from it."""

    role: SegmentRole
    kind: SegmentKind
    text: bytes = b""
    token_ids: tuple[int, ...] = ()
    tokens: int = 0  # declared, 0 = unknown

    @property
    def digest(self) -> str:
        return sha256(canonical(self)).hexdigest()

    @property
    def counted_tokens(self) -> int:
        """Declared tokens, else the number of ids, else a quarter of the bytes; at least 1.

        A segment stands in a template that adds tokens of its own, and 0 would mean unknown.
        """
        return self.tokens or len(self.token_ids) or max(1, ceil_div(len(self.text), BYTES_PER_TOKEN))

    @property
    def ref(self) -> SegmentRef:
        return SegmentRef(self.digest, self.counted_tokens)


def output_segment(text: bytes, tokens: int) -> Segment:
    """What the output of a call becomes."""
    return Segment(SegmentRole.ASSISTANT, SegmentKind.OUTPUT, text, tokens=tokens)


def canonical(segment: Segment) -> bytes:
    """The bytes the digest covers."""
    return b"".join(
        (
            _MAGIC,
            bytes((segment.role, segment.kind)),
            len(segment.text).to_bytes(8, "big"),
            segment.text,
            len(segment.token_ids).to_bytes(8, "big"),
            *(token.to_bytes(4, "big") for token in segment.token_ids),
        )
    )


def segment_to_proto(segment: Segment, digest: str = "") -> call_pb2.SegmentBody:
    """`digest` where it is known already: it is a pass over the whole body."""
    return call_pb2.SegmentBody(
        digest=digest or segment.digest,
        role=enums_pb2.SegmentRole.ValueType(segment.role),
        kind=enums_pb2.SegmentKind.ValueType(segment.kind),
        text=segment.text,
        token_ids=segment.token_ids,
        tokens=segment.tokens,
    )


def segment_from_proto(message: call_pb2.SegmentBody, path: str, max_bytes: int = BODY_MAX_BYTES) -> Segment:
    """A body from outside, checked: kind against content, UTF-8, size and, where one was sent, the digest.

    `InvalidArgument` (BAD_SEGMENT, BAD_UTF8, BAD_DIGEST), `ResourceExhausted` (SEGMENT_TOO_LARGE).
    """
    segment = Segment(
        role=enum_of(SegmentRole, message.role, f"{path}.role"),
        kind=enum_of(SegmentKind, message.kind, f"{path}.kind"),
        text=message.text,
        token_ids=tuple(message.token_ids),
        tokens=message.tokens,
    )
    size = len(segment.text) + 4 * len(segment.token_ids)
    if size > max_bytes:
        raise ResourceExhausted(
            f"{path}: a body has {size} bytes, the limit here is {max_bytes}",
            reason="SEGMENT_TOO_LARGE",
            field=path,
            details={"limit": str(max_bytes)},
        )
    _check_content(segment, path)
    if message.digest and message.digest != segment.digest:
        raise bad("BAD_DIGEST", f"{path}.digest", f"the body's digest is {segment.digest}")
    return segment


def segment_to_bytes(segment: Segment, digest: str = "") -> bytes:
    """What the segment store keeps under the digest."""
    return to_bytes(segment_to_proto(segment, digest))


def segment_from_bytes(data: bytes) -> Segment:
    return segment_from_proto(parse(call_pb2.SegmentBody, data), "segment")


def segment_ref_to_proto(ref: SegmentRef) -> call_pb2.SegmentRef:
    return call_pb2.SegmentRef(digest=ref.digest, tokens=ref.tokens, output_of=ref.output_of)


def segment_ref_from_proto(message: call_pb2.SegmentRef) -> SegmentRef:
    return SegmentRef(message.digest, message.tokens, message.output_of)


def _check_content(segment: Segment, path: str) -> None:
    if segment.tokens < 0:
        raise bad("NEGATIVE_TOKENS", f"{path}.tokens", f"tokens cannot be negative; got {segment.tokens}")
    if segment.kind is SegmentKind.TOKEN_IDS:
        if segment.text:
            raise bad("BAD_SEGMENT", f"{path}.text", "a TOKEN_IDS body has token ids only")
        if not segment.token_ids:
            raise bad("BAD_SEGMENT", f"{path}.token_ids", "a TOKEN_IDS body needs at least one token id")
    elif segment.kind is not SegmentKind.OUTPUT:
        if segment.token_ids:
            raise bad("BAD_SEGMENT", f"{path}.token_ids", f"a {segment.kind.name} body has text only")
        try:
            text = segment.text.decode()
        except UnicodeDecodeError as error:
            raise bad("BAD_UTF8", f"{path}.text", f"not UTF-8 at byte {error.start}") from None
        if segment.kind is SegmentKind.MESSAGE:
            check_json_object(text, f"{path}.text")
