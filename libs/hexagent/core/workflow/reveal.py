"""Checks what a client reveals against the graph and the limits, and puts it in topological order."""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from hexagent.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from hexagent.core.ids import checked_id
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.limits import Limits
from hexagent.core.workflow.model import CallSpec, JoinKind, NodeKind, NodeSpec, ToolSpec


def validate_reveal(graph: WorkflowGraph, nodes: Sequence[NodeSpec], limits: Limits) -> tuple[NodeSpec, ...]:
    """`nodes` without repetitions, parents before children, otherwise in the order given.

    Raises InvalidArgument, AlreadyExists (DUPLICATE_NODE), FailedPrecondition (BAD_ROUND) or ResourceExhausted
    (TOO_MANY_NODES) with the path of the offending field, such as `nodes[3].after[0]`.
    """
    _check_sizes(graph, nodes, limits)
    position: dict[str, int] = {}  # first place of each id in the reveal
    fresh: list[int] = []  # those of nodes that the graph does not have
    for i, node in enumerate(nodes):
        if node.node_id in position:
            _check_same(nodes[position[node.node_id]], node, i)
            continue
        position[checked_id(node.node_id, f"nodes[{i}].node_id")] = i
        known = graph.find(node.node_id)
        if known is not None:
            _check_same(known.spec, node, i)
            continue
        _check_node(node, f"nodes[{i}]", limits)
        fresh.append(i)
    for i in fresh:
        _check_parents(graph, nodes, position, i)
    _check_rounds(graph, nodes, fresh)
    return _sorted(nodes, position)


def _check_sizes(graph: WorkflowGraph, nodes: Sequence[NodeSpec], limits: Limits) -> None:
    if not nodes:
        raise _bad("NO_NODES", "nodes", "a reveal must name at least one node")
    if len(nodes) > limits.nodes_per_reveal:
        raise _over("TOO_MANY_NODES", "nodes", len(nodes), limits.nodes_per_reveal, "nodes in one reveal")
    total = len(graph.nodes) + len(nodes)
    if total > limits.nodes_per_workflow:
        total -= sum(1 for node in nodes if graph.find(node.node_id) is not None)
    if total > limits.nodes_per_workflow:
        raise ResourceExhausted(
            f"workflow {graph.workflow_id} would have {total} nodes, the limit is {limits.nodes_per_workflow}",
            reason="TOO_MANY_NODES",
            field="nodes",
            details={"limit": str(limits.nodes_per_workflow)},
        )
    payload = sum([len(node.call.payload) for node in nodes if node.call is not None])
    if payload > limits.payload_bytes_per_reveal:
        raise _over("PAYLOAD_TOO_LARGE", "nodes", payload, limits.payload_bytes_per_reveal, "payload bytes")


def _check_same(known: NodeSpec, node: NodeSpec, i: int) -> None:
    if known != node:
        raise AlreadyExists(
            f"node {node.node_id} was revealed before with other content",
            reason="DUPLICATE_NODE",
            field=f"nodes[{i}].node_id",
            details={"node_id": node.node_id},
        )


def _check_node(node: NodeSpec, path: str, limits: Limits) -> None:
    """What can be judged about a node without looking at others."""
    if node.role:
        checked_id(node.role, f"{path}.role")
    if node.template:
        checked_id(node.template, f"{path}.template")
    if node.round < 0 or (node.round and not node.template):
        raise _bad("BAD_ROUND", f"{path}.round", "a round is >= 0 and belongs to a template")
    if len(node.after) > limits.parents_per_node:
        raise _over("TOO_MANY_PARENTS", f"{path}.after", len(node.after), limits.parents_per_node, "parents")
    if len(node.after) > 1 and any(a >= b for a, b in pairwise(node.after)):
        raise _bad("BAD_PARENTS", f"{path}.after", "parents must be sorted, each named once")
    _check_join(node, path)
    if node.kind is NodeKind.CALL and node.call is not None and node.tool is None:
        _check_call(node, node.call, f"{path}.call", limits)
    elif node.kind is NodeKind.TOOL and node.tool is not None and node.call is None:
        _check_tool(node.tool, f"{path}.tool", limits)
    else:
        raise _bad("BAD_NODE", f"{path}.kind", "a node is either a call, with `call` set, or a tool, with `tool` set")


def _check_join(node: NodeSpec, path: str) -> None:
    join, parents = node.join, len(node.after)
    if join.kind is JoinKind.K_OF_N:
        if not 1 <= join.k <= parents:
            raise _bad("BAD_JOIN", f"{path}.join.k", f"k must be 1 to the number of parents, {parents}; got {join.k}")
    elif join.k:
        raise _bad("BAD_JOIN", f"{path}.join.k", f"k belongs to K_OF_N joins only; got {join.k}")


def _check_call(node: NodeSpec, call: CallSpec, path: str, limits: Limits) -> None:
    if not call.model:
        raise _bad("BAD_MODEL", f"{path}.model", "a call names its model")
    _check_tokens(call.max_tokens, path, "max_tokens", limits.max_tokens, least=1)
    _check_tokens(call.expected_output_tokens, path, "expected_output_tokens", limits.max_tokens)
    # Outputs still to come may be all there is, so an estimate of zero is right with segments only.
    least = 0 if call.segments else 1
    _check_tokens(call.prompt_tokens, path, "prompt_tokens", limits.prompt_tokens, least)
    if len(call.segments) > limits.segments_per_prompt:
        raise _over("TOO_MANY_SEGMENTS", f"{path}.segments", len(call.segments), limits.segments_per_prompt, "segments")
    guaranteed = node.join.needed(len(node.after)) == len(node.after)
    for j, (digest, tokens, output_of) in enumerate(call.segments):
        if tokens < 0 or tokens > limits.prompt_tokens:
            _check_tokens(tokens, f"{path}.segments[{j}]", "tokens", limits.prompt_tokens)
        if (not digest) is (not output_of):
            raise _bad("BAD_SEGMENT", f"{path}.segments[{j}]", "a segment has either a digest or `output_of`")
        if not output_of:
            continue
        if output_of not in node.after:
            raise _bad(
                "OUTPUT_NOT_A_PARENT",
                f"{path}.segments[{j}].output_of",
                f"{output_of} must be among the parents of {node.node_id}",
            )
        if not guaranteed:
            raise _bad(
                "OUTPUT_NOT_GUARANTEED",
                f"{path}.segments[{j}].output_of",
                f"the join of {node.node_id} may be met without {output_of}; only a join that waits for"
                " every parent may use an output",
            )


def _check_tokens(tokens: int, path: str, name: str, most: int, least: int = 0) -> None:
    if tokens < 0:
        raise _bad("NEGATIVE_TOKENS", f"{path}.{name}", f"tokens cannot be negative; got {tokens}")
    if tokens < least:
        raise _bad("ZERO_TOKENS", f"{path}.{name}", f"must be at least {least} token")
    if tokens > most:
        raise _over("TOO_MANY_TOKENS", f"{path}.{name}", tokens, most, "tokens")


def _check_tool(tool: ToolSpec, path: str, limits: Limits) -> None:
    checked_id(tool.name, f"{path}.name")
    if not 0 <= tool.expected_us <= limits.duration_us:
        raise _over("HINT_TOO_LARGE", f"{path}.expected_us", tool.expected_us, limits.duration_us, "us from 0")
    if not 0 <= tool.timeout_us <= limits.tool_timeout_us:
        raise _over("BAD_TIMEOUT", f"{path}.timeout_us", tool.timeout_us, limits.tool_timeout_us, "us from 0")


def _check_parents(graph: WorkflowGraph, nodes: Sequence[NodeSpec], position: Mapping[str, int], i: int) -> None:
    """Every parent exists, and every output a prompt uses is that of a call."""
    node = nodes[i]
    tools = []
    for j, parent in enumerate(node.after):
        known = graph.find(parent)
        if known is None and parent not in position:
            raise _bad(
                "UNKNOWN_PARENT",
                f"nodes[{i}].after[{j}]",
                f"{parent} is neither in workflow {graph.workflow_id} nor in this reveal",
            )
        kind = known.spec.kind if known is not None else nodes[position[parent]].kind
        if kind is not NodeKind.CALL:
            tools.append(parent)
    if node.call is None or not tools:
        return
    for j, segment in enumerate(node.call.segments):
        if segment.output_of in tools:
            raise _bad(
                "OUTPUT_OF_TOOL",
                f"nodes[{i}].call.segments[{j}].output_of",
                f"{segment.output_of} is a tool; only calls have an output the cluster knows",
            )


def _check_rounds(graph: WorkflowGraph, nodes: Sequence[NodeSpec], fresh: Sequence[int]) -> None:
    """Rounds of a template follow each other: 0 or 1 first, then the last revealed one or the next."""
    rounds = sorted([(nodes[i].round, i) for i in fresh if nodes[i].template])
    if not rounds:
        return
    last = dict(graph.rounds)
    for _, i in rounds:
        node = nodes[i]
        before = last.get(node.template)
        lowest, highest = (0, 1) if before is None else (before, before + 1)
        if not lowest <= node.round <= highest:
            raise FailedPrecondition(
                f"template {node.template} goes on with round {lowest} or {highest}, not {node.round}",
                reason="BAD_ROUND",
                field=f"nodes[{i}].round",
                details={"template": node.template, "next": str(highest)},
            )
        last[node.template] = node.round


def _sorted(nodes: Sequence[NodeSpec], position: Mapping[str, int]) -> tuple[NodeSpec, ...]:
    """Parents before children, earlier places first; InvalidArgument CYCLE if that cannot be."""
    if position.keys().isdisjoint([parent for node in nodes for parent in node.after]):
        return tuple([nodes[i] for i in position.values()])
    waits: dict[int, int] = {}  # place -> parents in this reveal that are not out yet
    children: dict[int, list[int]] = {}
    for i in position.values():
        inside = [position[parent] for parent in nodes[i].after if parent in position]
        waits[i] = len(inside)
        for parent in inside:
            children.setdefault(parent, []).append(i)
    free = [i for i, count in waits.items() if count == 0]
    heapify(free)
    order = []
    while free:
        i = heappop(free)
        order.append(nodes[i])
        for child in children.get(i, ()):
            waits[child] -= 1
            if waits[child] == 0:
                heappush(free, child)
    if len(order) < len(waits):
        raise _cycle(nodes, position, waits)
    return tuple(order)


def _cycle(nodes: Sequence[NodeSpec], position: Mapping[str, int], waits: Mapping[int, int]) -> InvalidArgument:
    """The refusal that names one cycle among the nodes that still wait."""
    place = next(i for i, count in waits.items() if count)
    seen: dict[int, int] = {}
    path: list[int] = []
    while place not in seen:  # every waiting node has a waiting parent, so this comes round
        seen[place] = len(path)
        path.append(place)
        place = next(position[p] for p in nodes[place].after if p in position and waits[position[p]])
    cycle = path[seen[place] :]
    child, parent = cycle[0], nodes[cycle[1 % len(cycle)]].node_id
    names = " -> ".join(nodes[i].node_id for i in reversed([*cycle, place]))
    return InvalidArgument(
        f"nodes wait for each other: {names}",
        reason="CYCLE",
        field=f"nodes[{child}].after[{nodes[child].after.index(parent)}]",
        details={"cycle": names},
    )


def _bad(reason: str, field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {message}", reason=reason, field=field)


def _over(reason: str, field: str, value: int, limit: int, what: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: {value} {what}, the limit is {limit}", reason=reason, field=field, details={"limit": str(limit)}
    )
