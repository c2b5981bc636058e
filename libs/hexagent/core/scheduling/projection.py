"""The scheduler's view of workflows: the tracker's graph code, with costs and horizons."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.features import NO_OUTPUTS, CallFeatures, OwnOutputs
from hexagent.core.estimate.remaining import NO_RECORD, RemainingWork, Trail
from hexagent.core.ids import CallId
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.service import Service
from hexagent.core.units import LONGEST_US, PPM
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    WorkflowChanged,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.graph import NEVER, NOTHING, GraphDelta, Node, WorkflowGraph
from hexagent.core.workflow.horizon import Horizon
from hexagent.core.workflow.model import CallOutcome, NodeStatus, WorkflowStatus

_Ints = npt.NDArray[np.int64]


class Horizons:
    """The horizons of running workflows in arrays, so that a queue can look up those of all its calls at once."""

    def __init__(self, counted_ppm: _Ints) -> None:
        self.us = np.zeros(64, dtype=np.int64)  # by place
        self._total_us = np.zeros(64, dtype=np.int64)  # predicted final ones
        self._record = np.zeros(64, dtype=np.int64)  # what they count by
        self._counted_ppm = counted_ppm
        self._free: list[int] = list(range(len(self.us)))

    def take(self) -> int:
        """A place for a workflow's horizon."""
        if not self._free:
            self._free = list(range(len(self.us), 2 * len(self.us)))
            self.us, self._total_us, self._record = (
                np.concatenate([old, np.zeros_like(old)]) for old in (self.us, self._total_us, self._record)
            )
        place = self._free.pop()
        self._record[place] = NO_RECORD
        return place

    def predict(self, place: int, total_us: int, record: int) -> None:
        """How long the horizon will become, by the predictor of this record."""
        self._total_us[place], self._record[place] = total_us, record

    def unrevealed_us(self, places: _Ints) -> _Ints:
        """What to count on of the growth to come."""
        counted_us = self._total_us[places] * self._counted_ppm[self._record[places]] // PPM
        unrevealed_us: _Ints = np.maximum(counted_us - self.us[places], 0)
        return unrevealed_us

    def release(self, place: int) -> None:
        self._free.append(place)


class Workflow:
    """One running workflow: graph, horizon and its calls that have not ended."""

    __slots__ = (
        "admitted",
        "arrival_us",
        "calls",
        "depths",
        "graph",
        "horizon",
        "horizon_us",
        "horizons",
        "own",
        "place",
        "revealed_calls",
        "service",
        "trail",
    )

    def __init__(self, started: WorkflowStarted, horizons: Horizons) -> None:
        self.admitted = False  # some call of it was accepted
        self.arrival_us = started.at_us
        self.graph = WorkflowGraph(started)
        self.horizon = Horizon()
        self.horizon_us = 0  # completion time of the revealed graph had the workflow run alone
        self.horizons, self.place = horizons, horizons.take()  # where horizon and remaining work stand as well
        self.calls: dict[str, Call] = {}
        self.service = Service()
        self.own: dict[str, OwnOutputs] = {}  # by role
        self.depths: list[int] = []  # of each node: calls on the longest chain that ends with it
        self.revealed_calls = 0
        self.trail = Trail(started.spec.workflow_class, started.spec.hints, started.spec.tenant)

    def measure(self) -> None:
        """Take in what has changed in the graph's costs."""
        self.horizon_us = self.horizons.us[self.place] = min(self.horizon.total_us(), LONGEST_US)

    def revealed(self, node: Node, roles: list[str]) -> None:
        """Take in a node's depth; `roles` are those of the levels that this reveal adds."""
        depth = max([self.depths[parent] for parent in node.parents], default=0)
        if node.spec.call is not None:
            depth += 1
            self.revealed_calls += 1
            if depth > self.trail.depth + len(roles):
                roles.append(node.spec.role)
        self.depths.append(depth)

    def generated(self, outcome: CallOutcome) -> None:
        """An output that tells how long the workflow's next ones may be."""
        call = self.calls.get(outcome.call.node_id)
        if call is not None and outcome.status is NodeStatus.SUCCEEDED and outcome.output_tokens > 0:
            self.own[call.role] = self.own_outputs(call.role).then(outcome.output_tokens)

    def own_outputs(self, role: str) -> OwnOutputs:
        return self.own.get(role, NO_OUTPUTS)

    def ready(self) -> tuple[Call, ...]:
        """Calls that wait for nothing but the scheduler, dispatched ones included."""
        graph = self.graph
        return tuple(c for n, c in self.calls.items() if graph.node(n).status is NodeStatus.READY)

    @property
    def paused(self) -> bool:
        return self.graph.status is WorkflowStatus.PAUSED

    @property
    def tenant(self) -> str:
        return self.graph.spec.tenant


class Change(NamedTuple):
    """What an event means to the scheduler."""

    ready: tuple[Call, ...] = ()  # of a changed workflow all that are ready, also those known as such before
    ended: tuple[Call, ...] = ()  # by an outcome, a cancel or a refusal: hold nothing for them any longer


NO_CHANGE: Final = Change()


def solo_cost_us(node: Node, estimator: Estimator, workflow_class: str) -> int:
    """A node's part of the horizon: true lengths or run time once finished, predictions before."""
    if node.spec.call is None:
        if node.status is NodeStatus.SUCCEEDED and node.started_us != NEVER:
            return node.finished_us - node.started_us
        tool = node.spec.tool
        return estimator.tool_us(tool.name, tool.expected_us) if tool is not None else 0
    call, outcome = node.spec.call, node.outcome
    if node.status is NodeStatus.SUCCEEDED and outcome is not None:
        return estimator.solo_us(call.model, outcome.prompt_tokens, outcome.output_tokens, call.needs)
    features = CallFeatures(workflow_class, node.spec.role, call.prompt_tokens, node.spec.round, model=call.model)
    length = estimator.output_tokens(features, call.max_tokens, call.expected_output_tokens)
    return estimator.solo_us(call.model, call.prompt_tokens, length.q50, call.needs)


class Projection:
    """Every running workflow, fed by the tracker's events; a finished one is forgotten."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self.workflows: dict[str, Workflow] = {}
        self.with_terms: dict[str, None] = {}  # of them those with a priority, an SLO scale or a deadline
        self.work = RemainingWork()
        self._horizons = Horizons(self.work.counted_ppm)
        self._priced = 0  # what the estimator had heard when blocked calls were priced last

    def find(self, call_id: CallId) -> Call | None:
        workflow = self.workflows.get(call_id.workflow_id)
        return workflow.calls.get(call_id.node_id) if workflow else None

    def apply(self, event: WorkflowEvent, now_us: int) -> Change:
        """Take in a workflow event; one of a workflow that is not known is ignored."""
        if isinstance(event, WorkflowStarted):
            workflow = self.workflows.get(event.spec.workflow_id)
            if workflow is None:
                workflow = self.workflows[event.spec.workflow_id] = Workflow(event, self._horizons)
            self._note_terms(workflow)
            return NO_CHANGE
        workflow = self.workflows.get(event.workflow_id)
        if workflow is None:
            return NO_CHANGE
        delta = workflow.graph.apply(event)
        roles: list[str] = []  # of levels that are new
        match event:
            case NodesRevealed(nodes=nodes):
                workflow.trail.settle(workflow.horizon_us)
                for spec in nodes:
                    self._reveal(workflow, workflow.graph.node(spec.node_id), roles)
                if workflow.calls:
                    self.work.set_between(workflow.trail, False)
            case CallFinished(outcome=outcome):
                call = workflow.calls.get(outcome.call.node_id)
                if call is not None:
                    workflow.service.add(call.path_us, call.ready_us, outcome.times)
                    workflow.generated(outcome)
                self._closed(workflow, outcome.call.node_id)
            case ToolFinished(node=node):
                self._closed(workflow, node.node_id)
            case WorkflowFinished(status=status):
                self.work.set_between(workflow.trail, False)
                if status is WorkflowStatus.COMPLETED:
                    self.work.completed(workflow.trail, workflow.horizon_us)
                del self.workflows[workflow.graph.workflow_id]
                self.with_terms.pop(workflow.graph.workflow_id, None)
                self._horizons.release(workflow.place)
                return Change(ended=tuple(workflow.calls.values()))
            case WorkflowChanged():
                self._note_terms(workflow)
                return Change(ready=workflow.ready())
        workflow.measure()
        if roles:
            trail = workflow.trail
            self.work.deepened(trail, roles, workflow.horizon_us, workflow.revealed_calls)
            self._horizons.predict(workflow.place, trail.total_us, trail.record)
        if delta is NOTHING:
            return NO_CHANGE
        # What is ready as it is revealed has its prediction.
        return self._change(workflow, delta, now_us, predict=not isinstance(event, NodesRevealed))

    def price_anew(self) -> None:
        """The estimator has learned: calls that were revealed ahead are priced by it, each time it has heard twice as
        much; what becomes ready later is priced as it is revealed."""
        if self._estimator.changes < 2 * self._priced:
            return
        self._priced = self._estimator.changes
        for workflow in self.workflows.values():
            node = workflow.graph.node
            blocked = [call for name, call in workflow.calls.items() if node(name).status is NodeStatus.BLOCKED]
            for call in blocked:
                workflow.horizon.set_cost(call.index, self._price(call))
            if blocked:
                workflow.measure()

    def _note_terms(self, workflow: Workflow) -> None:
        spec = workflow.graph.spec
        if spec.priority or spec.slo_scale_milli or spec.deadline_us:
            self.with_terms[spec.workflow_id] = None
        else:
            self.with_terms.pop(spec.workflow_id, None)

    def _reveal(self, workflow: Workflow, node: Node, roles: list[str]) -> None:
        if node.index < len(workflow.horizon):
            return  # revealed before
        workflow.revealed(node, roles)
        spec = node.spec.call
        if spec is None:
            cost_us = solo_cost_us(node, self._estimator, workflow.graph.spec.workflow_class)
        else:
            call_id = CallId(workflow.graph.workflow_id, node.node_id)
            call = Call(call_id, node.index, workflow, node.spec.role, spec.model, spec.prompt_tokens, spec.max_tokens)
            call.needs, call.cache_salt = spec.needs, spec.cache_salt
            call.round = node.spec.round
            call.expected_output_tokens = spec.expected_output_tokens
            workflow.calls[node.node_id] = call
            cost_us = self._price(call)
        workflow.horizon.add(node.index, node.parents, node.spec.join, cost_us)

    def _price(self, call: Call) -> int:
        """Its part of the horizon, with its length predicted anew."""
        self._predict(call)
        return self._estimator.solo_us(call.model, call.prompt_tokens, call.output_q50, call.needs)

    def _predict(self, call: Call) -> None:
        """What it may generate, by what is known now."""
        oracle, workflow = self._estimator.oracle, call.workflow
        if oracle is not None:
            call.output_q50 = call.output_q90 = call.output_q99 = oracle.output_tokens(call.call_id)
            return
        own = workflow.own_outputs(call.role)
        workflow_class = workflow.graph.spec.workflow_class
        features = CallFeatures(workflow_class, call.role, call.prompt_tokens, call.round, own, call.model)
        length = self._estimator.output_tokens(features, call.max_tokens, call.expected_output_tokens)
        call.output_q50, call.output_q90, call.output_q99 = length

    def _closed(self, workflow: Workflow, node_id: str) -> None:
        node = workflow.graph.find(node_id)
        if node is None or node.open:
            return
        if node.status is NodeStatus.SUCCEEDED:
            cost_us = solo_cost_us(node, self._estimator, workflow.graph.spec.workflow_class)
            workflow.horizon.set_cost(node.index, cost_us)
        else:
            workflow.horizon.exclude(node.index)

    def _change(self, workflow: Workflow, delta: GraphDelta, now_us: int, predict: bool) -> Change:
        calls = workflow.calls
        ended = tuple([calls.pop(node_id) for node_id in delta.closed if node_id in calls])
        if ended and not calls:
            self.work.set_between(workflow.trail, True)
        ready = tuple([calls[node_id] for node_id in delta.ready if node_id in calls])
        for call in ready:
            call.become_ready(now_us)
            call.path_us = workflow.service.path_us
            below_us = workflow.horizon.below_us(call.index) - workflow.horizon.cost_us(call.index)
            call.below_us = min(below_us, LONGEST_US)
            if predict:
                self._predict(call)
        return Change(ready, ended)
