"""Client programs of scripted workflows: what they reveal, and when; no item before it is due.

An item with a tool time shows as two nodes, the tool `tN` and the call `cN` after it; others as the call alone.
"""

from typing import Final, NamedTuple

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.workflow.horizon import Horizon
from hexagent.core.workflow.model import (
    CallSpec,
    Join,
    JoinKind,
    NodeKind,
    NodeSpec,
    NodeStatus,
    SegmentRef,
    ToolSpec,
    WorkflowSpec,
)
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, WorkItem

EVERY_PARENT: Final = Join()


class Freed(NamedTuple):
    """An item whose deps have ended."""

    item: WorkItem
    due_us: int  # its call is revealed then, not before


class ScriptedClient:
    """One workflow's client: fed with ends of calls, says which items they free."""

    def __init__(self, script: ScriptedWorkflow, model: str) -> None:
        self.script = script
        self.failed = False
        self.turns_us = 0  # sum over calls of end minus due
        self._model = model
        self._children: list[list[int]] = [[] for _ in script.items]
        self._missing = [item.join_k or len(item.deps) for item in script.items]  # deps that must still end
        self._due_us = [0] * len(script.items)
        self._rounds: dict[str, int] = {}  # last one revealed of each template
        self._refs: dict[str, SegmentRef] = {}  # segments in prompts so far, by name
        # What later prompts call the output of an item that stands in them.
        self._outputs = {s.output_of: s.name for item in script.items for s in item.segments if s.output_of >= 0}
        self.open = 0  # items freed and not ended
        for item in script.items:
            for dep in item.deps:
                self._children[dep].append(item.index)

    @property
    def spec(self) -> WorkflowSpec:
        return WorkflowSpec(self.script.workflow_id, self.script.tenant, self.script.workflow_class)

    def start(self, now_us: int) -> list[Freed]:
        return [self._free(item, now_us) for item in self.script.items if not item.deps]

    def ended(self, node_id: str, status: NodeStatus, now_us: int) -> list[Freed]:
        """A call has its outcome: the items that waited for no more than that."""
        index = int(node_id[1:])
        self.open -= 1
        self.turns_us += now_us - self._due_us[index]
        if status is not NodeStatus.SUCCEEDED:
            # A branch that lost its join is cancelled and missed by nobody.
            self.failed |= status is not NodeStatus.CANCELLED
            return []
        freed = []
        for child in self._children[index]:
            self._missing[child] -= 1
            if self._missing[child] == 0:
                freed.append(self._free(self.script.items[child], now_us))
        return freed

    def _free(self, item: WorkItem, now_us: int) -> Freed:
        self.open += 1
        due_us = now_us + item.tool_us
        if item.gap_us:
            due_us = max(due_us, self._due_us[item.deps[0]] + item.gap_us)
        self._due_us[item.index] = due_us
        return Freed(item, due_us)

    def tool_node(self, item: WorkItem) -> NodeSpec:
        tool = ToolSpec(self.script.workflow_class)
        return NodeSpec(tool_id(item), NodeKind.TOOL, item.role, _parents(item), _join(item), tool=tool)

    def call_node(self, item: WorkItem) -> NodeSpec:
        """The call; its loop round only where rounds come in order, which parallel branches need not."""
        last = self._rounds.get(item.template)
        in_order = item.round <= 1 if last is None else last <= item.round <= last + 1
        template = item.template if in_order else ""
        if template:
            self._rounds[template] = item.round
        return NodeSpec(
            node_id=call_id(item),
            kind=NodeKind.CALL,
            role=item.role,
            after=(tool_id(item),) if item.tool_us else _parents(item),
            join=EVERY_PARENT if item.tool_us else _join(item),
            call=CallSpec(
                item.target.model or self._model,
                tuple([self._ref(segment) for segment in item.segments]),
                item.prompt_tokens,
                item.max_tokens,
                lora=item.target.lora,
                min_precision=item.target.min_precision,
            ),
            template=template,
            round=item.round if template else 0,
        )

    def _ref(self, segment: Segment) -> SegmentRef:
        ref = self._refs.get(segment.name)
        if ref is None:
            ref = self._refs[segment.name] = SegmentRef(segment.name, segment.tokens)
        return ref

    def tool(self, item: WorkItem) -> CallId:
        return CallId(self.script.workflow_id, tool_id(item))

    def output_name(self, item: WorkItem) -> str:
        """The segment that the item's output is in later prompts, "" if it is in none."""
        return self._outputs.get(item.index, "")

    def item_of(self, call: CallId) -> WorkItem:
        return self.script.items[int(call.node_id[1:])]


def call_id(item: WorkItem) -> str:
    return f"c{item.index}"


def tool_id(item: WorkItem) -> str:
    return f"t{item.index}"


def _parents(item: WorkItem) -> tuple[str, ...]:
    return tuple(sorted([f"c{dep}" for dep in item.deps]))


def _join(item: WorkItem) -> Join:
    return Join(JoinKind.K_OF_N, item.join_k) if 0 < item.join_k < len(item.deps) else EVERY_PARENT


class Solo(NamedTuple):
    """A script alone on the cluster: true lengths, batch 1, no reuse, best pair, tools included."""

    solo_us: int
    tool_us: int  # of tools on its longest path


class ScriptHorizon(NamedTuple):
    """The whole graph of a script with true costs, whatever of it is revealed."""

    horizon: Horizon
    node_of: list[int]  # of each item's call
    tools: set[int]


def horizon_of_script(script: ScriptedWorkflow, estimator: Estimator, model: str) -> ScriptHorizon:
    horizon = Horizon()
    node_of: list[int] = []
    tools: set[int] = set()
    for item in script.items:
        parents, join = tuple(node_of[dep] for dep in item.deps), _join(item)
        if item.tool_us:
            tool = len(horizon)
            tools.add(tool)
            horizon.add(tool, parents, join, item.tool_us)
            parents, join = (tool,), EVERY_PARENT
        node_of.append(len(horizon))
        on, needs = item.target.model or model, item.target.needs
        alone_us = estimator.solo_us(on, item.prompt_tokens, item.output_tokens, needs)
        horizon.add(len(horizon), parents, join, alone_us)
    return ScriptHorizon(horizon, node_of, tools)


def solo_of(script: ScriptedWorkflow, estimator: Estimator, model: str) -> Solo:
    """The frozen horizon. Of a conversation it is the sum of its turns: a person thinks between them."""
    horizon, node_of, tools = horizon_of_script(script, estimator, model)
    if script.conversation:
        tools_us = sum(item.tool_us for item in script.items)
        return Solo(sum(horizon.cost_us(node) for node in node_of) + tools_us, tools_us)
    inner = {dep for item in script.items for dep in item.deps}
    # Ends of inner items that lose a join count for nothing, so only those nobody waits for make the horizon.
    solo_us = max(horizon.finish_us(node_of[i]) for i in range(len(node_of)) if i not in inner)
    return Solo(solo_us, sum(horizon.cost_us(node) for node in horizon.critical_path() if node in tools))
