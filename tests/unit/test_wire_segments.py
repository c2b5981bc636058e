"""The canonical form of bodies: fixed for ever, because digests are stored and shared."""

import hashlib

import pytest

from hexagent.core.errors import HexagentError, ResourceExhausted
from hexagent.wire.segments import (
    BODY_MAX_BYTES,
    Segment,
    SegmentKind,
    SegmentRole,
    canonical,
    segment_from_proto,
    segment_to_proto,
)

TEXT = Segment(SegmentRole.USER, SegmentKind.TEXT, b"hi")
IDS = Segment(SegmentRole.RAW, SegmentKind.TOKEN_IDS, b"", (1, 258))


def test_the_canonical_form_is_what_the_documentation_says() -> None:
    assert canonical(TEXT) == b"hxs1\x02\x01" + bytes(7) + b"\x02hi" + bytes(8)
    assert canonical(IDS) == b"hxs1\x05\x02" + bytes(8) + bytes(7) + b"\x02" + bytes.fromhex("0000000100000102")


def test_a_digest_never_changes() -> None:
    assert TEXT.digest == hashlib.sha256(canonical(TEXT)).hexdigest()
    assert TEXT.digest == "6d341650ed7ca3bf7719c6e7dffa122c354def3b22f698d83e2f6d1b78df1080"


def test_the_declared_count_is_no_part_of_the_digest() -> None:
    assert TEXT._replace(tokens=9).digest == TEXT.digest


@pytest.mark.parametrize(
    ("segment", "tokens"),
    [
        (TEXT, 1),
        (TEXT._replace(text=b""), 1),
        (TEXT._replace(text=b"x" * 9), 3),
        (TEXT._replace(tokens=7), 7),
        (IDS, 2),
        (IDS._replace(tokens=7), 7),
        (Segment(SegmentRole.ASSISTANT, SegmentKind.OUTPUT, b"x" * 40, (1, 2, 3)), 3),
    ],
)
def test_counted_tokens(segment: Segment, tokens: int) -> None:
    assert segment.counted_tokens == tokens


def test_an_output_may_end_inside_a_character() -> None:
    output = Segment(SegmentRole.ASSISTANT, SegmentKind.OUTPUT, "é".encode()[:1])
    assert segment_from_proto(segment_to_proto(output), "body") == output


@pytest.mark.parametrize(
    ("segment", "reason", "field"),
    [
        (TEXT._replace(text=b"\xc3"), "BAD_UTF8", "body.text"),
        (TEXT._replace(token_ids=(1,)), "BAD_SEGMENT", "body.token_ids"),
        (IDS._replace(text=b"x"), "BAD_SEGMENT", "body.text"),
        (IDS._replace(token_ids=()), "BAD_SEGMENT", "body.token_ids"),
        (TEXT._replace(tokens=-1), "NEGATIVE_TOKENS", "body.tokens"),
        (TEXT._replace(text=b"x" * (BODY_MAX_BYTES + 1)), "SEGMENT_TOO_LARGE", "body"),
        (IDS._replace(token_ids=(1,) * (BODY_MAX_BYTES // 4 + 1)), "SEGMENT_TOO_LARGE", "body"),
    ],
)
def test_refusals(segment: Segment, reason: str, field: str) -> None:
    with pytest.raises(HexagentError) as caught:
        segment_from_proto(segment_to_proto(segment), "body")
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert isinstance(caught.value, ResourceExhausted) == (reason == "SEGMENT_TOO_LARGE")


def test_a_wrong_digest_is_refused() -> None:
    message = segment_to_proto(TEXT)
    message.digest = IDS.digest
    with pytest.raises(HexagentError) as caught:
        segment_from_proto(message, "body")
    assert (caught.value.reason, caught.value.field) == ("BAD_DIGEST", "body.digest")
