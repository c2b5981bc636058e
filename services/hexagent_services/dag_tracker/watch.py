"""One open WatchWorkflow stream: first what its client has missed, then what happens."""

from collections.abc import AsyncIterator

from hexagent.api.workflow.v1 import workflow_service_pb2
from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.ids import checked_id
from hexagent.core.workflow.graph import WorkflowGraph, is_call
from hexagent.core.workflow.model import NodeStatus
from hexagent.wire.codec import bad
from hexagent_services.dag_tracker.estimates import Estimates
from hexagent_services.dag_tracker.relay import Relay, Watcher, chunks
from hexagent_services.dag_tracker.tokens import TokenPositions, TokenSource
from hexagent_services.dag_tracker.trail import Trail
from hexagent_services.dag_tracker.views import Update, missed_updates
from hexagent_services.dag_tracker.writer import Writer

Response = workflow_service_pb2.WatchWorkflowResponse


class Watches:
    """Opens streams of updates."""

    def __init__(self, writer: Writer, relay: Relay, tokens: TokenSource, estimates: Estimates) -> None:
        self._writer = writer
        self._relay = relay
        self._tokens = tokens
        self._estimates = estimates

    async def watch(self, request: workflow_service_pb2.WatchWorkflowRequest) -> AsyncIterator[Response]:
        """The responses, until the workflow ends. `NotFound`, `ResourceExhausted`, `Unavailable`.

        Updates carry the sequence of the event behind them, several may share it, and a message never splits what
        one event caused. Where the client was away, a node is shown where it is now, without what it passed
        through. Tokens of a call come before its end, which brings those that are missing.
        """
        workflow_id = checked_id(request.workflow_id, "workflow_id")
        graph = self._writer.graph(workflow_id)
        trail = self._writer.trails.find(workflow_id)
        if trail is None or request.after_sequence < 0 or request.after_sequence > trail.sequence:
            raise InvalidArgument(
                f"after_sequence must be 0 to that of the last update; got {request.after_sequence}",
                reason="BAD_SEQUENCE",
                field="after_sequence",
            )
        _check_offsets(request, graph)
        watcher = self._relay.attach(workflow_id, not request.without_tokens)
        try:
            missed = missed_updates(graph, trail, request.after_sequence, self._estimates.solo(graph))
            # The state may be ahead of its stream: nobody sees it before it is stored.
            await self._writer.events.settled(workflow_id)
            async for updates in self._all(request, watcher, graph, trail, missed):
                for chunk in chunks(updates):
                    yield Response(updates=chunk)
                if updates and updates[-1].HasField("ended"):
                    return
        finally:
            self._relay.detach(watcher)

    async def _all(
        self,
        request: workflow_service_pb2.WatchWorkflowRequest,
        watcher: Watcher,
        graph: WorkflowGraph,
        trail: Trail,
        missed: list[Update],
    ) -> AsyncIterator[list[Update]]:
        """What was missed and what comes, in groups as they become known."""
        if not watcher.tokens:
            if missed:
                yield missed
            while True:
                yield await watcher.next()
        offsets = {(entry.call.node_id, entry.choice): entry.offset for entry in request.offsets}
        calls = [node for node in graph.nodes if is_call(node)]
        done = {node.node_id for node in calls if not node.open and trail.changed[node.index] <= request.after_sequence}
        positions = TokenPositions(self._tokens, watcher.workflow_id, offsets, done)
        if any(node.status is not NodeStatus.BLOCKED and node.node_id not in done for node in calls):
            async for update in positions.backlog():
                yield [update]
        if missed:
            yield missed
        while True:
            yield await _with_tokens(await watcher.next(), positions)


async def _with_tokens(updates: list[Update], positions: TokenPositions) -> list[Update]:
    """The updates with every token delta once and in order; the end of a call has its whole output."""
    out: list[Update] = []
    for update in updates:
        if update.HasField("tokens"):
            out += await positions.next(update.tokens)
        else:
            out.append(update)
    return out


def _check_offsets(request: workflow_service_pb2.WatchWorkflowRequest, graph: WorkflowGraph) -> None:
    """`InvalidArgument` (BAD_OFFSET) or `NotFound`: positions that no stream of this workflow can have reached."""
    for i, entry in enumerate(request.offsets):
        path = f"offsets[{i}]"
        if entry.call.workflow_id != graph.workflow_id:
            raise bad("BAD_OFFSET", f"{path}.call.workflow_id", f"must be {graph.workflow_id}")
        if graph.find(entry.call.node_id) is None:
            raise NotFound(
                f"{path}: workflow {graph.workflow_id} has no node {entry.call.node_id[:140]!r}",
                reason="UNKNOWN_NODE",
                field=f"{path}.call.node_id",
            )
        for name, value in (("offset", entry.offset), ("choice", entry.choice)):
            if value < 0:
                raise bad("BAD_OFFSET", f"{path}.{name}", f"cannot be negative; got {value}")
