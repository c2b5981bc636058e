"""Where the time of a workflow went: the chain of nodes that its end waited for, phase by phase."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from hexagent.core.workflow.graph import NEVER, WorkflowGraph
from hexagent.core.workflow.model import CallTimes, NodeKind, NodeStatus
from hexagent.core.workflow.phases import PhaseKind, phases_of


class NodeTimeline(NamedTuple):
    """When a node of a workflow went where, model time; `NEVER` = it did not."""

    node_id: str
    kind: NodeKind
    status: NodeStatus
    after: tuple[str, ...]
    ready_us: int
    started_us: int
    finished_us: int
    times: CallTimes = CallTimes()  # of a call


def timelines_of(graph: WorkflowGraph) -> tuple[NodeTimeline, ...]:
    """Of every node of a workflow, in the order of their reveal."""
    return tuple(
        NodeTimeline(
            node.node_id,
            node.spec.kind,
            node.status,
            node.spec.after,
            node.ready_us,
            node.started_us,
            node.finished_us,
            node.outcome.times if node.outcome is not None else CallTimes(),
        )
        for node in graph.nodes
    )


class Spent(NamedTuple):
    """A workflow's completion time by what it waited for, microseconds of model time; the sum is all of it."""

    queue_us: int = 0
    prefill_us: int = 0
    kv_wait_us: int = 0
    kv_transfer_us: int = 0
    decode_us: int = 0
    tool_us: int = 0
    other_us: int = 0  # between nodes: the client's own work, and the way of requests and results

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent._make(mine + its for mine, its in zip(self, other, strict=True))


_PLACE: Final = {kind: place for place, kind in enumerate(PhaseKind)}
_TOOL: Final = len(PhaseKind)


def last_chain(nodes: Iterable[NodeTimeline]) -> list[NodeTimeline]:
    """From first to last the nodes that ended one after the other until the last of the workflow had ended.

    Before a node stands the parent that ended last of those that it waited for. A node without parents that came
    after others had ended follows the last of them: its client revealed it when that was there.
    """
    by_id = {node.node_id: node for node in nodes if node.status is NodeStatus.SUCCEEDED and node.ready_us != NEVER}
    ended = sorted(by_id.values(), key=lambda node: (node.finished_us, node.node_id))
    instants = [node.finished_us for node in ended]
    chain: list[NodeTimeline] = []
    node = ended[-1] if ended else None
    while node is not None:
        chain.append(node)
        node = _before(node, by_id, ended, instants)
    return chain[::-1]


def spent_on(nodes: Iterable[NodeTimeline], jct_us: int, *, with_tools: bool = True) -> Spent:
    """`jct_us` by what the chain of nodes that made it took; what they do not explain is `other_us`.

    `with_tools` is off where the time of tools is no part of `jct_us`. Where clocks disagree so that the chain is
    longer than `jct_us`, what is too much is taken from its longest part.
    """
    parts = [0] * (_TOOL + 1)
    for node in last_chain(nodes):
        if node.kind is NodeKind.CALL:
            for phase in phases_of(node.ready_us, node.times, node.finished_us):
                parts[_PLACE[phase.kind]] += phase.end_us - phase.start_us
        elif with_tools and node.started_us != NEVER:
            parts[_TOOL] += max(node.finished_us - node.started_us, 0)
    left_us = jct_us - sum(parts)
    while left_us < 0:
        longest = parts.index(max(parts))
        taken_us = min(parts[longest], -left_us)
        parts[longest] -= taken_us
        left_us += taken_us
    return Spent._make((*parts, left_us))


def _before(
    node: NodeTimeline, by_id: Mapping[str, NodeTimeline], ended: Sequence[NodeTimeline], instants: Sequence[int]
) -> NodeTimeline | None:
    """What ended last of all that `node` may have waited for; always earlier in the order of ends."""
    own = (node.finished_us, node.node_id)
    if node.after:
        parents = (by_id[parent] for parent in node.after if parent in by_id)
        waited = [parent for parent in parents if parent.finished_us <= node.ready_us]
    else:
        place = bisect_right(instants, node.ready_us)
        waited = list(ended[max(place - 1, 0) : place])
    earlier = [parent for parent in waited if (parent.finished_us, parent.node_id) < own]
    return max(earlier, key=lambda parent: (parent.finished_us, parent.node_id), default=None)
