"""Random lives of workflows: what must hold after every command, and that events rebuild the same state."""

import hashlib
import os
import pathlib
import random
import subprocess
import sys

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hexagent.core.errors import HexagentError
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
from hexagent.core.workflow.events import WorkflowEvent
from hexagent.core.workflow.graph import NOTHING, WorkflowGraph
from hexagent.core.workflow.limits import Catalog, Limits
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
from hexagent.core.workflow.tracker import Tracker

LIMITS = Limits(finished_workflows=2, requests_per_workflow=6, idle_expiry_us=2_000, tool_timeout_us=60)
CATALOG = Catalog(("default",), {"m": 1_000})
OPEN = (NodeStatus.BLOCKED, NodeStatus.READY, NodeStatus.RUNNING)
Request = CancelNode | ChangeWorkflow | CancelWorkflow | FinishWorkflow
ENDS = (NodeStatus.SUCCEEDED, NodeStatus.SUCCEEDED, NodeStatus.FAILED, NodeStatus.CANCELLED, NodeStatus.REFUSED)


def make_node(node_id: str, parents: tuple[str, ...], kind: int, join: int, keep: bool) -> NodeSpec:
    after = tuple(sorted(parents))
    if join <= len(after) and join > 1:
        joined = Join(JoinKind.K_OF_N, join - 1, keep)
    else:
        joined = Join(JoinKind.ANY if join else JoinKind.ALL, keep_losers=keep)
    if kind == 0:
        return NodeSpec(node_id, NodeKind.TOOL, "", after, joined, tool=ToolSpec("t"))
    if kind == 1:
        return NodeSpec(node_id, NodeKind.TOOL, "", after, joined, tool=ToolSpec("t", 5, 30, start_now=True))
    return NodeSpec(node_id, NodeKind.CALL, "r", after, joined, call=CallSpec("m", (), 5, 5))


class TrackerMachine(RuleBasedStateMachine):
    """Every command goes to two trackers; the second is replaced by a replay of the stored events now and then."""

    workflows: Bundle[str] = Bundle("workflows")
    requests: Bundle[Request] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 0
        self.count = 0
        self.tracker = Tracker(LIMITS, CATALOG)
        self.twin = Tracker(LIMITS, CATALOG)
        self.events: list[WorkflowEvent] = []

    def do(self, command: Command) -> tuple[Effect, ...]:
        """Handle it in both; the effects, or none when it is refused (then nothing may have changed)."""
        self.now_us += 1
        before = self.tracker.digest()
        effects, reason = _answer(self.tracker, command, self.now_us)
        twin_effects, twin_reason = _answer(self.twin, command, self.now_us)
        assert reason == twin_reason
        if reason:
            assert self.tracker.digest() == before
            return ()
        assert _without_dispatch(effects) == _without_dispatch(twin_effects)
        published = [effect.event for effect in effects if isinstance(effect, Publish)]
        self.events += published
        for event in published:
            before = self.tracker.digest()
            self.tracker.apply(event)
            assert self.tracker.digest() == before
        return effects

    @rule(target=workflows, data=st.data())
    def start(self, data: st.DataObject) -> str:
        self.count += 1
        workflow_id = f"w{self.count}"
        nodes = self.draw_nodes([], data)
        self.do(StartWorkflow(WorkflowSpec(workflow_id, "default", "c"), f"s{self.count}", nodes))
        return workflow_id

    @rule(workflow_id=workflows, data=st.data())
    def reveal(self, workflow_id: str, data: st.DataObject) -> None:
        known = [n.node_id for n in self.graph(workflow_id).nodes] if workflow_id in self.tracker.history else []
        self.do(RevealNodes(workflow_id, self.draw_nodes(known, data)))

    def draw_nodes(self, known: list[str], data: st.DataObject) -> tuple[NodeSpec, ...]:
        """Up to six nodes over any revealed before, in any order."""
        new: list[NodeSpec] = []
        self.count += 1
        for i in range(data.draw(st.integers(1, 6))):
            parents = data.draw(st.lists(st.sampled_from(known), unique=True, max_size=4)) if known else []
            shape = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 4), st.sampled_from((False, False, True))))
            new.append(make_node(f"n{self.count}-{i}", tuple(parents), *shape))
            known.append(new[-1].node_id)
        return tuple(data.draw(st.permutations(new)))

    @rule(data=st.data(), status=st.sampled_from((*ENDS, *ENDS[:1] * 4)))
    def progress(self, data: st.DataObject, status: NodeStatus) -> None:
        """One of the nodes that may run ends."""
        node = self.draw_node(data, OPEN[1:])
        if node is None:
            return
        if self.graph(node.workflow_id).node(node.node_id).spec.kind is NodeKind.CALL:
            assert self.do(RecordOutcome(CallOutcome(node, 1, status, reason="WHY" * (status is not ENDS[0]))))
        else:
            self.do(FinishTool(node, status))

    @rule(data=st.data(), attempt=st.integers(1, 3))
    def dispatch(self, data: st.DataObject, attempt: int) -> None:
        node = self.draw_node(data)
        if node is not None:
            self.do(RecordDispatch(node, attempt, "p", "d"))

    @rule(data=st.data(), status=st.sampled_from(ENDS))
    def outcome(self, data: st.DataObject, status: NodeStatus) -> None:
        node = self.draw_node(data)
        if node is not None:
            self.do(RecordOutcome(CallOutcome(node, 1, status, reason="" if status is NodeStatus.SUCCEEDED else "WHY")))

    @rule(data=st.data())
    def start_tool(self, data: st.DataObject) -> None:
        node = self.draw_node(data)
        if node is not None:
            self.do(StartTool(node))

    @rule(data=st.data(), status=st.sampled_from((NodeStatus.SUCCEEDED, NodeStatus.FAILED)))
    def finish_tool(self, data: st.DataObject, status: NodeStatus) -> None:
        node = self.draw_node(data)
        if node is not None:
            self.do(FinishTool(node, status))

    @rule(target=requests, data=st.data())
    def cancel_node(self, data: st.DataObject) -> Request | MultipleResults[Request]:
        node = self.draw_node(data)
        if node is None:
            return multiple()
        return self.request(CancelNode(node, request_id=self.request_id()))

    @rule(target=requests, workflow_id=workflows, priority=st.integers(-101, 101), paused=st.booleans())
    def change(self, workflow_id: str, priority: int, paused: bool) -> Request:
        return self.request(ChangeWorkflow(workflow_id, priority, paused=paused, request_id=self.request_id()))

    @rule(target=requests, workflow_id=consumes(workflows), way=st.integers(0, 2))
    def end(self, workflow_id: str, way: int) -> Request:
        command: Request = CancelWorkflow(workflow_id, request_id=self.request_id())
        if way:
            status = WorkflowStatus.COMPLETED if way == 1 else WorkflowStatus.FAILED
            command = FinishWorkflow(workflow_id, status, request_id=self.request_id())
        self.request(command)
        if workflow_id in self.tracker.history:
            assert self.graph(workflow_id).open_count == 0
        return command

    @rule(command=requests)
    def repeat(self, command: Request) -> None:
        """Answered as before unless the request or its workflow is forgotten; never an effect twice if kept."""
        workflow_id = command.node.workflow_id if isinstance(command, CancelNode) else command.workflow_id
        if workflow_id not in self.tracker.history:
            return
        kept = command.request_id in self.tracker.history.record(workflow_id).requests
        effects = self.do(command)
        assert not (kept and effects)

    @rule(wait_us=st.integers(1, 300))
    def tick(self, wait_us: int) -> None:
        self.now_us += wait_us
        self.do(Tick())
        assert self.tracker.handle(Tick(), self.now_us) == ()

    @rule()
    def restart(self) -> None:
        """Stored events make the same state; then there is nothing left to write."""
        self.twin = Tracker(LIMITS, CATALOG)
        for event in self.events:
            self.twin.apply(event)
        assert self.twin.digest() == self.tracker.digest()
        assert self.twin.handle(Reconcile(), self.now_us) == ()

    @invariant()
    def graphs_are_right(self) -> None:
        for workflow_id in self.tracker.history.workflow_ids():
            check(self.graph(workflow_id))

    def graph(self, workflow_id: str) -> WorkflowGraph:
        return self.tracker.history.record(workflow_id).graph

    def draw_node(self, data: st.DataObject, statuses: tuple[NodeStatus, ...] = tuple(NodeStatus)) -> CallId | None:
        """A node of a remembered workflow in one of the statuses, None if there is none."""
        found = [
            CallId(workflow_id, node.node_id)
            for workflow_id in self.tracker.history.workflow_ids()
            for node in self.graph(workflow_id).nodes
            if node.status in statuses and self.graph(workflow_id).live
        ]
        return data.draw(st.sampled_from(found)) if found else None

    def request(self, command: Request) -> Request:
        self.do(command)
        return command

    def request_id(self) -> str:
        self.count += 1
        return f"r{self.count}"


def check(graph: WorkflowGraph) -> None:
    """Joins decide who waits, nothing that must follow is missing, counts are counts."""
    statuses = [node.status for node in graph.nodes]
    assert graph.counts[1:] == [statuses.count(status) for status in NodeStatus]
    if not graph.live:
        assert graph.open_count == 0
        return
    assert graph.pending() == NOTHING
    for node in graph.nodes:
        parents = [statuses[index] for index in node.parents]
        succeeded = parents.count(NodeStatus.SUCCEEDED)
        assert all(parent < node.index for parent in node.parents)
        assert node.succeeded == succeeded
        assert node.lost == sum(status not in OPEN for status in parents) - succeeded
        needed = node.spec.join.needed(len(parents))
        if node.status is NodeStatus.BLOCKED:
            assert succeeded < needed <= len(parents) - node.lost
        elif node.status in (NodeStatus.READY, NodeStatus.RUNNING, NodeStatus.SUCCEEDED):
            assert succeeded >= needed
        if node.reason == "PARENT_FAILED":
            assert len(parents) - node.lost < needed
        if node.reason == "JOIN_MET":
            assert node.status is NodeStatus.CANCELLED
            assert node.children  # a result nobody waits for yet is not cancelled


def _answer(tracker: Tracker, command: Command, now_us: int) -> tuple[tuple[Effect, ...], str]:
    """The effects, or the class and reason of the refusal."""
    try:
        return tracker.handle(command, now_us), ""
    except HexagentError as refusal:
        return (), f"{type(refusal).__name__} {refusal.reason}"


def _without_dispatch(effects: tuple[Effect, ...]) -> list[object]:
    """A replayed tracker has forgotten who ran where; all else about its effects is the same."""
    shown: list[object] = []
    for effect in effects:
        if isinstance(effect, CancelCall):
            shown.append(effect)
            continue
        outcome = getattr(effect.event, "outcome", None)
        if isinstance(outcome, CallOutcome) and outcome.reason not in ("", "WHY"):
            shown.append((outcome.call, outcome.status, outcome.reason, outcome.message))
        else:
            shown.append(effect)
    return shown


TrackerMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
TestTracker = TrackerMachine.TestCase


def scripted_run(seed: int, steps: int = 400) -> str:
    """Digest of effects and state after a random script; refusals count by their reason."""
    draw = random.Random(seed)
    tracker = Tracker(LIMITS, CATALOG)
    said = hashlib.sha256()
    ids: list[CallId] = []
    for step in range(steps):
        workflow_id = f"w{step // 60}"
        known = [node.node_id for node in ids if node.workflow_id == workflow_id]
        node = draw.choice(ids) if ids else CallId(workflow_id, "none")
        fresh = tuple(
            make_node(f"n{step}-{i}", tuple(draw.sample(known, min(len(known), i))), *draw.choice(SHAPES))
            for i in range(3)
        )
        command: Command = draw.choice(
            (
                RevealNodes(workflow_id, fresh, f"r{step}"),
                RecordOutcome(CallOutcome(node, 1, draw.choice(ENDS))),
                RecordDispatch(node, 1, "p", "d"),
                StartTool(node),
                CancelNode(node, request_id=f"r{step}"),
                Tick(),
            )
        )
        if step % 60 == 0:
            command = StartWorkflow(WorkflowSpec(workflow_id, "default", "c"), f"s{step}")
        elif step % 60 == 59:
            command = FinishWorkflow(workflow_id, request_id=f"f{step}")
        try:
            effects = tracker.handle(command, step * 5)
        except HexagentError as refusal:
            said.update(refusal.reason.encode())
            continue
        if isinstance(command, RevealNodes):
            ids += [CallId(workflow_id, node.node_id) for node in fresh]
        said.update(repr(effects).encode())
    return said.hexdigest() + tracker.digest()


SHAPES = [(kind, join, keep) for kind in range(4) for join in range(4) for keep in (False, True)]


def test_the_digest_does_not_depend_on_the_hash_seed() -> None:
    root = pathlib.Path(__file__).parents[2]
    program = "from tests.property.test_tracker import scripted_run; print(scripted_run(7))"
    digests = {scripted_run(7)}
    for seed in ("0", "1", "2"):
        environment = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=os.pathsep.join((str(root), str(root / "libs"))))
        done = subprocess.run(
            [sys.executable, "-c", program], check=True, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
