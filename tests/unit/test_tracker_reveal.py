"""What the tracker refuses in a reveal, with reason and field; and how it orders what it takes."""

from typing import Any

import pytest

from hexagent.core import errors
from hexagent.core.ids import CallId
from hexagent.core.instance.spec import Lora, Role
from hexagent.core.workflow.commands import Publish, RevealNodes, StartTool, StartWorkflow
from hexagent.core.workflow.events import NodesRevealed
from hexagent.core.workflow.limits import Catalog, Limits, catalog_of
from hexagent.core.workflow.model import (
    CallSpec,
    Join,
    JoinKind,
    NodeKind,
    NodeSpec,
    SegmentRef,
    ToolSpec,
    WorkflowSpec,
)
from hexagent.core.workflow.tracker import Tracker
from hexagent.sim.clusters import named_cluster
from tests.sim.cases import instance

LIMITS = Limits(
    nodes_per_reveal=5, nodes_per_workflow=6, parents_per_node=2, segments_per_prompt=2, payload_bytes_per_reveal=10
)
CALL = CallSpec("m", (SegmentRef("d", 10),), 10, 10)


def call(node_id: str, *after: str, join: Join = Join(), **changes: Any) -> NodeSpec:
    return NodeSpec(node_id, NodeKind.CALL, "worker", after, join, call=CALL._replace(**changes))


def tool(node_id: str, *after: str, spec: ToolSpec = ToolSpec("search")) -> NodeSpec:
    return NodeSpec(node_id, NodeKind.TOOL, "", after, tool=spec)


def output(*nodes: str) -> tuple[SegmentRef, ...]:
    return tuple(SegmentRef("", 0, node) for node in nodes)


@pytest.fixture
def tracker() -> Tracker:
    engine = instance("b0", "h100", Role.BOTH, model="m", precision="fp8", loras=(Lora("sql", 16),), max_loras=1)
    tracker = Tracker(LIMITS, Catalog(("default",), {"m": 1_000}, engines={"m": (engine,)}))
    tracker.handle(StartWorkflow(WorkflowSpec("w", "default", "c")), 0)
    tracker.handle(RevealNodes("w", (call("old"), tool("oldtool"))), 1)
    return tracker


ONE_OF = Join(JoinKind.ANY)
BAD, PRE, TAKEN = errors.InvalidArgument, errors.FailedPrecondition, errors.AlreadyExists
FULL, MISSING = errors.ResourceExhausted, errors.NotFound
REFUSED = [
    ((), BAD, "NO_NODES", "nodes"),
    (tuple(call(f"n{i}") for i in range(6)), BAD, "TOO_MANY_NODES", "nodes"),
    (tuple(call(f"n{i}") for i in range(5)), FULL, "TOO_MANY_NODES", "nodes"),
    ((call("a b"),), BAD, "BAD_ID", "nodes[0].node_id"),
    ((call("a"), call("b", "a", "nobody")), BAD, "UNKNOWN_PARENT", "nodes[1].after[1]"),
    ((call("a", "a"),), BAD, "CYCLE", "nodes[0].after[0]"),
    ((call("x"), call("a", "b"), call("b", "c", "x"), call("c", "a")), BAD, "CYCLE", "nodes[1].after[0]"),
    ((call("a"), call("a", max_tokens=11)), TAKEN, "DUPLICATE_NODE", "nodes[1].node_id"),
    ((call("old", max_tokens=11),), TAKEN, "DUPLICATE_NODE", "nodes[0].node_id"),
    ((call("a", "old", join=Join(JoinKind.K_OF_N, 2)),), BAD, "BAD_JOIN", "nodes[0].join.k"),
    ((call("a", "old", join=Join(JoinKind.K_OF_N, 0)),), BAD, "BAD_JOIN", "nodes[0].join.k"),
    ((call("a", join=Join(JoinKind.K_OF_N, 1)),), BAD, "BAD_JOIN", "nodes[0].join.k"),
    ((call("a", "old", join=Join(JoinKind.ANY, 1)),), BAD, "BAD_JOIN", "nodes[0].join.k"),
    ((call("b", "oldtool", "old"),), BAD, "BAD_PARENTS", "nodes[0].after"),
    ((call("b", "old", "old"),), BAD, "BAD_PARENTS", "nodes[0].after"),
    ((call("b", "a", "b", "c"),), BAD, "TOO_MANY_PARENTS", "nodes[0].after"),
    ((call("a", max_tokens=0),), BAD, "ZERO_TOKENS", "nodes[0].call.max_tokens"),
    ((call("a", max_tokens=-1),), BAD, "NEGATIVE_TOKENS", "nodes[0].call.max_tokens"),
    ((call("a", prompt_tokens=-1),), BAD, "NEGATIVE_TOKENS", "nodes[0].call.prompt_tokens"),
    ((call("a", prompt_tokens=0, segments=()),), BAD, "ZERO_TOKENS", "nodes[0].call.prompt_tokens"),
    ((call("a", max_tokens=2**30),), BAD, "TOO_MANY_TOKENS", "nodes[0].call.max_tokens"),
    ((call("a", expected_output_tokens=-2),), BAD, "NEGATIVE_TOKENS", "nodes[0].call.expected_output_tokens"),
    ((call("a", segments=(SegmentRef("d", -3),)),), BAD, "NEGATIVE_TOKENS", "nodes[0].call.segments[0].tokens"),
    ((call("a", segments=(SegmentRef("d", 1),) * 3),), BAD, "TOO_MANY_SEGMENTS", "nodes[0].call.segments"),
    ((call("a", segments=(SegmentRef("", 3),)),), BAD, "BAD_SEGMENT", "nodes[0].call.segments[0]"),
    ((call("a", "old", segments=(SegmentRef("d", 3, "old"),)),), BAD, "BAD_SEGMENT", "nodes[0].call.segments[0]"),
    ((call("a", segments=output("old")),), BAD, "OUTPUT_NOT_A_PARENT", "nodes[0].call.segments[0].output_of"),
    ((call("a", "oldtool", segments=output("oldtool")),), BAD, "OUTPUT_OF_TOOL", "nodes[0].call.segments[0].output_of"),
    (
        (call("a"), call("b", "a", "old", join=ONE_OF, segments=output("a"))),
        BAD,
        "OUTPUT_NOT_GUARANTEED",
        "nodes[1].call.segments[0].output_of",
    ),
    ((call("a", payload=b"x" * 11),), BAD, "PAYLOAD_TOO_LARGE", "nodes"),
    ((call("a", model=""),), BAD, "BAD_MODEL", "nodes[0].call.model"),
    ((call("a")._replace(tool=ToolSpec("t")),), BAD, "BAD_NODE", "nodes[0].kind"),
    ((call("a")._replace(call=None),), BAD, "BAD_NODE", "nodes[0].kind"),
    ((tool("a", spec=ToolSpec("")),), BAD, "BAD_ID", "nodes[0].tool.name"),
    ((tool("a", spec=ToolSpec("t", -1)),), BAD, "HINT_TOO_LARGE", "nodes[0].tool.expected_us"),
    ((tool("a", spec=ToolSpec("t", 0, 2**60)),), BAD, "BAD_TIMEOUT", "nodes[0].tool.timeout_us"),
    ((call("a")._replace(round=1),), BAD, "BAD_ROUND", "nodes[0].round"),
    ((call("a")._replace(template="t", round=2),), PRE, "BAD_ROUND", "nodes[0].round"),
    ((call("a"), call("b", model="gpt")), MISSING, "UNKNOWN_MODEL", "nodes[1].call.model"),
    ((call("a", prompt_tokens=995),), BAD, "PROMPT_TOO_LARGE", "nodes[0].call.prompt_tokens"),
    ((call("a", min_precision="fp3"),), BAD, "UNKNOWN_PRECISION", "nodes[0].call.hints.min_precision"),
    ((call("a", min_precision="bf16"),), BAD, "PRECISION_NOT_SERVED", "nodes[0].call.hints.min_precision"),
    ((call("a", lora="sql", min_precision="bf16"),), BAD, "PRECISION_NOT_SERVED", "nodes[0].call.hints.min_precision"),
    ((call("a", lora="chess"),), MISSING, "UNKNOWN_LORA", "nodes[0].call.lora"),
]


@pytest.mark.parametrize(("nodes", "error", "reason", "field"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refusals_name_reason_and_field_and_change_nothing(
    tracker: Tracker, nodes: tuple[NodeSpec, ...], error: type[errors.HexagentError], reason: str, field: str
) -> None:
    before = tracker.digest()
    with pytest.raises(error) as refused:
        tracker.handle(RevealNodes("w", nodes, "r"), 2)
    assert type(refused.value) is error
    assert (refused.value.reason, refused.value.field) == (reason, field)
    assert tracker.digest() == before


def test_details_say_what_would_be_right(tracker: Tracker) -> None:
    with pytest.raises(errors.NotFound, match="known: m"):
        tracker.handle(RevealNodes("w", (call("a", model="gpt"),)), 2)
    with pytest.raises(errors.InvalidArgument) as refused:
        tracker.handle(RevealNodes("w", (call("a", prompt_tokens=995),)), 2)
    assert refused.value.details == {"limit": "1000"}
    with pytest.raises(errors.InvalidArgument, match="other: a -> c -> b -> a"):
        tracker.handle(RevealNodes("w", (call("a", "b"), call("b", "c"), call("c", "a"))), 2)


def test_a_call_must_fit_an_instance_of_each_phase() -> None:
    cluster = named_cluster("mini")
    blocks = {Role.PREFILL: 3, Role.DECODE: 5}  # of 32 tokens
    cluster = cluster._replace(instances=tuple(i._replace(kv_blocks=blocks[i.role]) for i in cluster.instances))
    tracker = Tracker(LIMITS, catalog_of(cluster, ["other"]))
    tracker.handle(StartWorkflow(WorkflowSpec("w", "other", "c")), 0)
    model = cluster.models[0]
    tracker.handle(RevealNodes("w", (call("a", model=model, prompt_tokens=96, max_tokens=64),)), 1)
    for tokens, phase in (((97, 1), "prefills"), ((96, 65), "decodes")):
        large = call("b", model=model, prompt_tokens=tokens[0], max_tokens=tokens[1])
        with pytest.raises(errors.InvalidArgument, match=f"fit no instance that {phase} {model}"):
            tracker.handle(RevealNodes("w", (large,)), 2)


def test_what_a_call_needs_must_be_served_from_prompt_to_end_on_instances_large_enough() -> None:
    """An adapter or precise weights for prefill alone are of no use."""
    decode, prefill = named_cluster("mini").instances
    sql = (Lora("sql", 16),)
    half = (prefill._replace(loras=sql), decode._replace(precision="fp8"))
    small = tuple(s._replace(instance_id=f"s{s.role}", loras=sql, kv_blocks=2) for s in (prefill, decode))
    model = prefill.model
    needs: tuple[dict[str, Any], ...] = (
        {"lora": "sql"},
        {"min_precision": "bf16"},
        {"lora": "sql", "min_precision": "bf16"},
    )
    refusals = ("no adapter 'sql'; known: none", "are in fp8 at most, the call wants bf16", "no adapter 'sql'")
    for instances in (half, half + small):
        tracker = Tracker(LIMITS, catalog_of(named_cluster("mini")._replace(instances=instances), ["other"]))
        tracker.handle(StartWorkflow(WorkflowSpec("w", "other", "c")), 0)
        tracker.handle(RevealNodes("w", (call("large", model=model, prompt_tokens=65),)), 1)
        for need, refusal in zip(needs, refusals, strict=True):
            if instances == half:
                with pytest.raises(errors.HexagentError, match=refusal):
                    tracker.handle(RevealNodes("w", (call("a", model=model, max_tokens=1, **need),)), 2)
                continue
            tracker.handle(RevealNodes("w", (call("-".join(need.values()), model=model, max_tokens=1, **need),)), 2)
            with pytest.raises(errors.InvalidArgument, match="as the call needs it; the largest holds 64"):
                tracker.handle(RevealNodes("w", (call("a", model=model, prompt_tokens=65, **need),)), 2)


def test_nodes_come_in_any_order_and_leave_sorted_and_stable(tracker: Tracker) -> None:
    nodes = (call("d", "b", "c"), call("x"), call("c", "a"), call("b", "a"))
    effects = Tracker(Limits(), tracker.catalog)
    effects.handle(StartWorkflow(WorkflowSpec("w", "default", "c")), 0)
    (publish,) = effects.handle(RevealNodes("w", (*nodes, call("a"), call("a"))), 1)
    assert isinstance(publish, Publish)
    assert isinstance(publish.event, NodesRevealed)
    assert [node.node_id for node in publish.event.nodes] == ["x", "a", "c", "b", "d"]


def test_known_nodes_may_be_named_again(tracker: Tracker) -> None:
    assert tracker.handle(RevealNodes("w", (call("old"),)), 2) == ()
    (publish,) = tracker.handle(RevealNodes("w", (call("new", "old"), call("old"))), 2)
    assert isinstance(publish, Publish)
    graph = tracker.history.record("w").graph
    assert [node.node_id for node in graph.nodes] == ["old", "oldtool", "new"]


def test_an_output_may_be_used_where_the_join_waits_for_all(tracker: Tracker) -> None:
    every = Join(JoinKind.K_OF_N, 2)
    tracker.handle(RevealNodes("w", (call("a", segments=(SegmentRef("d", 1),)),)), 2)
    tracker.handle(RevealNodes("w", (call("b", "a", "old", join=every, segments=output("a", "old")),)), 2)
    tracker.handle(RevealNodes("w", (call("c", "a", join=ONE_OF, segments=output("a"), prompt_tokens=0),)), 2)


def test_rounds_follow_each_other(tracker: Tracker) -> None:
    def loop(node_id: str, number: int) -> NodeSpec:
        return call(node_id)._replace(template="think", round=number)

    tracker.handle(RevealNodes("w", (loop("b", 2), loop("a", 1))), 2)
    tracker.handle(RevealNodes("w", (loop("c", 2),)), 3)
    for number in (1, 4):
        with pytest.raises(errors.FailedPrecondition) as refused:
            tracker.handle(RevealNodes("w", (loop("d", number),)), 4)
        assert refused.value.reason == "BAD_ROUND"
        assert refused.value.details["next"] == "3"
    tracker.handle(RevealNodes("w", (loop("d", 3),)), 5)


def test_tools_that_start_by_themselves(tracker: Tracker) -> None:
    now = ToolSpec("search", start_now=True)
    effects = tracker.handle(RevealNodes("w", (tool("t", spec=now), tool("u", "old", spec=now))), 2)
    assert [type(e.event).__name__ for e in effects if isinstance(e, Publish)] == ["NodesRevealed", "ToolStarted"]
    assert tracker.history.record("w").graph.node("t").started_us == 2
    with pytest.raises(errors.FailedPrecondition) as refused:
        tracker.handle(StartTool(CallId("w", "u")), 3)
    assert refused.value.reason == "NODE_NOT_READY"
