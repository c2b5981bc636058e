"""From traces with a call a line, whose deps are names of other calls, to workflows.

Calls of one group, and calls that wait for one another, make one workflow.
"""

import re
from typing import NamedTuple

from hexagent.core.ids import ID_MAX_CHARS
from hexagent.sim.workloads.trace_fields import Place
from hexagent.sim.workloads.trace_nodes import CALLS_MAX, TraceNode, TraceWorkflow, topological


class Row(NamedTuple):
    place: Place
    key: str  # how deps name it
    deps: tuple[str, ...]
    group: str  # that of its first row names a workflow
    start_us: int  # when a call without deps is due; -1 = not recorded
    node: TraceNode  # without id, deps and the node it extends
    extends: str = ""  # key of a dep whose context the prompt begins with
    end_us: int = -1  # when it had ended, on the clock of `start_us`; -1 = not recorded


def workflows_of(rows: list[Row], field: str) -> list[TraceWorkflow]:
    """In the order of their first rows. `field` is the one of deps, for errors (BAD_TRACE)."""
    positions: dict[str, int] = {}
    for position, row in enumerate(rows):
        if row.key in positions:
            row.place.bad("id", f"repeats {row.key!r} of line {rows[positions[row.key]].place.line}")
        positions[row.key] = position
    needs: list[set[int]] = []
    for row in rows:
        for dep in row.deps:
            if dep not in positions:
                row.place.bad(field, f"names {dep!r}, which the file does not have")
        needs.append({positions[dep] for dep in row.deps})
    taken: set[str] = set()
    return [_workflow(rows, members, needs, positions, field, taken) for members in _components(rows, needs)]


def _components(rows: list[Row], needs: list[set[int]]) -> list[list[int]]:
    """Positions that hang together, ascending."""
    firsts: dict[str, int] = {}  # of each group
    root = list(range(len(needs)))

    def find(position: int) -> int:
        while root[position] != position:
            root[position] = root[root[position]]
            position = root[position]
        return position

    for position, need in enumerate(needs):
        for other in sorted({*need, firsts.setdefault(rows[position].group, position)}):
            low, high = sorted((find(position), find(other)))
            root[high] = low
    members: dict[int, list[int]] = {}
    for position in range(len(needs)):
        members.setdefault(find(position), []).append(position)
    return list(members.values())


def _workflow(
    rows: list[Row],
    members: list[int],
    needs: list[set[int]],
    positions: dict[str, int],
    field: str,
    taken: set[str],
) -> TraceWorkflow:
    first = rows[members[0]]
    if len(members) > CALLS_MAX:
        first.place.bad(field, f"makes a workflow of {len(members)} calls, more than {CALLS_MAX}")
    local = {position: number for number, position in enumerate(members)}
    inner = [{local[other] for other in needs[position]} for position in members]
    order, loop = topological(inner, members)
    if loop:
        cycle = " <- ".join(rows[members[number]].key for number in [*loop, loop[0]])
        rows[members[loop[0]]].place.bad(field, f"makes a cycle of {cycle}")
    rank = {number: new for new, number in enumerate(order)}
    starts = [rows[members[number]].start_us for number in order if not inner[number]]
    if min(starts) < 0 <= max(starts):
        first.place.bad("timestamp", "must be on all rows of a workflow that wait for none, or on none")
    arrival_us = min(starts)
    nodes = []
    for new, number in enumerate(order):
        row = rows[members[number]]
        node = row.node._replace(node_id=new, deps=tuple(sorted([rank[other] for other in inner[number]])))
        if row.extends:
            node = node._replace(prefix_of=rank[local[positions[row.extends]]])
        nodes.append(node if node.deps else node._replace(tool_us=row.start_us - arrival_us))
    conversation = any(node.gap_us for node in nodes)
    ends = [rows[position].end_us for position in members]
    jct_us = max(ends) - arrival_us if min(ends) >= 0 else -1
    return TraceWorkflow(first.place, _name(first.group, taken), arrival_us, tuple(nodes), conversation, jct_us)


def _name(group: str, taken: set[str]) -> str:
    """The group as a valid id no other workflow of the file has."""
    base = name = as_id(group)[: ID_MAX_CHARS - 8] or "workflow"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return name


def as_id(text: str) -> str:
    """`text` with what no id may hold replaced; may be empty."""
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", text).strip("-._:")[:ID_MAX_CHARS]
