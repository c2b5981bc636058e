"""Spans as OTLP's JSON form holds them (a collector's file exporter), and as `--trace-file` writes them."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Never

from hexagent.sim.workloads.trace_fields import Place, decoded, kind_of, listed, text

_VALUES: Final = ("stringValue", "intValue", "doubleValue", "boolValue")
_NS_MAX: Final = 1 << 63


class Span(NamedTuple):
    place: Place
    at: str  # the span's place on its line, for errors
    trace: str
    key: str  # trace and span id
    parent: str  # key, "" = none
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]  # keys

    def bad(self, field: str, what: str) -> Never:
        self.place.bad(self.at + field, what)


def spans_in(lines: Iterable[tuple[Place, bytes]]) -> Iterator[Span]:
    for place, line in lines:
        record = decoded(place, line)
        if "resourceSpans" in record:
            yield from _otlp(place, record)
        elif "span_id" in record:
            yield _flat(place, record)
        elif not {"resourceLogs", "resourceMetrics"} & record.keys():
            place.bad("line", "holds neither resourceSpans nor a span_id")


def _otlp(place: Place, record: dict[str, Any]) -> Iterator[Span]:
    for i, resource in enumerate(_objects(place, "resourceSpans", record)):
        at = f"resourceSpans[{i}]."
        for j, scope in enumerate(_objects(place, at + "scopeSpans", resource)):
            inner = f"{at}scopeSpans[{j}]."
            for k, raw in enumerate(_objects(place, inner + "spans", scope)):
                yield _span(place, f"{inner}spans[{k}].", raw)


def _objects(place: Place, field: str, holder: dict[str, Any]) -> list[dict[str, Any]]:
    found = listed(place, field, holder.get(field.rpartition(".")[2]))
    for number, value in enumerate(found):
        if not isinstance(value, dict):
            place.bad(f"{field}[{number}]", f"must be an object, not {kind_of(value)}")
    return found


def _span(place: Place, at: str, raw: dict[str, Any]) -> Span:
    trace = text(place, at + "traceId", raw.get("traceId"))
    links = []
    for number, link in enumerate(_objects(place, at + "links", raw)):
        field = f"{at}links[{number}]."
        other = text(place, field + "traceId", link.get("traceId"))
        links.append(_key(other, text(place, field + "spanId", link.get("spanId"))))
    attributes = {}
    for number, pair in enumerate(_objects(place, at + "attributes", raw)):
        value = pair.get("value")
        name = text(place, f"{at}attributes[{number}].key", pair.get("key"))
        if isinstance(value, dict):
            attributes[name] = _plain(value)
    parent = raw.get("parentSpanId") or ""
    return Span(
        place,
        at,
        trace,
        _key(trace, text(place, at + "spanId", raw.get("spanId"))),
        _key(trace, text(place, at + "parentSpanId", parent)) if parent else "",
        *_times(place, at, raw, "startTimeUnixNano", "endTimeUnixNano"),
        attributes,
        tuple(links),
    )


def _plain(value: dict[str, Any]) -> object:
    """The value of an attribute; 64-bit integers are strings in OTLP's JSON."""
    for form in _VALUES:
        if form in value:
            found = value[form]
            return int(found) if form == "intValue" and str(found).lstrip("-").isdecimal() else found
    return None


def _flat(place: Place, raw: dict[str, Any]) -> Span:
    trace = text(place, "trace_id", raw.get("trace_id"))
    attributes = raw.get("attributes", {})
    if not isinstance(attributes, dict):
        place.bad("attributes", f"must be an object, not {kind_of(attributes)}")
    parent = raw.get("parent_span_id") or ""
    return Span(
        place,
        "",
        trace,
        _key(trace, text(place, "span_id", raw.get("span_id"))),
        _key(trace, text(place, "parent_span_id", parent)) if parent else "",
        *_times(place, "", raw, "start_unix_ns", "end_unix_ns"),
        attributes,
        tuple([_key(trace, text(place, "links", link)) for link in listed(place, "links", raw.get("links"))]),
    )


def _times(place: Place, at: str, raw: dict[str, Any], start: str, end: str) -> tuple[int, int]:
    times = []
    for field in (start, end):
        value = raw.get(field)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _NS_MAX:
            place.bad(at + field, "is missing" if value is None else f"must be nanoseconds, not {value!r:.40}")
        times.append(value)
    if times[1] < times[0]:
        place.bad(at + end, f"lies before {start}")
    return times[0], times[1]


def _key(trace: str, span: str) -> str:
    return f"{trace}/{span}"
