"""Mooncake traces, one request a line: Mooncake's own, with sessions as aiperf has them, and Dynamo's agentic ones.

Prompts come as ids of equal blocks of tokens, so prefixes are shared wherever ids are. Block sizes are not recorded:
512, Mooncake's, if every line allows it, else the power of two that does. Times are milliseconds.

What a request waits for:
- `wait_for` of an agentic row, then `delay` plus `tool_wait_ms`; `branches`, `prefix_reset` and `tool_events` describe
  what is in the other fields already;
- the line before it in its `session_id`, then `delay`, or until its `timestamp`, which is a person's pause;
- without either the last request whose whole blocks all begin its own, until its `timestamp`.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from hexagent.sim.workloads.trace_fields import TOKENS_MAX, Place, decoded, integer, listed, text, time_us
from hexagent.sim.workloads.trace_nodes import TraceNode, TraceWorkflow
from hexagent.sim.workloads.trace_rows import Row, workflows_of

BLOCK_TOKENS: Final = 512
BLOCK_SIZES: Final = (BLOCK_TOKENS, *[1 << exponent for exponent in range(13)])
BLOCK_IDS_MAX: Final = (1 << 64) - 1
KIND: Final = "request"


class Request(NamedTuple):
    place: Place
    start_us: int  # -1 = not recorded
    delay_us: int  # -1 = not recorded
    prompt: int
    output: int
    blocks: tuple[int, ...]
    session: str  # "" = none


def mooncake_workflows(lines: Iterable[tuple[Place, bytes]]) -> list[TraceWorkflow]:
    requests = [_request(place, decoded(place, line)) for place, line in lines]
    size = _block_tokens(requests)
    befores = _befores(requests, size)
    rows = []
    for number, (request, before) in enumerate(zip(requests, befores, strict=True)):
        node = _node(request, size)
        if before >= 0 and request.delay_us >= 0:
            node = node._replace(tool_us=request.delay_us)
        elif before >= 0 and request.start_us >= 0:
            node = node._replace(gap_us=_gap_us(request, requests[before]))
        deps = (str(before),) if before >= 0 else ()
        rows.append(Row(request.place, str(number), deps, request.session or f"r{number}", request.start_us, node))
    return workflows_of(rows, "session_id")


def agentic_workflows(lines: Iterable[tuple[Place, bytes]]) -> list[TraceWorkflow]:
    requests: list[Request] = []
    keys: list[tuple[str, tuple[str, ...], int]] = []  # request id, waits for, tool time
    for place, line in lines:
        record = decoded(place, line)
        requests.append(_request(place, record))
        waits = tuple([text(place, "wait_for", other) for other in listed(place, "wait_for", record.get("wait_for"))])
        if len(set(waits)) < len(waits):
            place.bad("wait_for", "names a request twice")
        tool_us = max(time_us(place, "tool_wait_ms", record.get("tool_wait_ms")), 0)
        keys.append((text(place, "request_id", record.get("request_id")), waits, tool_us))
    size = _block_tokens(requests)
    rows = [
        Row(
            request.place,
            key,
            waits,
            request.session or key,
            request.start_us,
            _node(request, size)._replace(tool_us=max(request.delay_us, 0) + tool_us),
        )
        for request, (key, waits, tool_us) in zip(requests, keys, strict=True)
    ]
    return workflows_of(rows, "wait_for")


def _request(place: Place, record: dict[str, Any]) -> Request:
    blocks = listed(place, "hash_ids", record.get("hash_ids"))
    session = record.get("session_id")
    return Request(
        place,
        time_us(place, "timestamp", _either(record, "timestamp", "created_time")),
        time_us(place, "delay", _either(record, "delay", "delay_ms")),
        integer(place, "input_length", _either(record, "input_length", "input_tokens"), 1, TOKENS_MAX),
        integer(place, "output_length", _either(record, "output_length", "output_tokens"), 1, TOKENS_MAX),
        tuple([integer(place, "hash_ids", block, 0, BLOCK_IDS_MAX) for block in blocks]),
        "" if session is None else text(place, "session_id", session),
    )


def _either(record: dict[str, Any], name: str, alias: str) -> object:
    return record.get(name, record.get(alias))


def _node(request: Request, size: int) -> TraceNode:
    return TraceNode(
        at="request",
        node_id=0,
        deps=(),
        prompt=request.prompt,
        output=request.output,
        prefix_of=-1,
        prefix=0,
        tool_us=0,
        gap_us=0,
        kind=KIND,
        samples=1,
        blocks=request.blocks,
        block_tokens=size,
    )


def _block_tokens(requests: list[Request]) -> int:
    """The size under which every prompt has as many whole blocks as ids, or one more, partly filled."""
    sizes = list(dict.fromkeys(BLOCK_SIZES))
    for request in requests:
        count = len(request.blocks)
        left = [size for size in sizes if (count - 1) * size < request.prompt < (count + 1) * size or not count]
        if not left:
            request.place.bad(
                "hash_ids", f"are {count} for {request.prompt} tokens: no block size of the lines before fits"
            )
        sizes = left
    return sizes[0]


def _gap_us(request: Request, before: Request) -> int:
    if before.start_us < 0:
        return 0
    if request.start_us < before.start_us:
        request.place.bad("timestamp", f"lies before that of line {before.place.line}, which this request follows")
    return request.start_us - before.start_us


def _befores(requests: list[Request], size: int) -> list[int]:
    """For each request the one it follows, -1 = none."""
    last_of: dict[str, int] = {}  # by session
    steps: dict[tuple[int, int], int] = {}  # of a tree of blocks: place and block to the next place, from 0
    ends: dict[int, int] = {}  # the last request whose whole blocks end at a place
    befores = []
    for number, request in enumerate(requests):
        if request.session:
            befores.append(last_of.get(request.session, -1))
            last_of[request.session] = number
            continue
        place, before = 0, -1
        for block in request.blocks[: request.prompt // size]:
            place = steps.setdefault((place, block), len(steps) + 1)
            before = ends.get(place, before)
        ends[place] = number
        ends.pop(0, None)  # a prompt without a whole block begins no other
        befores.append(before)
    return befores
