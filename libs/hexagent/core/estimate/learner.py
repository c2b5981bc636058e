"""The estimator's state: everything observed goes in, snapshots come out."""

from hexagent.core.estimate.features import NO_OUTPUTS, CallFeatures, OwnOutputs
from hexagent.core.estimate.lengths import LengthLearner
from hexagent.core.estimate.links import LinkLearner
from hexagent.core.estimate.observations import check_report
from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.estimate.speeds import SpeedLearner
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import Telemetry
from hexagent.core.workflow.events import (
    CallFinished,
    NodesRevealed,
    ToolFinished,
    ToolStarted,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.model import CallOutcome, NodeStatus


class _OpenWorkflow:
    """What must be remembered of a running workflow to attribute its observations."""

    __slots__ = ("calls", "own", "tool_started_us", "tools", "workflow_class")

    def __init__(self, workflow_class: str) -> None:
        self.workflow_class = workflow_class
        self.calls: dict[str, CallFeatures] = {}  # open ones, as they were revealed
        self.own: dict[str, OwnOutputs] = {}  # by role
        self.tools: dict[str, str] = {}
        self.tool_started_us: dict[str, int] = {}


class Learner:
    """Learns from workflow events and telemetry; `snapshot` is what a scheduler evaluates.

    Revisions begin behind `last_revision`, the newest one that was ever given out.
    """

    def __init__(self, last_revision: int = 0) -> None:
        self._speeds = SpeedLearner()
        self._lengths = LengthLearner()
        self._links = LinkLearner()
        self._instances: dict[str, InstanceSpec] = {}
        self._open: dict[str, _OpenWorkflow] = {}
        self._revision = last_revision
        self._changed = False

    def describe_instance(self, spec: InstanceSpec) -> None:
        """Samples of an instance count only once its description is known. Raises what `load_table` does."""
        load_table(spec.gpu_type, spec.model, spec.tp, spec.precision)
        self._instances[spec.instance_id] = spec

    def observe_event(self, event: WorkflowEvent) -> None:
        """Learn output lengths of finished calls and run times of finished tools."""
        match event:
            case WorkflowStarted(spec=spec):
                self._open[spec.workflow_id] = _OpenWorkflow(spec.workflow_class)
            case WorkflowFinished(workflow_id=workflow_id):
                self._open.pop(workflow_id, None)
            case NodesRevealed(workflow_id=workflow_id, nodes=nodes):
                workflow = self._open.get(workflow_id)
                if workflow is not None:
                    for node in nodes:
                        if node.call is not None:
                            workflow.calls[node.node_id] = CallFeatures(
                                workflow.workflow_class,
                                node.role,
                                node.call.prompt_tokens,
                                node.round,
                                workflow.own.get(node.role, NO_OUTPUTS),
                            )
                        if node.tool is not None:
                            workflow.tools[node.node_id] = node.tool.name
            case ToolStarted(node=node, at_us=at_us):
                workflow = self._open.get(node.workflow_id)
                if workflow is not None:
                    workflow.tool_started_us[node.node_id] = at_us
            case ToolFinished():
                self._observe_tool(event)
            case CallFinished(outcome=outcome):
                self._observe_outcome(outcome)

    def _observe_tool(self, event: ToolFinished) -> None:
        workflow = self._open.get(event.node.workflow_id)
        if workflow is None:
            return
        name = workflow.tools.pop(event.node.node_id, "")
        started_us = workflow.tool_started_us.pop(event.node.node_id, None)
        if started_us is not None and event.at_us >= started_us and event.status is NodeStatus.SUCCEEDED:
            self._lengths.observe_tool(name, event.at_us - started_us)
            self._changed = True

    def _observe_outcome(self, outcome: CallOutcome) -> None:
        workflow = self._open.get(outcome.call.workflow_id)
        if workflow is None:
            return
        features = workflow.calls.pop(outcome.call.node_id, None)
        if features is not None and outcome.status is NodeStatus.SUCCEEDED and outcome.output_tokens > 0:
            own = workflow.own.get(features.role, NO_OUTPUTS)
            workflow.own[features.role] = own.then(outcome.output_tokens)
            self._lengths.observe_call(features, outcome.output_tokens)
            self._changed = True

    def observe_telemetry(self, telemetry: Telemetry, now_us: int) -> None:
        """Learn an instance's speed. A report that cannot be true is refused whole, as `check_report` does."""
        check_report(telemetry, now_us)
        spec = self._instances.get(telemetry.instance_id)
        if spec is None or not (telemetry.steps or telemetry.transfers):
            return
        table = load_table(spec.gpu_type, spec.model, spec.tp, spec.precision)
        for sample in telemetry.steps:
            self._speeds.observe(spec.instance_id, table, sample)
        for transfer in telemetry.transfers:
            source, target = self._instances.get(transfer.from_instance), self._instances.get(transfer.to_instance)
            if source is not None and target is not None:
                self._links.observe(source, target, transfer)
        self._changed = True

    def snapshot(self, now_us: int) -> Snapshot | None:
        """The current parameters, or None when nothing changed since the last call."""
        if not self._changed:
            return None
        self._changed = False
        self._revision += 1
        return Snapshot(
            self._revision,
            now_us,
            self._speeds.factors(),
            self._lengths.lengths(),
            self._lengths.tools(),
            self._links.pairs(),
            self._links.kinds(),
        )
