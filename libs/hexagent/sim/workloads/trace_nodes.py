"""One line of a recorded trace, checked: the values it may hold and the error each bad one gives."""

import heapq
from typing import Any, NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import checked_id
from hexagent.sim.workloads.model import Target
from hexagent.sim.workloads.targets import parse_target
from hexagent.sim.workloads.trace_fields import TOKENS_MAX, Place, decoded, integer, kind_of, time_us

SAMPLES_MAX = 1_024
CALLS_MAX = 100_000  # of one workflow, samples counted


class TraceNode(NamedTuple):
    """A node as recorded, with ids replaced by positions in topological order."""

    at: str  # the node's place on its line, for errors
    node_id: int  # as recorded
    deps: tuple[int, ...]
    prompt: int
    output: int
    prefix_of: int  # -1 = none
    prefix: int
    tool_us: int  # -1 = not recorded
    gap_us: int
    kind: str
    samples: int
    blocks: tuple[int, ...] = ()  # ids of the prompt's leading blocks where the trace has such
    block_tokens: int = 0  # of each but the last, which may be shorter
    target: Target = Target()


class TraceWorkflow(NamedTuple):
    place: Place
    workflow_id: str
    arrival_us: int  # -1 = not recorded
    nodes: tuple[TraceNode, ...]
    conversation: bool
    jct_us: int = -1  # how long it really took; of a conversation the sum of its turns; -1 = not recorded


def parse_line(place: Place, line: bytes) -> TraceWorkflow:
    """The workflow on one line; `InvalidArgument` (BAD_TRACE) names file, line and field."""
    record = decoded(place, line)
    raw = record.get("nodes")
    if not isinstance(raw, list) or not raw:
        place.bad("nodes", "must be a list of at least one node")
    nodes = []
    for position, node in enumerate(raw):
        if not isinstance(node, dict):
            place.bad(f"nodes[{position}]", f"must be an object, not {kind_of(node)}")
        nodes.append(_node(place, f"nodes[{position}]", node))
    calls = sum(node.samples for node in nodes)
    if calls > CALLS_MAX:
        place.bad("nodes", f"make {calls} calls, more than {CALLS_MAX}")
    ordered = _in_order(place, nodes)
    arrival = time_us(place, "arrival_ms", record.get("arrival_ms"))
    conversation = any(node.get("gap_ms") is not None for node in raw)
    jct_us = time_us(place, "jct_ms", record.get("jct_ms"))
    return TraceWorkflow(place, _workflow_id(place, record), arrival, ordered, conversation, jct_us)


def _workflow_id(place: Place, record: dict[str, Any]) -> str:
    value = record.get("id")
    if not isinstance(value, str):
        place.bad("id", "is missing" if value is None else f"must be a string, not {kind_of(value)}")
    try:
        return checked_id(value, "id")
    except InvalidArgument as error:
        place.bad("id", error.message)


def _node(place: Place, at: str, raw: dict[str, Any]) -> TraceNode:
    deps = raw.get("deps")
    if not isinstance(deps, list):
        place.bad(f"{at}.deps", "is missing" if deps is None else f"must be a list, not {kind_of(deps)}")
    kind = raw.get("kind")
    if not isinstance(kind, str) or not kind:
        place.bad(f"{at}.kind", "is missing" if kind is None else "must be a name")
    prefix_of = raw.get("prefix_of")
    return TraceNode(
        at=at,
        node_id=integer(place, f"{at}.id", raw.get("id"), 0, TOKENS_MAX),
        deps=tuple(integer(place, f"{at}.deps", dep, 0, TOKENS_MAX) for dep in deps),
        prompt=integer(place, f"{at}.prompt", raw.get("prompt"), 1, TOKENS_MAX),
        output=integer(place, f"{at}.output", raw.get("output"), 1, TOKENS_MAX),
        prefix_of=-1 if prefix_of is None else integer(place, f"{at}.prefix_of", prefix_of, 0, TOKENS_MAX),
        prefix=integer(place, f"{at}.prefix", raw.get("prefix", 0), 0, TOKENS_MAX),
        tool_us=time_us(place, f"{at}.tool_ms", raw.get("tool_ms")),
        gap_us=max(0, time_us(place, f"{at}.gap_ms", raw.get("gap_ms"))),
        kind=kind,
        samples=integer(place, f"{at}.samples", raw.get("samples", 1), 1, SAMPLES_MAX),
        target=_target(place, f"{at}.model", raw.get("model")),
    )


def _target(place: Place, field: str, value: object) -> Target:
    if value is None:
        return Target()
    if not isinstance(value, str):
        place.bad(field, f"must be a string, not {kind_of(value)}")
    try:
        return parse_target(value, field)
    except InvalidArgument as error:
        place.bad(field, error.message)


def _in_order(place: Place, nodes: list[TraceNode]) -> tuple[TraceNode, ...]:
    """The nodes so that each stands after its deps and the node whose prompt it extends, ids else ascending."""
    positions: dict[int, int] = {}
    for position, node in enumerate(nodes):
        if node.node_id in positions:
            place.bad(f"nodes[{position}].id", f"repeats id {node.node_id} of nodes[{positions[node.node_id]}]")
        positions[node.node_id] = position
    deps: list[set[int]] = []
    for position, node in enumerate(nodes):
        deps.append(_known(place, f"nodes[{position}].deps", node.deps, positions))
        if len(deps[position]) < len(node.deps):
            place.bad(f"nodes[{position}].deps", "names a node twice")
        if node.gap_us and (len(node.deps) != 1 or nodes[min(deps[position])].samples != 1):
            place.bad(f"nodes[{position}].gap_ms", "needs exactly one dep, of one sample")
    _topological(place, "deps", nodes, deps)
    needs = []
    for position, node in enumerate(nodes):
        of = (node.prefix_of,) if node.prefix_of >= 0 else ()
        needs.append(deps[position] | _known(place, f"nodes[{position}].prefix_of", of, positions))
    order = _topological(place, "prefix_of", nodes, needs)
    rank = {position: new for new, position in enumerate(order)}
    return tuple(
        nodes[position]._replace(
            deps=tuple(sorted(rank[dep] for dep in deps[position])),
            prefix_of=rank[positions[nodes[position].prefix_of]] if nodes[position].prefix_of >= 0 else -1,
        )
        for position in order
    )


def _known(place: Place, field: str, ids: tuple[int, ...], positions: dict[int, int]) -> set[int]:
    for node_id in ids:
        if node_id not in positions:
            place.bad(field, f"names node {node_id}, which the workflow does not have")
    return {positions[node_id] for node_id in ids}


def _topological(place: Place, field: str, nodes: list[TraceNode], needs: list[set[int]]) -> list[int]:
    """Positions in topological order, the smallest id first among those free."""
    ids = [node.node_id for node in nodes]
    order, loop = topological(needs, ids)
    if loop:
        cycle = " <- ".join(str(ids[position]) for position in [*loop, loop[0]])
        place.bad(f"nodes[{loop[0]}].{field}", f"makes a cycle of nodes {cycle}")
    return order


def topological(needs: list[set[int]], ids: list[int]) -> tuple[list[int], list[int]]:
    """Positions so that each stands after what it needs, the smallest id first among those free; and a cycle, if any.

    Of a cycle each position is followed by one it needs.
    """
    waiting = [len(need) for need in needs]
    followers: list[list[int]] = [[] for _ in needs]
    for position, need in enumerate(needs):
        for other in need:
            followers[other].append(position)
    free = [(ids[position], position) for position, count in enumerate(waiting) if not count]
    heapq.heapify(free)
    order = []
    while free:
        position = heapq.heappop(free)[1]
        order.append(position)
        for follower in followers[position]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(free, (ids[follower], follower))
    left = set(range(len(needs))) - set(order)
    return order, _cycle(needs, left) if left else []


def _cycle(needs: list[set[int]], left: set[int]) -> list[int]:
    """Positions of one cycle among those `left`."""
    path = [min(left)]
    while (needed := min(needs[path[-1]] & left)) not in path:
        path.append(needed)
    return path[path.index(needed) :]
