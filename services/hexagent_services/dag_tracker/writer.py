"""Commands to stored events: the one place where the tracker's state changes."""

import logging

from hexagent.core.errors import NotFound
from hexagent.core.workflow.commands import Command, Publish, RecordDispatch
from hexagent.core.workflow.events import WorkflowEvent, WorkflowFinished, workflow_of
from hexagent.core.workflow.graph import WorkflowGraph
from hexagent.core.workflow.model import NodeStatus
from hexagent.core.workflow.tracker import Tracker
from hexagent.runtime.clock import Clock
from hexagent.wire.workflow import EventEnvelope
from hexagent_services.dag_tracker.effects import EventLog
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.relay import Relay
from hexagent_services.dag_tracker.trail import Trails
from hexagent_services.dag_tracker.usage import Accounts
from hexagent_services.dag_tracker.views import Update, changed_us, ended_update, node_update

log = logging.getLogger(__name__)


class Writer:
    """Handles commands in the order they come and puts their events on the way; nothing here waits."""

    def __init__(
        self,
        tracker: Tracker,
        trails: Trails,
        events: EventLog,
        relay: Relay,
        accounts: Accounts,
        estimates: Estimates,
        clock: Clock,
    ) -> None:
        self.tracker = tracker
        self.trails = trails
        self.events = events
        self.accounts = accounts
        self._relay = relay
        self._estimates = estimates
        self._clock = clock

    def do(self, command: Command) -> None:
        """Change the state and send its events; errors as `Tracker.handle`, which then has changed nothing.

        Whoever answers a client waits for `events.settled` of the workflow first. Calls that end without an outcome
        need no message of their own: the scheduler sees their events.
        """
        for effect in self.tracker.handle(command, self._clock.now_us()):
            if isinstance(effect, Publish):
                self._write(effect.event)
        if isinstance(command, RecordDispatch):
            self._show_dispatch(command)

    def replay(self, envelope: EventEnvelope, stored_at: int) -> None:
        """Take in a stored event at the start; one whose workflow has lost its beginning is passed over."""
        event = envelope.event
        workflow_id = workflow_of(event)
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
        if graph is not None:
            self.accounts.note(event, graph)

    def graph(self, workflow_id: str) -> WorkflowGraph:
        """The workflow's graph, for reading. `NotFound` UNKNOWN_WORKFLOW."""
        return self.tracker.history.record(workflow_id).graph

    def _find(self, workflow_id: str) -> WorkflowGraph | None:
        return self.graph(workflow_id) if workflow_id in self.tracker.history else None

    def _write(self, event: WorkflowEvent) -> None:
        workflow_id = workflow_of(event)
        graph = self._find(workflow_id)
        trail, touched = self.trails.note(event, graph)
        updates: list[Update] = []
        if graph is not None:
            self.accounts.note(event, graph)
            if self._relay.watched(workflow_id):
                nodes = (graph.nodes[index] for index in touched)
                updates = [node_update(node, trail.sequence, changed_us(node)) for node in nodes]
                if isinstance(event, WorkflowFinished):
                    updates.append(ended_update(graph, trail.sequence, self._estimates.solo(graph)))
        self.events.append(trail, event, updates)

    def _show_dispatch(self, command: RecordDispatch) -> None:
        """No event keeps a dispatch: its update has the place of the last event, which repeats nothing."""
        workflow_id = command.call.workflow_id
        trail = self.trails.find(workflow_id)
        node = self.graph(workflow_id).node(command.call.node_id)
        if trail is not None and self._relay.watched(workflow_id) and node.status is NodeStatus.RUNNING:
            self.events.show(workflow_id, [node_update(node, trail.sequence, node.started_us)])
