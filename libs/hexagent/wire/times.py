"""Durations and timestamps of the public edge, as microseconds and nanoseconds."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hexagent.core.units import US_PER_S
from hexagent.wire.codec import bad

_NS_PER_S = 1_000_000_000
_NS_PER_US = 1_000
# Beyond this a time is a mistake, and arithmetic on it could leave 64 bits.
DURATION_MAX_US = 10 * 365 * 86_400 * US_PER_S
TIMESTAMP_MAX_S = 253_402_300_800  # the year 10000


def duration_to_proto(us: int) -> Duration:
    """`us` microseconds, never negative here."""
    seconds, rest = divmod(us, US_PER_S)
    return Duration(seconds=seconds, nanos=rest * _NS_PER_US)


def duration_from_proto(message: Duration, field: str) -> int:
    """Microseconds, rounded up, so that a positive duration never becomes 0, which would mean none.

    `InvalidArgument` (BAD_DURATION) where it is negative, malformed or above ten years.
    """
    if message.seconds < 0 or message.nanos < 0 or message.nanos >= _NS_PER_S:
        raise bad("BAD_DURATION", field, f"must not be negative; got {message.seconds} s {message.nanos} ns")
    us = message.seconds * US_PER_S - (-message.nanos // _NS_PER_US)
    if us > DURATION_MAX_US:
        raise bad("BAD_DURATION", field, f"must be at most ten years; got {message.seconds} s")
    return us


def timestamp_to_proto(wall_ns: int) -> Timestamp:
    """An instant in nanoseconds since the Unix epoch."""
    seconds, nanos = divmod(wall_ns, _NS_PER_S)
    return Timestamp(seconds=seconds, nanos=nanos)


def timestamp_from_proto(message: Timestamp, field: str) -> int:
    """Nanoseconds since the Unix epoch; `InvalidArgument` (BAD_TIMESTAMP) before it or after the year 9999."""
    if not 0 <= message.seconds < TIMESTAMP_MAX_S or not 0 <= message.nanos < _NS_PER_S:
        raise bad("BAD_TIMESTAMP", field, f"must lie in 1970 to 9999; got {message.seconds} s {message.nanos} ns")
    return message.seconds * _NS_PER_S + message.nanos
