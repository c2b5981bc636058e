"""What the tracker measures of workflows, calls and tools that ended; seconds of model time."""

from typing import Final

from hexagent.core.units import MILLI, US_PER_S
from hexagent.core.workflow.graph import NEVER, Node, WorkflowGraph
from hexagent.core.workflow.model import CallOutcome, CallSpec, NodeStatus, WorkflowStatus
from hexagent.core.workflow.phases import phases_of
from hexagent.runtime.metrics import Metrics

MODEL: Final = "gen_ai.request.model"
ERROR: Final = "error.type"
TENANT: Final = "hexagent.tenant"
WORKFLOW: Final = "gen_ai.workflow.name"  # its class
ROLE: Final = "hexagent.role"

# Bounds of buckets: those OpenTelemetry's conventions advise, and powers of two for what they do not name.
REQUEST_S: Final = tuple(0.01 * 2**i for i in range(14))
FIRST_TOKEN_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS: Final = tuple(4.0**i for i in range(14))
WORKFLOW_S: Final = tuple(0.125 * 2**i for i in range(16))
STRETCH: Final = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)


class WorkflowMetrics:
    """All instruments of the tracker."""

    def __init__(self, metrics: Metrics) -> None:
        call = (MODEL, WORKFLOW, ROLE, TENANT, ERROR)
        workflow = (WORKFLOW, TENANT, ERROR)
        self._request = metrics.histogram(
            "gen_ai.server.request.duration", "From a call's readiness to its end.", call, REQUEST_S
        )
        self._first_token = metrics.histogram(
            "gen_ai.server.time_to_first_token", "From a call's readiness to its first token.", call[:-1], FIRST_TOKEN_S
        )
        self._per_token = metrics.histogram(
            "gen_ai.server.time_per_output_token", "Between tokens after the first.", call[:-1], TOKEN_S
        )
        self._tokens = metrics.histogram(
            "gen_ai.client.token.usage", "Tokens of a call.", (MODEL, WORKFLOW, "gen_ai.token.type"), TOKENS, "{token}"
        )
        self._phase = metrics.histogram(
            "hexagent.call.phase.duration", "Phases of a call.", (MODEL, "hexagent.phase"), REQUEST_S
        )
        self._kv_bytes = metrics.counter("hexagent.kv_transfer.size", "KV moved between instances.", (MODEL,), "By")
        self._tool = metrics.histogram(
            "gen_ai.execute_tool.duration", "Runs of a tool.", ("gen_ai.tool.name", WORKFLOW, ERROR), WORKFLOW_S
        )
        self._workflow = metrics.histogram(
            "gen_ai.workflow.duration", "From a workflow's start to its end.", workflow, WORKFLOW_S
        )
        self._stretch = metrics.histogram(
            "hexagent.workflow.stretch", "Completion time over horizon.", (WORKFLOW, TENANT), STRETCH, "1"
        )
        self._late = metrics.counter(
            "hexagent.workflow.slo.violations",
            "Workflows later than asked for.",
            (WORKFLOW, TENANT, "hexagent.slo"),
        )
        self._live = metrics.gauge("hexagent.workflows.live", "Workflows that have not ended.", (), "{workflow}")
        self._dropped = metrics.gauge("hexagent.telemetry.dropped", "Ends without spans and measurements.", (), "{end}")

    def state(self, live: int, dropped: int) -> None:
        """How it stands now."""
        self._live.set(live)
        self._dropped.set(dropped)

    def node_ended(self, graph: WorkflowGraph, node: Node) -> None:
        """A call or a tool."""
        error = "" if node.status is NodeStatus.SUCCEEDED else node.reason or node.status.name
        if node.spec.tool is not None:
            if node.started_us != NEVER:
                took_us = node.finished_us - node.started_us
                self._tool.observe(took_us / US_PER_S, node.spec.tool.name, graph.spec.workflow_class, error)
        elif node.spec.call is not None and node.outcome is not None and node.ready_us != NEVER:
            self._call_ended(graph, node, node.spec.call, node.outcome, error)

    def workflow_ended(self, graph: WorkflowGraph, horizon_us: int) -> None:
        """A workflow, with its horizon."""
        spec = graph.spec
        names = (spec.workflow_class, spec.tenant)
        completed = graph.status is WorkflowStatus.COMPLETED
        error = "" if completed else graph.reason or graph.status.name
        jct_us = graph.finished_us - graph.started.at_us
        self._workflow.observe(jct_us / US_PER_S, *names, error)
        if completed and horizon_us:
            self._stretch.observe(jct_us / horizon_us, *names)
            if spec.slo_scale_milli and jct_us * MILLI > spec.slo_scale_milli * horizon_us:
                self._late.add(1, *names, "scale")
        if completed and 0 < spec.deadline_us < graph.finished_us:
            self._late.add(1, *names, "deadline")

    def _call_ended(self, graph: WorkflowGraph, node: Node, call: CallSpec, outcome: CallOutcome, error: str) -> None:
        names = (call.model, graph.spec.workflow_class, node.spec.role, graph.spec.tenant)
        times = outcome.times
        self._request.observe((node.finished_us - node.ready_us) / US_PER_S, *names, error)
        if times.first_token_us:
            self._first_token.observe(max(times.first_token_us - node.ready_us, 0) / US_PER_S, *names)
            if outcome.output_tokens > 1 and times.end_us > times.first_token_us:
                after_us = (times.end_us - times.first_token_us) / (outcome.output_tokens - 1)
                self._per_token.observe(after_us / US_PER_S, *names)
        for kind, tokens in (("input", outcome.prompt_tokens), ("output", outcome.output_tokens)):
            if tokens:
                self._tokens.observe(tokens, call.model, graph.spec.workflow_class, kind)
        for phase in phases_of(node.ready_us, times, node.finished_us):
            self._phase.observe((phase.end_us - phase.start_us) / US_PER_S, call.model, phase.kind.value)
        if outcome.kv_bytes:
            self._kv_bytes.add(outcome.kv_bytes, call.model)
