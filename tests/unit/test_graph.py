"""The growing graph: readiness, joins, losers, doom, late edges, idempotence."""

import pytest

from hexagent.core.errors import NotFound
from hexagent.core.ids import CallId
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowChanged,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.graph import NOTHING, GraphDelta, WorkflowGraph
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    Join,
    JoinKind,
    NodeKind,
    NodeSpec,
    NodeStatus,
    ToolSpec,
    WorkflowSpec,
    WorkflowStatus,
)

ANY = Join(JoinKind.ANY)
KEEP = Join(JoinKind.ANY, keep_losers=True)


def call(node_id: str, *after: str, join: Join = Join()) -> NodeSpec:
    return NodeSpec(node_id, NodeKind.CALL, "worker", tuple(sorted(after)), join, call=CallSpec("m", (), 10, 10))


def tool(node_id: str, *after: str) -> NodeSpec:
    return NodeSpec(node_id, NodeKind.TOOL, "", tuple(sorted(after)), tool=ToolSpec("search"))


def graph_of(*nodes: NodeSpec) -> WorkflowGraph:
    graph = WorkflowGraph(WorkflowStarted(WorkflowSpec("w", "default", "c"), at_us=0))
    graph.apply(NodesRevealed("w", nodes, at_us=1))
    return graph


def reveal(graph: WorkflowGraph, *nodes: NodeSpec, at_us: int = 5) -> GraphDelta:
    return graph.apply(NodesRevealed("w", nodes, at_us))


def end(graph: WorkflowGraph, node_id: str, status: NodeStatus = NodeStatus.SUCCEEDED, at_us: int = 9) -> GraphDelta:
    return graph.apply(CallFinished(CallOutcome(CallId("w", node_id), 1, status), at_us))


def test_roots_are_ready_and_children_wait() -> None:
    graph = WorkflowGraph(WorkflowStarted(WorkflowSpec("w", "default", "c"), at_us=0))
    delta = reveal(graph, call("a"), call("b"), call("c", "a", "b"))
    assert delta == GraphDelta(ready=("a", "b"))
    assert graph.node("c").status is NodeStatus.BLOCKED
    assert end(graph, "a").ready == ()
    assert end(graph, "b") == GraphDelta(ready=("c",), closed=("b",))
    assert graph.open_count == 1


def test_any_and_k_of_n_name_their_losers() -> None:
    graph = graph_of(call("a"), call("b"), call("c"), call("d", "a", "b", "c", join=Join(JoinKind.K_OF_N, 2)))
    assert end(graph, "b") == GraphDelta(closed=("b",))
    assert end(graph, "c") == GraphDelta(ready=("d",), losers=("a",), closed=("c",))


def test_losers_reach_up_to_ancestors_needed_for_losers_only() -> None:
    graph = graph_of(
        call("shared"),
        call("deep"),
        call("slow", "deep", "shared"),
        call("fast"),
        call("other", "shared"),
        call("first", "fast", "slow", join=ANY),
    )
    assert end(graph, "fast").losers == ("slow", "deep")


def test_a_node_someone_else_waits_for_or_nobody_waits_for_is_no_loser() -> None:
    graph = graph_of(call("a"), call("b"), call("c", "a", "b", join=ANY), call("d", "b"), call("alone"))
    assert end(graph, "a").losers == ()
    # The last waiting child ends: now the met join alone decides.
    assert end(graph, "d", NodeStatus.CANCELLED).losers == ("b",)


def test_a_cancelled_child_alone_makes_no_loser() -> None:
    graph = graph_of(call("a"), call("b", "a"))
    assert end(graph, "b", NodeStatus.CANCELLED).losers == ()


def test_keep_losers_keeps_them() -> None:
    graph = graph_of(call("a"), call("b"), call("c", "a", "b", join=KEEP), call("d", "a", "b", join=ANY))
    assert end(graph, "a") == GraphDelta(ready=("c", "d"), closed=("a",))
    assert graph.pending() == NOTHING


def test_all_fails_with_the_first_parent_and_is_named_once() -> None:
    graph = graph_of(call("a"), call("b"), call("c", "a", "b"))
    assert end(graph, "a", NodeStatus.FAILED).doomed == (("c", "a"),)
    assert end(graph, "b", NodeStatus.FAILED).doomed == ()
    assert graph.pending().doomed == (("c", "a"),)


def test_any_survives_until_the_last_parent() -> None:
    graph = graph_of(call("a"), call("b"), call("c", "a", "b", join=ANY))
    assert end(graph, "a", NodeStatus.REFUSED).doomed == ()
    assert end(graph, "b", NodeStatus.CANCELLED).doomed == (("c", "b"),)


def test_late_edges_to_ended_parents() -> None:
    graph = graph_of(call("good"), call("bad"), call("open"))
    end(graph, "good")
    end(graph, "bad", NodeStatus.FAILED)
    delta = reveal(
        graph,
        call("ready", "good"),
        call("doomed", "bad", "good"),
        call("hopeful", "bad", "open", join=ANY),
        call("met", "good", "open", join=ANY),
    )
    assert delta.ready == ("ready", "met")
    assert delta.doomed == (("doomed", "bad"),)
    assert delta.losers == ()  # "hopeful" still waits for "open"


def test_a_join_met_at_its_reveal_cancels_the_rest() -> None:
    graph = graph_of(call("done"), call("open"))
    end(graph, "done")
    assert reveal(graph, call("met", "done", "open", join=ANY)) == GraphDelta(("met",), ("open",))


def test_repeated_events_change_nothing() -> None:
    nodes = (call("a"), call("b", "a"), tool("t"))
    graph = graph_of(*nodes)
    assert reveal(graph, *nodes) == NOTHING
    end(graph, "a")
    assert end(graph, "a", NodeStatus.FAILED) == NOTHING
    assert graph.node("a").status is NodeStatus.SUCCEEDED
    started = ToolStarted(CallId("w", "t"), 7)
    graph.apply(started)
    graph.apply(started._replace(at_us=8))
    assert graph.node("t").started_us == 7
    graph.apply(ToolFinished(CallId("w", "t"), NodeStatus.SUCCEEDED, 9))
    assert graph.apply(ToolFinished(CallId("w", "t"), NodeStatus.FAILED, 10)) == NOTHING
    assert (graph.node("t").status, graph.node("t").finished_us) == (NodeStatus.SUCCEEDED, 9)


def test_terms_pause_and_end() -> None:
    graph = graph_of(call("a"))
    graph.apply(WorkflowChanged("w", 7, 3_000, 99, paused=True, at_us=4))
    assert (graph.spec.priority, graph.spec.deadline_us, graph.status) == (7, 99, WorkflowStatus.PAUSED)
    graph.apply(WorkflowChanged("w", 1, 0, 0, paused=False, at_us=3))  # older than the last change
    assert graph.spec.priority == 7
    graph.apply(WorkflowFinished("w", WorkflowStatus.FAILED, 9, "why"))
    graph.apply(WorkflowFinished("w", WorkflowStatus.COMPLETED, 10))
    assert (graph.status, graph.reason, graph.finished_us, graph.live) == (WorkflowStatus.FAILED, "why", 9, False)


def test_dispatch_is_informative() -> None:
    graph = graph_of(call("a"), call("b", "a"), tool("t"))
    graph.dispatched(CallId("w", "a"), 2, 5, "p0", "d0")
    graph.dispatched(CallId("w", "a"), 1, 6, "p1", "d1")  # an older attempt
    graph.dispatched(CallId("w", "b"), 1, 6)  # blocked
    graph.dispatched(CallId("w", "t"), 1, 6)  # a tool
    node = graph.node("a")
    assert (node.status, node.attempt, node.started_us, node.prefill_instance) == (NodeStatus.RUNNING, 2, 5, "p0")
    assert [graph.node(n).status for n in "bt"] == [NodeStatus.BLOCKED, NodeStatus.READY]


def test_rounds_and_unknown_nodes() -> None:
    graph = graph_of(call("a")._replace(template="think", round=0), call("b")._replace(template="think", round=1))
    assert graph.rounds == {"think": 1}
    with pytest.raises(NotFound) as refused:
        end(graph, "nobody")
    assert refused.value.reason == "UNKNOWN_NODE"
