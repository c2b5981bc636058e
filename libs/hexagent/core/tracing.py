"""W3C trace contexts, and ids of traces and spans that follow from what they are about."""

import hashlib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
STATE_CHARS_MAX: Final = 512  # a longer tracestate, or one that cannot be a header, is dropped whole, as W3C allows

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_SAMPLED: Final = 1
_RATIO_ONE: Final = 1 << 64


class TraceContext(NamedTuple):
    """A place in a trace: what a child span is made under."""

    trace_id: int
    span_id: int
    sampled: bool  # recorded by whoever takes part
    state: str = ""  # `tracestate` of others, passed on as it came


def context_from(carrier: Mapping[str, str]) -> TraceContext | None:
    """The context in a carrier's `traceparent` and `tracestate`; None where there is none or it is malformed."""
    match = _TRACEPARENT.match(carrier.get(TRACEPARENT, ""))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = carrier.get(TRACESTATE, "")
    fits = len(state) <= STATE_CHARS_MAX and state.isascii() and state.isprintable()
    return TraceContext(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED), state if fits else "")


def carrier_of(context: TraceContext) -> dict[str, str]:
    """The context as it travels in messages, metadata and headers."""
    carrier = {TRACEPARENT: f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.sampled):02x}"}
    if context.state:
        carrier[TRACESTATE] = context.state
    return carrier


def trace_id_of(*path: str) -> int:
    """The trace of what `path` names; never 0, which would mean none."""
    return _digest(path, 16)


def span_id_of(*path: str) -> int:
    """The span of what `path` names, the same in every process and after every restart; never 0."""
    return _digest(path, 8)


def is_sampled(trace_id: int, ratio: float) -> bool:
    """Whether a trace without a parent is recorded; every process decides the same by its id."""
    return trace_id & (_RATIO_ONE - 1) < round(ratio * _RATIO_ONE)


def _digest(path: tuple[str, ...], size: int) -> int:
    # An id holds no slash, so no two paths read the same.
    return int.from_bytes(hashlib.sha256("/".join(path).encode()).digest()[:size], "big") or 1
