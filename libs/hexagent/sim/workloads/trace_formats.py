"""The formats of traces, and how the first line of a file tells them apart."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from hexagent.core.errors import NotFound
from hexagent.sim.workloads.mooncake import agentic_workflows, mooncake_workflows
from hexagent.sim.workloads.otel import otel_workflows
from hexagent.sim.workloads.trace_fields import Place, decoded, lines_of
from hexagent.sim.workloads.trace_nodes import TraceWorkflow, parse_line

Lines = Iterable[tuple[Place, bytes]]


class Format(NamedTuple):
    shows: Callable[[dict[str, Any]], bool]  # whether a line is of it
    read: Callable[[Lines], Iterable[TraceWorkflow]]


def _recorded(lines: Lines) -> Iterator[TraceWorkflow]:
    return (parse_line(place, line) for place, line in lines)


FORMATS: Final = {
    "recorded": Format(lambda line: "nodes" in line, _recorded),
    "agentic": Format(lambda line: "request_id" in line, agentic_workflows),
    "mooncake": Format(lambda line: "input_length" in line or "input_tokens" in line, mooncake_workflows),
    "otel": Format(lambda line: "resourceSpans" in line or "span_id" in line, otel_workflows),
}


def workflows_in(path: Path, name: str) -> Iterable[TraceWorkflow]:
    """The workflows of a file of format `name`, "" = what its first line looks like.

    `NotFound` (UNKNOWN_FORMAT) lists the known names; a first line that looks like none is BAD_TRACE.
    """
    if name and name not in FORMATS:
        known = ", ".join(FORMATS)
        raise NotFound(f"no trace format {name!r}; known: {known}", reason="UNKNOWN_FORMAT", field="trace_format")
    lines = lines_of(path)
    if name:
        return FORMATS[name].read(lines)
    head = next(lines, None)
    if head is None:
        return ()
    place, line = head
    record = decoded(place, line)
    found = next((known for known in FORMATS.values() if known.shows(record)), None)
    if found is None:
        place.bad("line", f"is of no known format: {', '.join(FORMATS)}")
    return found.read(chain([head], lines))
