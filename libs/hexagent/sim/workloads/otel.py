"""OpenTelemetry spans of generative AI as workflows: calls with what they waited for, tools as the time before calls.

Names are those of OpenTelemetry's conventions for generative AI. A workflow is what has one `gen_ai.conversation.id`,
a span's own or that of one around it, else one trace. What HexAGenT wrote itself says by links what each call waited
for, and its times are scaled back to model time; for others `otel_graph` infers it. A prompt shares as many tokens with
the largest context it waited for as were read from the cache; calls that failed without usage are passed over.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from hexagent.core.units import US_PER_S
from hexagent.sim.workloads.otel_graph import DEPTH_MAX, tree_of, waits_of
from hexagent.sim.workloads.otel_spans import Span, spans_in
from hexagent.sim.workloads.trace_fields import TOKENS_MAX, Place, integer
from hexagent.sim.workloads.trace_nodes import TraceNode, TraceWorkflow
from hexagent.sim.workloads.trace_rows import Row, as_id, workflows_of

OPERATION: Final = "gen_ai.operation.name"
CONVERSATION: Final = "gen_ai.conversation.id"
CALLS: Final = ("chat", "text_completion", "generate_content")
TOOL: Final = "execute_tool"
INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")  # today's name, the one before
OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
CACHED: Final = "gen_ai.usage.cache_read.input_tokens"
OURS: Final = "hexagent.node"
COMPLETION: Final = "hexagent.completion_s"  # of a workflow, model time
COMPLETION_S_MAX: Final = 10**9
NS_PER_US: Final = 1_000


class _Clock(NamedTuple):
    """Model microseconds since the file's first span."""

    origin_ns: int
    scale: float  # model time by wall time

    def us(self, ns: int) -> int:
        return round((ns - self.origin_ns) * self.scale / NS_PER_US)


def otel_workflows(lines: Iterable[tuple[Place, bytes]]) -> list[TraceWorkflow]:
    by_key: dict[str, Span] = {}
    for span in spans_in(lines):
        if span.key in by_key:
            span.bad("span_id", f"repeats the span of line {by_key[span.key].place.line}")
        by_key[span.key] = span
    groups: dict[str, list[Span]] = {}
    for span in by_key.values():
        if _is_call(span) or _is_tool(span):
            groups.setdefault(_group(span, by_key), []).append(span)
    clock = _clock(list(by_key.values()))
    rows: list[Row] = []
    for group, spans in groups.items():
        rows += _rows(group, spans, by_key, clock)
    rows.sort(key=lambda row: row.start_us)
    return workflows_of(rows, "links")


def _is_call(span: Span) -> bool:
    operation = span.attributes.get(OPERATION)
    return operation in CALLS or (operation is None and any(name in span.attributes for name in OUTPUT))


def _is_tool(span: Span) -> bool:
    return span.attributes.get(OPERATION) == TOOL


def _group(span: Span, by_key: dict[str, Span]) -> str:
    """The conversation of the span or of the nearest one around it that names one, else its trace."""
    seen: set[str] = set()
    at: Span | None = span
    while at is not None and at.key not in seen:
        found = at.attributes.get(CONVERSATION)
        if isinstance(found, str) and found:
            return found
        seen.add(at.key)
        at = by_key.get(at.parent)
    return span.trace


def _clock(spans: list[Span]) -> _Clock:
    """The scale is what the longest of our own workflows says of itself."""
    longest_ns, scale = 0, 1.0
    for span in spans:
        took_ns, took_s = span.end_ns - span.start_ns, span.attributes.get(COMPLETION)
        if not isinstance(took_s, int | float):
            continue
        if not 0 <= took_s <= COMPLETION_S_MAX:
            span.bad(COMPLETION, f"must be 0 to {COMPLETION_S_MAX} s, not {took_s}")
        if took_ns > longest_ns:
            longest_ns, scale = took_ns, took_s * US_PER_S * NS_PER_US / took_ns
    return _Clock(min([span.start_ns for span in spans], default=0), scale)


class _Leaf(NamedTuple):
    """What somebody after a call or tool waits for."""

    calls: tuple[str, ...]
    tools_us: int  # of tools since those calls


def _rows(group: str, spans: list[Span], by_key: dict[str, Span], clock: _Clock) -> list[Row]:
    keys = {span.key for span in spans}
    ours = any(OURS in span.attributes for span in spans)
    waits = {span.key: _linked(span, by_key) for span in spans} if ours else waits_of(tree_of(spans, by_key), keys)
    leaves: dict[str, _Leaf] = {}
    rows: dict[str, Row] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns, span.key)):
        before = [key for key in waits[span.key] if key in keys]
        late = [key for key in before if key not in leaves]
        if late:
            span.bad("links", f"name span {late[0].rpartition('/')[2]}, which begins later or waits for this one")
        calls = tuple(dict.fromkeys([call for key in before for call in leaves[key].calls]))
        tools_us = max([leaves[key].tools_us for key in before], default=0)
        if _is_tool(span):
            leaves[span.key] = _Leaf(calls, tools_us + clock.us(span.end_ns) - clock.us(span.start_ns))
        elif "error.type" in span.attributes and not any(span.attributes.get(name) for name in OUTPUT):
            leaves[span.key] = _Leaf(calls, tools_us)
        else:
            leaves[span.key] = _Leaf((span.key,), 0)
            start_us = clock.us(_began_ns(span, by_key)) + tools_us if ours else clock.us(span.start_ns)
            if calls and not ours:
                tools_us = max(start_us - max(clock.us(by_key[call].end_ns) for call in calls), 0)
            row = _row(span, group, calls, start_us, tools_us, rows, by_key)
            rows[span.key] = row._replace(end_us=clock.us(span.end_ns))
    return list(rows.values())


def _linked(span: Span, by_key: dict[str, Span]) -> tuple[str, ...]:
    for key in span.links:
        if key not in by_key:
            span.bad("links", f"name span {key.rpartition('/')[2]}, which the file does not have")
    return span.links


def _began_ns(span: Span, by_key: dict[str, Span]) -> int:
    """When the workflow of our own span began."""
    parent = by_key.get(span.parent)
    return span.start_ns if parent is None else parent.start_ns


def _row(
    span: Span,
    group: str,
    calls: tuple[str, ...],
    start_us: int,
    tools_us: int,
    rows: dict[str, Row],
    by_key: dict[str, Span],
) -> Row:
    prompt = _tokens(span, INPUT)
    cached = span.attributes.get(CACHED)
    shared = min(integer(span.place, span.at + CACHED, cached, 0, TOKENS_MAX), prompt) if cached is not None else 0
    extends = ""
    if calls and shared:
        context, extends = max((rows[call].node.prompt + rows[call].node.output, call) for call in calls)
        shared = min(shared, context)
    node = TraceNode(
        at=span.at or "span",
        node_id=0,
        deps=(),
        prompt=prompt,
        output=_tokens(span, OUTPUT),
        prefix_of=-1,
        prefix=shared,
        tool_us=tools_us,
        gap_us=0,
        kind=_kind(span, by_key),
        samples=1,
    )
    return Row(span.place, span.key, calls, group, start_us, node, extends)


def _tokens(span: Span, names: tuple[str, str]) -> int:
    found = next((name for name in names if name in span.attributes), names[0])
    return integer(span.place, span.at + found, span.attributes.get(found), 1, TOKENS_MAX)


def _kind(span: Span, by_key: dict[str, Span]) -> str:
    """The role it was given, else the nearest agent around it, else what it does."""
    role = span.attributes.get("hexagent.role")
    at: Span | None = span
    for _ in range(DEPTH_MAX):
        if at is None or (isinstance(role, str) and role):
            break
        role, at = at.attributes.get("gen_ai.agent.name"), by_key.get(at.parent)
    return (as_id(role) if isinstance(role, str) else "") or "chat"
