"""Commands to stored events: the one place where the tracker's state changes."""

import logging
from collections.abc import Mapping
from typing import Final

from hexagent.core.errors import NotFound
from hexagent.core.tracing import carrier_of
from hexagent.core.workflow.commands import Command, Publish, RecordDispatch
from hexagent.core.workflow.events import WorkflowEvent, WorkflowFinished, WorkflowStarted
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.model import NodeStatus
from hexagent.core.workflow.tracker import Tracker
from hexagent.runtime.clock import Clock
from hexagent.wire.workflow import EventEnvelope
from hexagent_services.dag_tracker.effects import EventLog
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.observer import Observer
from hexagent_services.dag_tracker.relay import Relay
from hexagent_services.dag_tracker.retention import Retention
from hexagent_services.dag_tracker.trail import Trail, Trails
from hexagent_services.dag_tracker.usage import Accounts
from hexagent_services.dag_tracker.views import Update, changed_us, ended_update, node_update

log = logging.getLogger(__name__)

NO_TRACE: Final[Mapping[str, str]] = {}


class Writer:
    """Handles commands in the order they come and puts their events on the way; nothing here waits."""

    def __init__(
        self,
        tracker: Tracker,
        trails: Trails,
        events: EventLog,
        relay: Relay,
        accounts: Accounts,
        retention: Retention,
        estimates: Estimates,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.tracker = tracker
        self.trails = trails
        self.events = events
        self.accounts = accounts
        self._retention = retention
        self._relay = relay
        self._estimates = estimates
        self._clock = clock
        self._observer = observer

    def do(self, command: Command, trace_context: Mapping[str, str] = NO_TRACE) -> bool:
        """Change the state and send its events; gives whether there are any.

        Errors as `Tracker.handle`, which then has changed nothing. Whoever answers a client waits for
        `events.settled` of the workflow first. Calls that end without an outcome need no message of their own: the
        scheduler sees their events. `trace_context` is what the client sent along with the start of a workflow.
        """
        effects = self.tracker.handle(command, self._clock.now_us())
        for effect in effects:
            if isinstance(effect, Publish):
                self._write(effect.event, trace_context)
        if isinstance(command, RecordDispatch):
            self._show_dispatch(command)
        return bool(effects)

    def replay(self, envelope: EventEnvelope, stored_at: int, trace_context: Mapping[str, str]) -> None:
        """Take in a stored event at the start; one whose workflow has lost its beginning is passed over.

        `trace_context` is among the headers that it was stored with.
        """
        event = envelope.event
        workflow_id = event.workflow_id
        try:
            self.tracker.apply(event)
        except NotFound as error:
            log.error("event %s of the stream is ignored: %s", envelope.event_id, error)
            return
        graph = self._find(workflow_id)
        trail = self.trails.find(workflow_id)
        if graph is None and trail is None:
            return
        if envelope.sequence != (trail.sequence if trail is not None else 0) + 1:
            log.error("%s: the stream holds event %d out of its turn", workflow_id, envelope.sequence)
        trail, _ = self.trails.note(event, graph)
        trail.sequence = max(trail.sequence, envelope.sequence)
        trail.stored_at = stored_at
        self._retention.note(event, trail, stored_at)
        if isinstance(event, WorkflowStarted):
            self._trace(trail, trace_context)
            self._own_context(trail)
        if graph is not None:
            self.accounts.note(event, graph)

    def graph(self, workflow_id: str) -> WorkflowGraph:
        """The workflow's graph, for reading. `NotFound` UNKNOWN_WORKFLOW."""
        return self.tracker.history.record(workflow_id).graph

    def _find(self, workflow_id: str) -> WorkflowGraph | None:
        return self.graph(workflow_id) if workflow_id in self.tracker.history else None

    def _trace(self, trail: Trail, client: Mapping[str, str]) -> None:
        """The envelope of a workflow's start keeps its client's context, from which a later start knows it too."""
        trail.trace = self._observer.trace_of(trail.workflow_id, client)
        trail.trace_context = dict(client) if trail.trace is not None and trail.trace.parent_id else {}

    def _own_context(self, trail: Trail) -> None:
        """All further events carry the workflow's own: who acts on them makes its spans under that."""
        trail.trace_context = carrier_of(trail.trace.root) if trail.trace is not None else {}

    def _write(self, event: WorkflowEvent, trace_context: Mapping[str, str]) -> None:
        workflow_id = event.workflow_id
        graph = self._find(workflow_id)
        trail, touched = self.trails.note(event, graph)
        self._retention.note(event, trail)
        started = isinstance(event, WorkflowStarted)
        if started:
            self._trace(trail, trace_context)
        updates: list[Update] = []
        if graph is not None:
            self.accounts.note(event, graph)
            self._observer.note(event, graph, trail.trace)
            if self._relay.watched(workflow_id):
                nodes = (graph.nodes[index] for index in touched)
                updates = [node_update(node, trail.sequence, changed_us(node)) for node in nodes]
                if isinstance(event, WorkflowFinished):
                    updates.append(ended_update(graph, trail.sequence, self._estimates.solo(graph)))
        self.events.append(trail, event, updates)
        if started:
            self._own_context(trail)

    def _show_dispatch(self, command: RecordDispatch) -> None:
        """No event keeps a dispatch: its update has the place of the last event, which repeats nothing."""
        workflow_id = command.call.workflow_id
        trail = self.trails.find(workflow_id)
        node = self.graph(workflow_id).node(command.call.node_id)
        if trail is not None and self._relay.watched(workflow_id) and node.status is NodeStatus.RUNNING:
            self.events.show(workflow_id, [node_update(node, trail.sequence, node.started_us)])
