"""The client program of one scripted workflow, as an agent would be written: it reveals each call when it is due."""

import asyncio
from typing import Final, NamedTuple

import hexagent.client
from hexagent.client import CallResult, Segment
from hexagent.core.errors import Cancelled, HexagentError
from hexagent.core.ids import CallId
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.attribution import NodeTimeline, Spent, spent_on
from hexagent.core.workflow.model import NodeKind, NodeStatus, WorkflowStatus
from hexagent.runtime.clock import Clock
from hexagent.sim.clients import Freed, ScriptedClient, call_id, tool_id
from hexagent.sim.metrics import WorkflowRow
from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem

OUTPUT_TOKENS: Final = "emulated.output_tokens"  # the engine option that carries what only the engine may know
NOT_STARTED: Final = "not_started"


class Trip(NamedTuple):
    """A call as its client saw it, model time."""

    call: CallId
    issued_us: int
    ended_us: int  # at the engine
    received_us: int


class Tally:
    """Counts of a run, for its progress display and its summary."""

    def __init__(self) -> None:
        self.workflows_started = 0
        self.workflows_ended = 0
        self.calls_started = 0
        self.calls_ended = 0
        self.trips: list[Trip] = []  # of the calls that succeeded
        self.paths: list[tuple[int, int]] = []  # of each completed workflow: calls on its critical path, horizon
        self.spent: dict[str, Spent] = {}  # by workflow: its completion time in parts
        self.errors: list[str] = []


class Ended(NamedTuple):
    """What the tracker says of a workflow at its end."""

    status: str
    horizon_us: int
    tool_us: int  # of the tools on its critical path
    timelines: tuple[NodeTimeline, ...] = ()


class Program:
    """One run of one script. `run` never raises for what happens to the workflow: the row says it."""

    def __init__(
        self,
        client: hexagent.client.Client,
        script: ScriptedWorkflow,
        clock: Clock,
        base_us: int,
        tally: Tally,
        slo_scale: float | None = None,
    ) -> None:
        self._client = client
        self._script = script
        self._clock = clock
        self._base_us = base_us  # model time at which the workload begins
        self._tally = tally
        self._slo_scale = slo_scale
        self._state = ScriptedClient(script, "")
        self._results: dict[int, CallResult] = {}
        self._tasks: asyncio.TaskGroup

    async def run(self) -> WorkflowRow:
        arrival_us = self._base_us + self._script.arrival_us
        await self._clock.sleep_until(arrival_us)
        self._tally.workflows_started += 1
        ended, end_us = Ended(NOT_STARTED, 0, 0), arrival_us
        try:
            workflow = self._client.workflow(
                self._script.workflow_class,
                workflow_id=self._script.workflow_id,
                tenant=self._script.tenant,
                slo_scale=self._slo_scale,
            )
            async with workflow as wf:
                async with asyncio.TaskGroup() as self._tasks:
                    self._begin(self._state.start(self._clock.now_us()), wf)
                end_us = self._clock.now_us()
                ended = await self._end(wf)
        except* HexagentError as group:
            self._tally.errors += [f"{self._script.workflow_id}: {error}" for error in group.exceptions]
        self._tally.workflows_ended += 1
        completed = ended.status == WorkflowStatus.COMPLETED.name.lower() and not self._state.failed
        conversation = self._script.conversation
        jct_us = self._state.turns_us if conversation else end_us - arrival_us
        if ended.timelines:
            spent = spent_on(ended.timelines, jct_us, with_tools=not conversation)
            self._tally.spent[self._script.workflow_id] = spent
        return WorkflowRow(
            workflow=self._script.workflow_id,
            tenant=self._script.tenant,
            workflow_class=self._script.workflow_class,
            calls=len(self._script.items),
            status=ended.status,
            completed=completed,
            arrival_us=self._script.arrival_us,
            jct_us=jct_us,
            horizon_us=ended.horizon_us,
            solo_us=ended.horizon_us,
            tool_us=ended.tool_us,
        )

    def _begin(self, freed: list[Freed], wf: hexagent.client.Workflow) -> None:
        for item, due_us in freed:
            self._tasks.create_task(self._item(item, due_us, wf))

    async def _item(self, item: WorkItem, due_us: int, wf: hexagent.client.Workflow) -> None:
        status = NodeStatus.SUCCEEDED
        try:
            if item.tool_us:
                await self._tool(item, wf)
            await self._clock.sleep_until(due_us)
            await self._call(item, wf)
        except Cancelled:
            status = NodeStatus.CANCELLED  # a branch that its join no longer needs
        except HexagentError as error:
            status = NodeStatus.FAILED
            self._tally.errors.append(str(error))
        self._begin(self._state.ended(call_id(item), status, self._clock.now_us()), wf)

    async def _tool(self, item: WorkItem, wf: hexagent.client.Workflow) -> None:
        """A tool runs outside the cluster for its whole scripted time, whatever it took to say that it starts."""
        node = self._state.tool_node(item)
        async with wf.tool(item.role or "tool", node_id=tool_id(item), after=node.after, join=node.join):
            await self._clock.sleep_until(self._clock.now_us() + item.tool_us)

    async def _call(self, item: WorkItem, wf: hexagent.client.Workflow) -> None:
        node = self._state.call_node(item)
        prompt: list[Segment | CallResult] = []
        for segment in item.segments:
            if segment.output_of >= 0:
                prompt.append(self._results[segment.output_of])
            else:
                prompt.append(Segment(text=segment.name, role="user", tokens=segment.tokens))
        self._tally.calls_started += 1
        issued_us = self._clock.now_us()
        result = await wf.call(
            prompt,
            node_id=node.node_id,
            role=item.role,
            max_tokens=item.max_tokens,
            after=node.after,
            join=node.join,
            template=node.template,
            round=node.round,
            engine_options={OUTPUT_TOKENS: str(item.output_tokens)},
            model=item.target.model,
            lora=item.target.lora,
            min_precision=item.target.min_precision,
        )
        self._tally.calls_ended += 1
        self._tally.trips.append(Trip(result.call, issued_us, result.times.end_us, self._clock.now_us()))
        self._results[item.index] = result

    async def _end(self, wf: hexagent.client.Workflow) -> Ended:
        """Finish the workflow and read what the tracker makes of it: its graph with true lengths and tool times."""
        outcome = await wf.finish(failed=self._state.failed, reason="CALL_FAILED" if self._state.failed else "")
        described = await wf.describe()
        tools = [node for node in described.nodes if node.critical and node.kind is NodeKind.TOOL]
        horizon_us = round(outcome.horizon_s * US_PER_S)
        if outcome.status is WorkflowStatus.COMPLETED and horizon_us:
            self._tally.paths.append((len(described.critical_path) - len(tools), horizon_us))
        return Ended(
            outcome.status.name.lower(),
            horizon_us,
            sum(round(node.solo_s * US_PER_S) for node in tools),
            tuple(node.timeline for node in described.nodes),
        )
