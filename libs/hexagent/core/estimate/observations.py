"""What an instance's report must be like to be learned from."""

from collections.abc import Sequence
from operator import le
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.telemetry import Telemetry
from hexagent.core.units import US_PER_S

AHEAD_US: Final = 10 * US_PER_S  # an agent's clock may be ahead by so much of model time
MOST: Final = 2**62  # of any count or time
LEAST_OF_STEP: Final = (1, 1, 0, 0, 0, 0)
LEAST_OF_TRANSFER: Final = (0, 1, 0, 0)  # of all but its instances


def check_report(telemetry: Telemetry, now_us: int) -> None:
    """Refuse a report that cannot be true as a whole, so that what is learned stays as it is.

    InvalidArgument names the row: FROM_THE_FUTURE (`at_us`, or the start of a transfer), BAD_OBSERVATION (a value
    that is negative, no number or absurd; a step without work or without time).
    """
    source = telemetry.instance_id
    if not telemetry.at_us <= now_us + AHEAD_US:
        raise _error(source, "at_us", f"{telemetry.at_us} is ahead of {now_us}", "FROM_THE_FUTURE")
    _check_rows(source, "steps", telemetry.steps, LEAST_OF_STEP)
    _check_rows(source, "transfers", telemetry.transfers, LEAST_OF_TRANSFER)
    if telemetry.speculation is not None:
        _check_rows(source, "speculation", (telemetry.speculation,), (0, 0))
        drafted, accepted = telemetry.speculation
        if accepted > drafted:
            raise _error(source, "speculation", f"{accepted} of {drafted} tokens are accepted", "BAD_OBSERVATION")
    for index, step in enumerate(telemetry.steps):
        if not (step.prefill_tokens or step.decode_batch):
            raise _error(source, f"steps[{index}]", "has neither prefill nor decode", "BAD_OBSERVATION")
    for index, transfer in enumerate(telemetry.transfers):
        if transfer.start_us > now_us + AHEAD_US:
            text = f"{transfer.start_us} is ahead of {now_us}"
            raise _error(source, f"transfers[{index}].start_us", text, "FROM_THE_FUTURE")


def _check_rows(source: str, name: str, rows: Sequence[NamedTuple], least: tuple[int, ...]) -> None:
    """`least` is that of the last fields of each row, which are numbers."""
    for index, row in enumerate(rows):
        values = row[-len(least) :]
        if all(map(le, least, values)) and max(values) <= MOST:  # NaN is within no bounds
            continue
        for field, value, low in zip(row._fields[-len(least) :], values, least, strict=True):
            if not low <= value <= MOST:
                text = f"{value} is not within {low} to {MOST}"
                raise _error(source, f"{name}[{index}].{field}", text, "BAD_OBSERVATION")


def _error(source: str, field: str, text: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"report of {source}: {field}: {text}", reason=reason, field=field)
