"""A workflow as people want to see it: progress, horizon, critical path, bottleneck."""

from collections.abc import Callable
from typing import NamedTuple

from hexagent.core.workflow.graph import NEVER, Node, WorkflowGraph, is_call
from hexagent.core.workflow.horizon import Horizon
from hexagent.core.workflow.model import NodeKind, NodeStatus, WorkflowSpec, WorkflowStatus


class NodeDescription(NamedTuple):
    """Times are model time, `NEVER` (-1) = did not happen."""

    node_id: str
    kind: NodeKind
    role: str
    status: NodeStatus
    after: tuple[str, ...]
    revealed_us: int
    ready_us: int
    started_us: int
    finished_us: int
    solo_us: int  # what it costs alone on the cluster
    solo_start_us: int  # earliest start after the workflow's
    attempt: int
    prefill_instance: str
    decode_instance: str
    reason: str
    message: str


class WorkflowDescription(NamedTuple):
    spec: WorkflowSpec  # with the terms valid now
    status: WorkflowStatus
    reason: str
    started_us: int
    finished_us: int  # NEVER while live
    jct_us: int  # arrival to end, NEVER while live
    counts: tuple[tuple[NodeStatus, int], ...]  # every status, in its order
    horizon_us: int
    remaining_us: int  # longest path of open nodes
    critical_path: tuple[str, ...]  # node ids, first to last
    bottleneck: str  # the open node of the critical path that costs most, "" = none open
    nodes: tuple[NodeDescription, ...]  # in reveal order


def horizon_of(graph: WorkflowGraph, solo: Callable[[Node], int]) -> Horizon:
    """The horizon from scratch: nodes that ended without success are left out."""
    horizon = Horizon()
    for node in graph.nodes:
        horizon.add(node.index, node.parents, node.spec.join, node_cost_us(node, solo))
        if not node.open and node.status is not NodeStatus.SUCCEEDED:
            horizon.exclude(node.index)
    return horizon


def node_cost_us(node: Node, solo: Callable[[Node], int]) -> int:
    """A finished tool's measured time; for all else what `solo` says."""
    if not is_call(node) and node.finished_us != NEVER and node.started_us != NEVER:
        return max(node.finished_us - node.started_us, 0)
    return solo(node)


def describe(graph: WorkflowGraph, solo: Callable[[Node], int]) -> WorkflowDescription:
    """All of it, in time linear in nodes and edges."""
    horizon = horizon_of(graph, solo)
    path = [graph.nodes[index] for index in horizon.critical_path()]
    bottleneck = max(
        (node for node in path if node.open), key=lambda node: (horizon.cost_us(node.index), -node.index), default=None
    )
    started_us = graph.started.at_us
    return WorkflowDescription(
        spec=graph.spec,
        status=graph.status,
        reason=graph.reason,
        started_us=started_us,
        finished_us=graph.finished_us,
        jct_us=NEVER if graph.live else graph.finished_us - started_us,
        counts=tuple((status, graph.counts[status]) for status in NodeStatus),
        horizon_us=horizon.total_us(),
        remaining_us=horizon.remaining_us(node.index for node in graph.nodes if node.open),
        critical_path=tuple(node.node_id for node in path),
        bottleneck="" if bottleneck is None else bottleneck.node_id,
        nodes=tuple(_describe_node(node, horizon) for node in graph.nodes),
    )


def _describe_node(node: Node, horizon: Horizon) -> NodeDescription:
    spec = node.spec
    return NodeDescription(
        node_id=spec.node_id,
        kind=spec.kind,
        role=spec.role,
        status=node.status,
        after=spec.after,
        revealed_us=node.revealed_us,
        ready_us=node.ready_us,
        started_us=node.started_us,
        finished_us=node.finished_us,
        solo_us=horizon.cost_us(node.index),
        solo_start_us=horizon.start_us(node.index),
        attempt=node.attempt,
        prefill_instance=node.prefill_instance,
        decode_instance=node.decode_instance,
        reason=node.reason,
        message=node.message,
    )
