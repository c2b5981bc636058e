"""What the digest of a run is made of."""

from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.events import CallFinished, NodesRevealed, ToolFinished, ToolStarted, WorkflowEvent


def mark(value: WorkflowEvent | DecisionRecord) -> bytes:
    """What the digest takes of an event or decision: the rest follows from the script and from earlier marks."""
    match value:
        case DecisionRecord():
            said = (value.policy, *value.ticket.call, value.ticket.attempt, value.at_us, *value.key, *value.chosen)
        case CallFinished(outcome=outcome):
            said = (*outcome.call, outcome.attempt, int(outcome.status), outcome.output_tokens, *outcome.times)
        case NodesRevealed():
            said = (value.workflow_id, *[node.node_id for node in value.nodes], value.at_us)
        case ToolStarted() | ToolFinished():
            said = (*value.node, value.at_us)
        case _:
            said = (value.workflow_id, value.at_us)
    return f"{type(value).__name__}{said}".encode()
