"""Values of one line of a trace, checked: every error names file, line and field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Never

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.units import US_PER_MS

LINE_BYTES_MAX = 64 << 20
TOKENS_MAX = 100_000_000  # of a prompt or an output
MS_MAX = 10**15  # of a time: arrivals may count from 1970


class Place(NamedTuple):
    """Where in which file an error is."""

    file: str
    line: int  # from 1

    def bad(self, field: str, what: str) -> Never:
        raise InvalidArgument(
            f"{self.file}:{self.line}: {field}: {what}",
            reason="BAD_TRACE",
            field=field,
            details={"file": self.file, "line": str(self.line), "field": field},
        )


def lines_of(path: Path) -> Iterator[tuple[Place, bytes]]:
    """The lines that are not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    Place(path.name, number).bad("line", f"is longer than {LINE_BYTES_MAX} bytes")
                if not line.isspace():
                    yield Place(path.name, number), line
    except FileNotFoundError:
        raise NotFound(f"no trace file {path}", reason="NO_TRACE", field="trace") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}", reason="BAD_TRACE", field="trace") from None


def decoded(place: Place, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode(), parse_constant=lambda name: place.bad("line", f"holds {name}"))
    except UnicodeDecodeError:
        place.bad("line", "is not UTF-8")
    except (ValueError, RecursionError) as error:
        place.bad("line", f"is not JSON: {error}")
    if not isinstance(record, dict):
        place.bad("line", f"must be an object, not {kind_of(record)}")
    return record


def integer(place: Place, field: str, value: object, low: int, high: int) -> int:
    if value is None:
        place.bad(field, "is missing")
    if not isinstance(value, int) or isinstance(value, bool):
        place.bad(field, f"must be an integer, not {kind_of(value)}")
    if not low <= value <= high:
        place.bad(field, f"must be {low} to {high}, not {value}")
    return value


def text(place: Place, field: str, value: object) -> str:
    if value is None:
        place.bad(field, "is missing")
    if not isinstance(value, str) or not value:
        place.bad(field, f"must be text, not {kind_of(value) if value != '' else 'empty'}")
    return value


def listed(place: Place, field: str, value: object) -> list[Any]:
    """A list; none where the field is missing."""
    if value is None:
        return []
    if not isinstance(value, list):
        place.bad(field, f"must be a list, not {kind_of(value)}")
    return value


def time_us(place: Place, field: str, value: object) -> int:
    """Recorded milliseconds as microseconds, -1 where none are recorded."""
    if value is None:
        return -1
    if not isinstance(value, int | float) or isinstance(value, bool):
        place.bad(field, f"must be a number or null, not {kind_of(value)}")
    if not 0 <= value <= MS_MAX:
        place.bad(field, f"must be 0 to {MS_MAX} ms, not {value}")
    return round(value * US_PER_MS)


def kind_of(value: object) -> str:
    names = {bool: "a boolean", dict: "an object", float: "a number with a fraction", int: "an integer"}
    return {**names, list: "a list", str: "a string", type(None): "null"}.get(type(value), "something else")
