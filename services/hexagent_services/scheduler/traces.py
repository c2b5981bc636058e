"""Trace contexts of running workflows, for the agents and engines that work on their calls."""

from collections.abc import Mapping

from hexagent.core.ids import CallId
from hexagent.core.tracing import TraceContext, carrier_of, context_from, span_id_of
from hexagent.core.workflow.events import WorkflowEvent, WorkflowFinished, WorkflowStarted


class Traces:
    """Fed with every event; one context a workflow that runs and is traced."""

    def __init__(self) -> None:
        self._of_workflow: dict[str, TraceContext] = {}

    def note(self, event: WorkflowEvent, headers: Mapping[str, str] | None) -> None:
        """Learn the workflow's own context. That of its start is its client's, and no call precedes its reveal."""
        if isinstance(event, WorkflowFinished):
            self._of_workflow.pop(event.workflow_id, None)
        elif headers and not isinstance(event, WorkflowStarted):
            workflow_id = event.workflow_id
            if workflow_id not in self._of_workflow and (context := context_from(headers)) is not None:
                self._of_workflow[workflow_id] = context

    def of(self, call: CallId) -> dict[str, str]:
        """The context of the call's span, which the tracker makes when it has ended; empty where nobody traces it."""
        context = self._of_workflow.get(call.workflow_id)
        if context is None:
            return {}
        return carrier_of(context._replace(span_id=span_id_of(call.workflow_id, call.node_id)))
