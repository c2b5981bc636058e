"""The spans of a workflow, from what the tracker has stored of it; instants are wall time.

Names and attributes are those of OpenTelemetry's conventions for generative AI where they have one, else
`hexagent.*`. Durations in attributes are seconds of model time.
"""

from typing import Final, NamedTuple

from hexagent.core.instance.spec import ClusterSpec, InstanceSpec
from hexagent.core.tracing import TraceContext, span_id_of
from hexagent.core.units import MILLI, US_PER_S
from hexagent.core.workflow.graph import NEVER, Node, WorkflowGraph
from hexagent.core.workflow.model import CallOutcome, FinishReason, NodeStatus, WorkflowStatus
from hexagent.core.workflow.phases import CallPhase, PhaseKind, phases_of
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.spans import LINKS_MAX, Span, SpanKind, Value

PROVIDER: Final = "hexagent"


class WorkflowTrace(NamedTuple):
    """Where a workflow stands in its trace."""

    root: TraceContext  # its own span
    parent_id: int  # the client's span, 0 = none

    def of_node(self, workflow_id: str, node_id: str, *parts: str) -> TraceContext:
        """The span of a node, or of a part of it."""
        return self.root._replace(span_id=span_id_of(workflow_id, node_id, *parts))


class SpanMaker:
    """Makes spans of workflows of one cluster."""

    def __init__(self, clock: ModelClock, cluster: ClusterSpec) -> None:
        self._clock = clock
        self._instances = {instance.instance_id: instance for instance in cluster.instances}

    def of_workflow(self, trace: WorkflowTrace, graph: WorkflowGraph, horizon_us: int) -> Span:
        """The root, of a workflow that has ended."""
        spec = graph.spec
        jct_us = graph.finished_us - graph.started.at_us
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.workflow.name": spec.workflow_class,
            "gen_ai.conversation.id": spec.workflow_id,
            "hexagent.tenant": spec.tenant,
            "hexagent.status": graph.status.name.lower(),
            "hexagent.priority": spec.priority,
            "hexagent.nodes": len(graph.nodes),
            "hexagent.completion_s": jct_us / US_PER_S,
            "hexagent.horizon_s": horizon_us / US_PER_S,
        }
        if horizon_us:
            attributes["hexagent.stretch"] = jct_us / horizon_us
        if spec.slo_scale_milli:
            attributes["hexagent.slo_scale"] = spec.slo_scale_milli / MILLI
        error = ""
        if graph.status is not WorkflowStatus.COMPLETED:
            error = attributes["error.type"] = graph.reason or graph.status.name
        return Span(
            trace.root,
            trace.parent_id,
            True,
            f"invoke_workflow {spec.workflow_class}",
            "internal",
            self._clock.wall_ns_of(graph.started.at_us),
            self._clock.wall_ns_of(graph.finished_us),
            attributes,
            error=error,
        )

    def of_node(self, trace: WorkflowTrace, graph: WorkflowGraph, node: Node) -> list[Span]:
        """A node that has ended, and the phases of a call."""
        if node.spec.tool is not None:
            return [self._tool(trace, graph, node)]
        outcome, call = node.outcome, node.spec.call
        if outcome is None or call is None:
            return []
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": call.model,
            "gen_ai.request.max_tokens": call.max_tokens,
            "gen_ai.usage.input_tokens": outcome.prompt_tokens,
            "gen_ai.usage.output_tokens": outcome.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": outcome.cached_tokens,
            "hexagent.attempt": outcome.attempt,
        }
        if outcome.finish_reason is not FinishReason.NONE:
            attributes["gen_ai.response.finish_reasons"] = (outcome.finish_reason.name.lower(),)
        ready_us = node.revealed_us if node.ready_us == NEVER else node.ready_us
        span = self._node(trace, graph, node, f"chat {call.model}", "client", ready_us, attributes)
        phases = phases_of(ready_us, outcome.times, node.finished_us) if node.ready_us != NEVER else ()
        return [span, *(self._phase(trace, graph, node, phase, outcome) for phase in phases)]

    def _tool(self, trace: WorkflowTrace, graph: WorkflowGraph, node: Node) -> Span:
        name = node.spec.tool.name if node.spec.tool is not None else ""
        attributes: dict[str, Value] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        start_us = next(us for us in (node.started_us, node.ready_us, node.revealed_us) if us != NEVER)
        return self._node(trace, graph, node, f"execute_tool {name}", "internal", start_us, attributes)

    def _node(
        self,
        trace: WorkflowTrace,
        graph: WorkflowGraph,
        node: Node,
        name: str,
        kind: SpanKind,
        start_us: int,
        attributes: dict[str, Value],
    ) -> Span:
        attributes["gen_ai.conversation.id"] = graph.workflow_id
        attributes["hexagent.node"] = node.node_id
        attributes["hexagent.status"] = node.status.name.lower()
        if node.spec.role:
            attributes["hexagent.role"] = node.spec.role
        error = ""
        if node.status is not NodeStatus.SUCCEEDED:
            error = attributes["error.type"] = node.reason or node.status.name
        waited = (graph.nodes[index].node_id for index in node.parents[:LINKS_MAX])
        return Span(
            trace.of_node(graph.workflow_id, node.node_id),
            trace.root.span_id,
            False,
            name,
            kind,
            self._clock.wall_ns_of(start_us),
            self._clock.wall_ns_of(node.finished_us),
            attributes,
            tuple(span_id_of(graph.workflow_id, parent) for parent in waited),
            error,
        )

    def _phase(
        self, trace: WorkflowTrace, graph: WorkflowGraph, node: Node, phase: CallPhase, outcome: CallOutcome
    ) -> Span:
        attributes: dict[str, Value] = {}
        match phase.kind:
            case PhaseKind.PREFILL | PhaseKind.WAIT:
                attributes = self._where(outcome.prefill_instance)
            case PhaseKind.DECODE:
                attributes = self._where(outcome.decode_instance or outcome.prefill_instance)
            case PhaseKind.KV_TRANSFER:
                attributes = {
                    "hexagent.from_instance": outcome.prefill_instance,
                    "hexagent.to_instance": outcome.decode_instance,
                    "hexagent.kv_bytes": outcome.kv_bytes,
                }
        return Span(
            trace.of_node(graph.workflow_id, node.node_id, phase.kind.value),
            span_id_of(graph.workflow_id, node.node_id),
            False,
            phase.kind.value,
            "internal",
            self._clock.wall_ns_of(phase.start_us),
            self._clock.wall_ns_of(phase.end_us),
            attributes,
        )

    def _where(self, instance_id: str) -> dict[str, Value]:
        attributes: dict[str, Value] = {"hexagent.instance": instance_id}
        instance: InstanceSpec | None = self._instances.get(instance_id)
        if instance is not None:
            attributes |= {"hexagent.gpu": instance.gpu_type, "hexagent.gpus": instance.tp}
        return attributes
