"""When each instance of a simulated run worked on which class of workflows."""

from collections.abc import Iterator
from typing import NamedTuple

from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.world import World


class Span(NamedTuple):
    """One call in one phase on one instance."""

    instance: str
    prefill: bool
    start_us: int
    end_us: int
    workflow_class: str


def outcomes_of(world: World) -> Iterator[tuple[str, CallOutcome]]:
    """With the workflow's class, of the calls of all workflows that the tracker remembers: the last 2,000 to finish."""
    for workflow_id in world.tracker.history.workflow_ids():
        graph = world.tracker.history.record(workflow_id).graph
        for node in graph.nodes:
            if node.outcome is not None and node.outcome.times.prefill_end_us:
                yield graph.spec.workflow_class, node.outcome


def spans_of(world: World) -> list[Span]:
    """Of these calls."""
    spans = []
    for kind, outcome in outcomes_of(world):
        times = outcome.times
        spans.append(Span(outcome.prefill_instance, True, times.prefill_start_us, times.prefill_end_us, kind))
        if times.decode_start_us:
            spans.append(Span(outcome.decode_instance, False, times.decode_start_us, times.end_us, kind))
    return spans
