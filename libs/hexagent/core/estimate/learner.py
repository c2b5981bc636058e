"""The estimator's state: everything observed goes in, snapshots come out."""

from collections.abc import Sequence
from typing import Final

from hexagent.core.estimate.calibration import Calibration
from hexagent.core.estimate.features import NO_OUTPUTS, CallFeatures, OwnOutputs
from hexagent.core.estimate.lengths import LengthLearner
from hexagent.core.estimate.links import LinkLearner
from hexagent.core.estimate.observations import check_report
from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.estimate.speeds import SpeedLearner
from hexagent.core.estimate.tables import StepTable
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import Telemetry
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.events import (
    CallFinished,
    ToolFinished,
    WorkflowEvent,
    WorkflowFinished,
    WorkflowStarted,
)
from hexagent.core.workflow.graph import NEVER, Node, WorkflowGraph
from hexagent.core.workflow.model import CallOutcome, NodeStatus

# What has not changed is told again, so that who hears nothing knows that it is alone.
REFRESH_US: Final = 10 * US_PER_S


class _OpenWorkflow:
    """What must be remembered of a running workflow to attribute its observations."""

    __slots__ = ("calls", "graph", "own")

    def __init__(self, started: WorkflowStarted) -> None:
        self.graph = WorkflowGraph(started)
        self.calls: dict[str, CallFeatures] = {}  # of open ones as they were when the call became ready
        self.own: dict[str, OwnOutputs] = {}  # by role

    def become_ready(self, node_id: str) -> None:
        """What is known of a call when a scheduler predicts its length."""
        spec = self.graph.node(node_id).spec
        if spec.call is not None:
            own = self.own.get(spec.role, NO_OUTPUTS)
            workflow_class, prompt_tokens = self.graph.spec.workflow_class, spec.call.prompt_tokens
            model = spec.call.model
            self.calls[node_id] = CallFeatures(workflow_class, spec.role, prompt_tokens, spec.round, own, model)


class Learner:
    """Learns from workflow events and telemetry; `snapshot` is what a scheduler evaluates.

    Speeds are told against `tables`, the cluster's own, or the shipped ones. Revisions begin behind `last_revision`,
    the newest one that was ever given out. Outputs of different models are told apart if the cluster has several.
    """

    def __init__(self, tables: Sequence[StepTable] = (), last_revision: int = 0, several_models: bool = False) -> None:
        self._tables = tables
        self._speeds = SpeedLearner()
        self._lengths = LengthLearner(several_models)
        self._links = LinkLearner()
        self._instances: dict[str, InstanceSpec] = {}
        self._open: dict[str, _OpenWorkflow] = {}
        self._revision = last_revision
        self._changed = False
        self._told_us = 0  # of the last snapshot
        self.calibration: Calibration | None = None  # compares what is observed with what was predicted, if wanted

    def describe_instance(self, spec: InstanceSpec) -> None:
        """Samples of an instance count only once its description is known. Raises what `load_table` does."""
        table_of(spec, self._tables)
        self._instances[spec.instance_id] = spec

    def observe_event(self, event: WorkflowEvent) -> None:
        """Learn output lengths of finished calls and run times of finished tools."""
        if isinstance(event, WorkflowStarted):
            self._open[event.spec.workflow_id] = _OpenWorkflow(event)
            return
        if isinstance(event, WorkflowFinished):
            self._open.pop(event.workflow_id, None)
            return
        workflow = self._open.get(event.workflow_id)
        if workflow is None:
            return
        delta = workflow.graph.apply(event)
        for node_id in delta.closed:
            if isinstance(event, CallFinished):
                self._observe_outcome(workflow, event.outcome)
            elif isinstance(event, ToolFinished):
                self._observe_tool(workflow.graph.node(node_id))
        for node_id in delta.ready:
            workflow.become_ready(node_id)

    def _observe_tool(self, tool: Node) -> None:
        ran = tool.status is NodeStatus.SUCCEEDED and NEVER != tool.started_us <= tool.finished_us
        if tool.spec.tool is not None and ran:
            name, duration_us = tool.spec.tool.name, tool.finished_us - tool.started_us
            if self.calibration is not None:
                self.calibration.tool(name, duration_us)
            self._lengths.observe_tool(name, duration_us)
            self._changed = True

    def _observe_outcome(self, workflow: _OpenWorkflow, outcome: CallOutcome) -> None:
        features = workflow.calls.pop(outcome.call.node_id, None)
        if features is not None and outcome.status is NodeStatus.SUCCEEDED and outcome.output_tokens > 0:
            own = workflow.own.get(features.role, NO_OUTPUTS)
            workflow.own[features.role] = own.then(outcome.output_tokens)
            if self.calibration is not None:
                self.calibration.output(features, outcome.output_tokens)
            self._lengths.observe_call(features, outcome.output_tokens)
            self._changed = True

    def observe_telemetry(self, telemetry: Telemetry, now_us: int) -> None:
        """Learn an instance's speed. A report that cannot be true is refused whole, as `check_report` does."""
        check_report(telemetry, now_us)
        spec = self._instances.get(telemetry.instance_id)
        if spec is None or not (telemetry.steps or telemetry.transfers):
            return
        table = table_of(spec, self._tables)
        for sample in telemetry.steps:
            if self.calibration is not None:
                self.calibration.step(spec, sample)
            self._speeds.observe(spec.instance_id, table, sample)
        for transfer in telemetry.transfers:
            source, target = self._instances.get(transfer.from_instance), self._instances.get(transfer.to_instance)
            if source is not None and target is not None:
                if self.calibration is not None:
                    self.calibration.transfer(source, target, transfer)
                self._links.observe(source, target, transfer)
        self._changed = True

    def snapshot(self, now_us: int) -> Snapshot | None:
        """The current parameters, or None when the last ones are young and nothing has changed since."""
        if not self._changed and now_us - self._told_us < REFRESH_US:
            return None
        self._changed = False
        self._told_us = now_us
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
