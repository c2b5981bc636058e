"""Spans that are known only when they have ended, and where they go: an OTLP receiver, a file.

Putting spans never waits and never fails its caller; what a full queue, a full file or a missing receiver cannot
take is dropped and said once in the log.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from hexagent.core.tracing import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

log = logging.getLogger(__name__)

Value = str | int | float | bool | Sequence[str]
SpanKind = Literal["internal", "client"]

LINKS_MAX: Final = 128  # of one span, OpenTelemetry's own default


class Span(NamedTuple):
    """Something that took time; instants in ns since the epoch."""

    context: TraceContext
    parent_id: int  # in the same trace, 0 = none
    parent_is_remote: bool  # recorded by another process
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    links: tuple[int, ...] = ()  # spans of the same trace that it waited for
    error: str = ""  # why it did not succeed, "" = it did


class SpanSink(Protocol):
    """Where spans go."""

    def put(self, spans: Sequence[Span]) -> None:
        """Take what can be taken."""

    def close(self) -> None:
        """Deliver what is buffered; may take some seconds of wall time."""


class OtlpSpans:
    """Spans to a batching processor of the OpenTelemetry SDK, which exports them on a thread of its own."""

    def __init__(self, processor: "SpanProcessor", resource: "Resource", scope: str) -> None:
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._processor = processor
        self._resource = resource
        self._scope = InstrumentationScope(scope)

    def put(self, spans: Sequence[Span]) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import ReadableSpan

        kinds = {"internal": trace.SpanKind.INTERNAL, "client": trace.SpanKind.CLIENT}
        for span in spans:
            trace_id = span.context.trace_id
            state = trace.TraceState.from_header([span.context.state]) if span.context.state else None
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if span.context.sampled else trace.TraceFlags.DEFAULT)
            parent = None
            if span.parent_id:
                parent = trace.SpanContext(trace_id, span.parent_id, span.parent_is_remote, flags)
            status = trace.Status(trace.StatusCode.ERROR, span.error) if span.error else trace.Status()
            self._processor.on_end(
                ReadableSpan(
                    name=span.name,
                    context=trace.SpanContext(trace_id, span.context.span_id, False, flags, state),
                    parent=parent,
                    resource=self._resource,
                    attributes=span.attributes,
                    links=[trace.Link(trace.SpanContext(trace_id, link, False, flags)) for link in span.links],
                    kind=kinds[span.kind],
                    status=status,
                    start_time=span.start_ns,
                    end_time=span.end_ns,
                    instrumentation_scope=self._scope,
                )
            )

    def close(self) -> None:
        self._processor.shutdown()


class SpanFile:
    """One JSON object a span and line, each batch flushed; no line is begun that would make the file too large."""

    def __init__(self, path: Path, bytes_max: int, service: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._left = bytes_max - (path.stat().st_size if path.exists() else 0)
        self._service = service
        self._file: IO[bytes] | None = path.open("ab")

    def put(self, spans: Sequence[Span]) -> None:
        if self._file is None:
            return
        lines = [json.dumps(span_object(span, self._service), separators=(",", ":")).encode() + b"\n" for span in spans]
        fitting = []
        for line in lines:
            if len(line) > self._left:
                break
            self._left -= len(line)
            fitting.append(line)
        try:
            self._file.write(b"".join(fitting))
            self._file.flush()
        except OSError as error:
            self._give_up(str(error))
            return
        if len(fitting) < len(lines):
            self._give_up("it has reached its largest size")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, why: str) -> None:
        log.warning("no more spans go to %s: %s", self._path, why)
        self.close()


def span_object(span: Span, service: str) -> dict[str, object]:
    """The span as the trace file has it: ids in hex as OTLP's JSON form writes them."""
    found: dict[str, object] = {
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_span_id": f"{span.parent_id:016x}" if span.parent_id else "",
        "name": span.name,
        "kind": span.kind,
        "service": service,
        "start_unix_ns": span.start_ns,
        "end_unix_ns": span.end_ns,
        "attributes": dict(span.attributes),
    }
    if span.links:
        found["links"] = [f"{link:016x}" for link in span.links]
    if span.error:
        found["error"] = span.error
    return found
