"""The tracker's rules, one by one."""

import pytest

from hexagent.core import errors
from hexagent.core.ids import CallId
from hexagent.core.workflow.commands import (
    CancelCall,
    CancelNode,
    CancelWorkflow,
    ChangeWorkflow,
    Command,
    Effect,
    FinishTool,
    FinishWorkflow,
    Publish,
    Reconcile,
    RecordDispatch,
    RecordOutcome,
    RevealNodes,
    StartTool,
    StartWorkflow,
    Tick,
)
from hexagent.core.workflow.events import CallFinished, ToolFinished, WorkflowEvent, WorkflowFinished
from hexagent.core.workflow.limits import Catalog, Limits
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    CallTimes,
    Hints,
    Join,
    JoinKind,
    NodeKind,
    NodeSpec,
    NodeStatus,
    ToolSpec,
    WorkflowSpec,
    WorkflowStatus,
)
from hexagent.core.workflow.tracker import Tracker

LIMITS = Limits(
    live_workflows=3, finished_workflows=2, requests_per_workflow=3, idle_expiry_us=1_000, tool_timeout_us=500
)
CATALOG = Catalog(("default", "other"), {"m": 1_000})
SPEC = WorkflowSpec("w", "default", "research")
ANY = Join(JoinKind.ANY)


def call(node_id: str, *after: str, join: Join = Join()) -> NodeSpec:
    return NodeSpec(node_id, NodeKind.CALL, "worker", after, join, call=CallSpec("m", (), 10, 10))


def tool(node_id: str, *after: str, timeout_us: int = 0) -> NodeSpec:
    return NodeSpec(node_id, NodeKind.TOOL, "", after, tool=ToolSpec("search", timeout_us=timeout_us))


def outcome(node_id: str, status: NodeStatus = NodeStatus.SUCCEEDED, reason: str = "") -> RecordOutcome:
    times = CallTimes(dispatched_us=3, end_us=9)
    return RecordOutcome(CallOutcome(CallId("w", node_id), 1, status, reason=reason, times=times))


def started(*nodes: NodeSpec) -> Tracker:
    tracker = Tracker(LIMITS, CATALOG)
    tracker.handle(StartWorkflow(SPEC, "start", nodes), 1)
    return tracker


def events(effects: tuple[Effect, ...]) -> list[WorkflowEvent]:
    return [effect.event for effect in effects if isinstance(effect, Publish)]


def ends(effects: tuple[Effect, ...]) -> list[tuple[str, str, str]]:
    """Node, status and reason of every end among the effects, in order."""
    found = []
    for event in events(effects):
        if isinstance(event, CallFinished):
            found.append((event.outcome.call.node_id, event.outcome.status.name, event.outcome.reason))
        elif isinstance(event, ToolFinished):
            found.append((event.node.node_id, event.status.name, event.reason))
        elif isinstance(event, WorkflowFinished):
            found.append(("", event.status.name, event.reason))
    return found


def refusal(tracker: Tracker, command: Command, now_us: int = 10) -> tuple[type[errors.HexagentError], str]:
    """The class and reason the command is refused with, having changed nothing."""
    before = tracker.digest()
    with pytest.raises(errors.HexagentError) as refused:
        tracker.handle(command, now_us)
    assert tracker.digest() == before
    return type(refused.value), refused.value.reason


def status(tracker: Tracker, node_id: str) -> NodeStatus:
    return tracker.history.record("w").graph.node(node_id).status


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        (SPEC._replace(workflow_id="a/b"), errors.InvalidArgument, "BAD_ID"),
        (SPEC._replace(tenant="nobody"), errors.NotFound, "UNKNOWN_TENANT"),
        (SPEC._replace(workflow_class="a b"), errors.InvalidArgument, "BAD_ID"),
        (SPEC._replace(priority=101), errors.InvalidArgument, "BAD_PRIORITY"),
        (SPEC._replace(slo_scale_milli=-1), errors.InvalidArgument, "BAD_SLO_SCALE"),
        (SPEC._replace(deadline_us=-1), errors.InvalidArgument, "BAD_DEADLINE"),
        (SPEC._replace(deadline_us=2**62), errors.InvalidArgument, "BAD_DEADLINE"),
        (SPEC._replace(deadline_us=10), errors.DeadlineExceeded, "DEADLINE_PASSED"),
        (SPEC._replace(hints=Hints(total_calls=-1)), errors.InvalidArgument, "HINT_TOO_LARGE"),
        (SPEC._replace(hints=Hints(total_solo_us=2**62)), errors.InvalidArgument, "HINT_TOO_LARGE"),
        (SPEC._replace(metadata=(("k", "v" * 20_000),)), errors.InvalidArgument, "METADATA_TOO_LARGE"),
    ],
)
def test_bad_starts(spec: WorkflowSpec, error: type[errors.HexagentError], reason: str) -> None:
    assert refusal(Tracker(LIMITS, CATALOG), StartWorkflow(spec)) == (error, reason)


def test_a_start_with_bad_nodes_starts_nothing() -> None:
    tracker = Tracker(LIMITS, CATALOG)
    bad = StartWorkflow(SPEC, "s", (call("a"), call("b", "c")))
    assert refusal(tracker, bad) == (errors.InvalidArgument, "UNKNOWN_PARENT")
    assert "w" not in tracker.history


def test_too_many_live_workflows() -> None:
    tracker = Tracker(LIMITS, CATALOG)
    for i in range(3):
        tracker.handle(StartWorkflow(SPEC._replace(workflow_id=f"w{i}")), i)
    assert refusal(tracker, StartWorkflow(SPEC)) == (errors.ResourceExhausted, "TOO_MANY_WORKFLOWS")
    tracker.handle(FinishWorkflow("w0"), 5)
    assert tracker.handle(StartWorkflow(SPEC), 6)


def test_too_many_live_workflows_of_a_tenant() -> None:
    tracker = Tracker(LIMITS, CATALOG._replace(workflows_max={"default": 1}))
    tracker.handle(StartWorkflow(SPEC._replace(workflow_id="w0")), 0)
    assert refusal(tracker, StartWorkflow(SPEC)) == (errors.ResourceExhausted, "TOO_MANY_TENANT_WORKFLOWS")
    tracker.handle(StartWorkflow(SPEC._replace(workflow_id="w1", tenant="other")), 1)
    tracker.handle(FinishWorkflow("w0"), 5)
    assert tracker.handle(StartWorkflow(SPEC), 6)


VERBS: list[Command] = [
    RevealNodes("w", (call("x"),), "r"),
    StartTool(CallId("w", "t"), "r"),
    FinishTool(CallId("w", "t"), NodeStatus.SUCCEEDED, request_id="r"),
    FinishWorkflow("w", request_id="r"),
    CancelWorkflow("w", request_id="r"),
    CancelNode(CallId("w", "t"), request_id="r"),
    ChangeWorkflow("w", priority=1, request_id="r"),
]


@pytest.mark.parametrize("command", VERBS, ids=lambda command: type(command).__name__)
def test_verbs_of_unknown_and_ended_workflows(command: Command) -> None:
    assert refusal(Tracker(LIMITS, CATALOG), command) == (errors.NotFound, "UNKNOWN_WORKFLOW")
    tracker = started(tool("t"))
    tracker.handle(CancelWorkflow("w"), 5)
    assert refusal(tracker, command) == (errors.FailedPrecondition, "WORKFLOW_FINISHED")


@pytest.mark.parametrize("command", VERBS, ids=lambda command: type(command).__name__)
def test_requests_are_answered_once(command: Command) -> None:
    tracker = started(tool("t"))
    assert tracker.handle(command, 5)
    before = tracker.digest()
    assert tracker.handle(command, 6) == ()
    assert tracker.digest() == before
    for other in VERBS:
        if type(other) is not type(command):
            assert refusal(tracker, other) == (errors.AlreadyExists, "DUPLICATE_REQUEST")


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (RevealNodes("w", (call("x"),), "r"), RevealNodes("w", (call("x"), call("y")), "r")),
        (CancelNode(CallId("w", "t"), "", "r"), CancelNode(CallId("w", "a"), "", "r")),
        (ChangeWorkflow("w", priority=1, request_id="r"), ChangeWorkflow("w", priority=2, request_id="r")),
        (FinishWorkflow("w", request_id="r"), FinishWorkflow("w", WorkflowStatus.FAILED, request_id="r")),
        (CancelWorkflow("w", "why", "r"), CancelWorkflow("w", "because", "r")),
    ],
)
def test_a_request_id_with_other_content(first: Command, other: Command) -> None:
    tracker = started(tool("t"), call("a"))
    tracker.handle(first, 5)
    assert refusal(tracker, other) == (errors.AlreadyExists, "DUPLICATE_REQUEST")


def test_starts_are_answered_once() -> None:
    tracker = started(call("a"))
    again = StartWorkflow(SPEC, "start", (call("a"),))
    assert tracker.handle(again, 5) == ()
    exists = (errors.AlreadyExists, "WORKFLOW_EXISTS")
    duplicate = (errors.AlreadyExists, "DUPLICATE_REQUEST")
    assert refusal(tracker, again._replace(request_id="new")) == exists
    assert refusal(tracker, again._replace(request_id="")) == exists
    assert refusal(tracker, again._replace(spec=SPEC._replace(priority=1))) == duplicate
    assert refusal(tracker, again._replace(nodes=(call("b"),))) == duplicate


def test_a_start_cut_off_before_its_nodes_is_completed() -> None:
    command = StartWorkflow(SPEC, "start", (call("a"),))
    tracker = Tracker(LIMITS, CATALOG)
    first, second = events(Tracker(LIMITS, CATALOG).handle(command, 1))
    tracker.apply(first)
    assert events(tracker.handle(command, 1)) == [second]


def test_requests_are_bounded() -> None:
    tracker = started()
    for i in range(4):
        tracker.handle(ChangeWorkflow("w", priority=i, request_id=f"r{i}"), 5)
    assert list(tracker.history.record("w").requests) == ["r1", "r2", "r3"]


def test_a_call_runs_and_its_child_is_ready() -> None:
    tracker = started(call("a"), call("b", "a"))
    assert tracker.handle(RecordDispatch(CallId("w", "a"), 1, "p0", "d0"), 3) == ()
    assert status(tracker, "a") is NodeStatus.RUNNING
    effects = tracker.handle(outcome("a"), 9)
    assert ends(effects) == [("a", "SUCCEEDED", "")]
    assert status(tracker, "b") is NodeStatus.READY


def test_the_first_outcome_wins() -> None:
    tracker = started(call("a"))
    tracker.handle(outcome("a"), 9)
    assert tracker.handle(outcome("a", NodeStatus.FAILED), 10) == ()
    assert (status(tracker, "a"), tracker.ignored_outcomes) == (NodeStatus.SUCCEEDED, 1)


def test_bad_outcomes() -> None:
    tracker = started(call("a"), call("b", "a"), tool("t"))
    assert refusal(tracker, outcome("t")) == (errors.FailedPrecondition, "NOT_A_CALL")
    assert refusal(tracker, outcome("b")) == (errors.FailedPrecondition, "NODE_NOT_READY")
    assert refusal(tracker, outcome("a", NodeStatus.RUNNING)) == (errors.InvalidArgument, "BAD_STATUS")
    assert refusal(tracker, outcome("z")) == (errors.NotFound, "UNKNOWN_NODE")
    assert ends(tracker.handle(outcome("b", NodeStatus.REFUSED, "FULL"), 9)) == [("b", "REFUSED", "FULL")]


def test_a_failure_reaches_everything_that_depends_on_it() -> None:
    tracker = started(call("a"), call("b", "a"), tool("t", "b"), call("x"), call("c", "a", "x", join=ANY))
    effects = tracker.handle(outcome("a", NodeStatus.FAILED, "ENGINE_DIED"), 9)
    assert ends(effects) == [
        ("a", "FAILED", "ENGINE_DIED"),
        ("b", "FAILED", "PARENT_FAILED"),
        ("t", "FAILED", "PARENT_FAILED"),
    ]
    last = events(effects)[-1]
    assert isinstance(last, ToolFinished)
    assert last.message == "parent a failed: ENGINE_DIED"
    assert not any(isinstance(effect, CancelCall) for effect in effects)  # nothing of it was in the cluster
    assert status(tracker, "c") is NodeStatus.BLOCKED


def test_losers_are_cancelled_in_the_cluster() -> None:
    tracker = started(call("a"), call("b"), call("z"), call("y", "z"), call("c", "a", "b", "y", join=ANY))
    tracker.handle(RecordDispatch(CallId("w", "b"), 2, "p0", "d0"), 4)
    effects = tracker.handle(outcome("a"), 9)
    assert ends(effects)[1:] == [(n, "CANCELLED", "JOIN_MET") for n in ("y", "z", "b")]
    cancelled = [effect.call.node_id for effect in effects if isinstance(effect, CancelCall)]
    assert cancelled == ["z", "b"]  # "y" was blocked
    last = events(effects)[-1]
    assert isinstance(last, CallFinished)
    assert (last.outcome.attempt, last.outcome.times.dispatched_us) == (2, 4)


def test_tool_verbs() -> None:
    tracker = started(call("a"), tool("t"), tool("u", "a"), tool("v"))
    pre = errors.FailedPrecondition
    for command in (StartTool(CallId("w", "a")), FinishTool(CallId("w", "a"), NodeStatus.SUCCEEDED)):
        assert refusal(tracker, command) == (pre, "NOT_A_TOOL")
    for command in (StartTool(CallId("w", "u")), FinishTool(CallId("w", "u"), NodeStatus.SUCCEEDED)):
        assert refusal(tracker, command) == (pre, "NODE_NOT_READY")
    tracker.handle(StartTool(CallId("w", "t"), "1"), 20)
    assert refusal(tracker, StartTool(CallId("w", "t"), "2")) == (pre, "NODE_NOT_READY")
    bad = FinishTool(CallId("w", "t"), NodeStatus.REFUSED)
    assert refusal(tracker, bad) == (errors.InvalidArgument, "BAD_STATUS")
    long = FinishTool(CallId("w", "t"), NodeStatus.FAILED, "x" * 200)
    assert refusal(tracker, long) == (errors.InvalidArgument, "REASON_TOO_LONG")
    tracker.handle(FinishTool(CallId("w", "t"), NodeStatus.SUCCEEDED), 50)
    node = tracker.history.record("w").graph.node("t")
    assert (node.started_us, node.finished_us) == (20, 50)
    assert refusal(tracker, FinishTool(CallId("w", "t"), NodeStatus.FAILED)) == (pre, "NODE_FINISHED")
    tracker.handle(FinishTool(CallId("w", "v"), NodeStatus.FAILED, "OUT"), 60)
    assert status(tracker, "v") is NodeStatus.FAILED


def test_cancelling_a_node() -> None:
    tracker = started(call("a"), call("b", "a"), call("c"))
    effects = tracker.handle(CancelNode(CallId("w", "a"), request_id="r"), 5)
    assert ends(effects) == [("a", "CANCELLED", "NODE_CANCELLED"), ("b", "FAILED", "PARENT_FAILED")]
    assert [effect for effect in effects if isinstance(effect, CancelCall)] == [
        CancelCall(CallId("w", "a"), "NODE_CANCELLED")
    ]
    assert tracker.handle(CancelNode(CallId("w", "a")), 6) == ()
    assert refusal(tracker, CancelNode(CallId("w", "z"))) == (errors.NotFound, "UNKNOWN_NODE")


def test_finishing_cancels_what_is_open() -> None:
    tracker = started(call("a"), tool("t", "a"), call("b"), call("c", "a", "b", join=ANY))
    tracker.handle(outcome("a"), 9)
    effects = tracker.handle(FinishWorkflow("w", WorkflowStatus.FAILED, "gave up", "f"), 10)
    assert ends(effects) == [
        ("c", "CANCELLED", "WORKFLOW_FINISHED"),
        ("t", "CANCELLED", "WORKFLOW_FINISHED"),
        ("", "FAILED", "gave up"),
    ]
    assert refusal(tracker, FinishWorkflow("w"), 11) == (errors.FailedPrecondition, "WORKFLOW_FINISHED")
    assert tracker.handle(outcome("c"), 12) == ()
    bad = FinishWorkflow("w2", WorkflowStatus.CANCELLED)
    tracker.handle(StartWorkflow(SPEC._replace(workflow_id="w2")), 13)
    assert refusal(tracker, bad) == (errors.InvalidArgument, "BAD_STATUS")


def test_a_workflow_whose_nodes_are_done_stays_live() -> None:
    tracker = started(call("a"))
    tracker.handle(outcome("a"), 9)
    assert tracker.history.record("w").graph.status is WorkflowStatus.RUNNING
    assert tracker.handle(RevealNodes("w", (call("b", "a"),)), 10)


def test_changing_terms() -> None:
    tracker = started()
    tracker.handle(ChangeWorkflow("w", priority=5, deadline_us=100, paused=True), 10)
    graph = tracker.history.record("w").graph
    assert (graph.spec.priority, graph.spec.deadline_us, graph.status) == (5, 100, WorkflowStatus.PAUSED)
    assert refusal(tracker, ChangeWorkflow("w", deadline_us=50), 60) == (errors.DeadlineExceeded, "DEADLINE_PASSED")
    assert refusal(tracker, ChangeWorkflow("w", priority=500)) == (errors.InvalidArgument, "BAD_PRIORITY")
    tracker.handle(ChangeWorkflow("w", paused=False), 200)  # the old deadline may have passed
    assert (graph.spec.deadline_us, graph.status) == (100, WorkflowStatus.RUNNING)


def test_tools_time_out_and_take_their_dependents_along() -> None:
    tracker = started(tool("t", timeout_us=100), tool("u"), call("c", "t"))
    tracker.handle(StartTool(CallId("w", "u")), 10)
    tracker.handle(StartTool(CallId("w", "t")), 20)
    assert tracker.handle(Tick(), 119) == ()
    assert ends(tracker.handle(Tick(), 120)) == [("t", "FAILED", "TOOL_TIMEOUT"), ("c", "FAILED", "PARENT_FAILED")]
    assert tracker.handle(Tick(), 509) == ()
    assert ends(tracker.handle(Tick(), 510)) == [("u", "FAILED", "TOOL_TIMEOUT")]


def test_idle_workflows_are_abandoned() -> None:
    tracker = started(call("a"), tool("t", "a"))
    assert tracker.handle(Tick(), 5_000) == ()  # the cluster is late, not the client
    tracker.handle(outcome("a"), 5_500)
    assert tracker.handle(Tick(), 6_499) == ()
    effects = tracker.handle(Tick(), 6_500)
    assert ends(effects) == [("t", "CANCELLED", "WORKFLOW_ABANDONED"), ("", "ABANDONED", "WORKFLOW_ABANDONED")]
    assert tracker.handle(Tick(), 60_000) == ()


def test_a_paused_workflow_is_abandoned_too() -> None:
    tracker = started(call("a"))
    tracker.handle(ChangeWorkflow("w", paused=True), 500)
    assert tracker.handle(Tick(), 1_499) == ()
    assert ends(tracker.handle(Tick(), 1_500))[-1] == ("", "ABANDONED", "WORKFLOW_ABANDONED")


def test_finished_workflows_are_forgotten_oldest_first() -> None:
    tracker = Tracker(LIMITS, CATALOG)
    for i in range(3):
        tracker.handle(StartWorkflow(SPEC._replace(workflow_id=f"w{i}")), i)
    for i in (1, 0, 2):
        tracker.handle(FinishWorkflow(f"w{i}", request_id="f"), 10)
    assert tracker.history.workflow_ids() == ("w0", "w2")
    assert tracker.handle(FinishWorkflow("w0", request_id="f"), 11) == ()
    assert refusal(tracker, FinishWorkflow("w1", request_id="f")) == (errors.NotFound, "UNKNOWN_WORKFLOW")
    assert (tracker.history.live_count, tracker.history.record("w2").graph.live) == (0, False)


def test_events_keep_the_order_of_time() -> None:
    tracker = started()
    tracker.handle(ChangeWorkflow("w", priority=1), 100)
    (event,) = events(tracker.handle(ChangeWorkflow("w", priority=2), 50))
    assert event.at_us == 100
    assert tracker.history.record("w").graph.spec.priority == 2


def test_reconcile_writes_what_a_crash_left_out() -> None:
    nodes = (call("a"), call("b"), call("c", "a", "b", join=ANY), call("d", "a"), call("e", "d"))
    live = started(*nodes)
    (first, *rest) = events(live.handle(outcome("a", NodeStatus.FAILED), 9))
    restarted = started(*nodes)
    restarted.apply(first)
    assert events(restarted.handle(Reconcile(), 9)) == rest
    assert restarted.digest() == live.digest()
    assert restarted.handle(Reconcile(), 9) == ()


def test_describe() -> None:
    tracker = started(call("a"), tool("t"), call("c", "a", "t"), call("x"))
    tracker.handle(StartTool(CallId("w", "t")), 10)
    tracker.handle(FinishTool(CallId("w", "t"), NodeStatus.SUCCEEDED), 40)
    tracker.handle(outcome("x", NodeStatus.FAILED, "WHY"), 50)
    solo = {"a": 7, "c": 100, "x": 10_000, "t": 9_999}
    seen = tracker.describe("w", lambda node: solo[node.node_id])
    assert (seen.horizon_us, seen.critical_path, seen.bottleneck) == (130, ("t", "c"), "c")
    assert (seen.remaining_us, seen.started_us, seen.finished_us, seen.jct_us) == (107, 1, -1, -1)
    assert dict(seen.counts) == {
        NodeStatus.BLOCKED: 1,
        NodeStatus.READY: 1,
        NodeStatus.RUNNING: 0,
        NodeStatus.SUCCEEDED: 1,
        NodeStatus.FAILED: 1,
        NodeStatus.CANCELLED: 0,
        NodeStatus.REFUSED: 0,
    }
    row = seen.nodes[1]
    assert (row.node_id, row.solo_us, row.revealed_us, row.started_us, row.finished_us) == ("t", 30, 1, 10, 40)
    tracker.handle(FinishWorkflow("w"), 61)
    assert tracker.describe("w", lambda node: 1).jct_us == 60
