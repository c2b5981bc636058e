"""Control latencies of a live run, from what its scheduler's journal and its clients have recorded."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean

from hexagent.cli.program import Trip
from hexagent.core.ids import CallId
from hexagent.core.scheduling.events import CallProgress, Phase
from hexagent.core.workflow.events import CallFinished, NodesRevealed, WorkflowEvent
from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.fleet import Latency
from hexagent.wire.journal import JournalEntry


def measured_latency(journal: Iterable[JournalEntry], trips: Sequence[Trip]) -> Latency:
    """Mean model time of each way; a way that nothing went has the simulator's own."""
    ways: dict[str, list[int]] = defaultdict(list)
    moved: list[CallOutcome] = []  # with a hand-off
    by_call = {trip.call: trip for trip in trips}
    for _, now_us, event in journal:
        if isinstance(event, CallProgress) and event.phase is Phase.PREFILLED:
            ways["progress_us"].append(now_us - event.at_us)
        if not isinstance(event, WorkflowEvent):
            continue
        ways["event_us"].append(now_us - event.at_us)
        if isinstance(event, NodesRevealed):
            revealed = [by_call.get(CallId(event.workflow_id, node.node_id)) for node in event.nodes]
            ways["request_us"] += [event.at_us - trip.issued_us for trip in revealed if trip is not None]
        elif isinstance(event, CallFinished) and (ended := by_call.get(event.outcome.call)) is not None:
            ways["outcome_us"].append(event.at_us - ended.ended_us)
            ways["update_us"].append(ended.received_us - event.at_us)
            if event.outcome.times.transfer_start_us:
                moved.append(event.outcome)
    # Prefill instances are dispatched to when idle, so that a prompt waits for nothing but its way there.
    ways["dispatch_us"] = [o.times.prefill_start_us - o.times.dispatched_us for o in moved]
    ways["agent_us"] = _agent_ways_us(moved)
    return Latency()._replace(**{name: max(round(mean(values)), 0) for name, values in ways.items() if values})


def _agent_ways_us(moved: Sequence[CallOutcome]) -> list[int]:
    """KV begins to move two ways after prefill ends or, if that is later, the last transfer into the decode instance
    does. Calls that then waited for the prefill instance's link tell nothing."""
    into_us: dict[str, int] = defaultdict(int)  # end of the last transfer, by instance
    out_of_us: dict[str, int] = defaultdict(int)
    ways: list[int] = []
    for outcome in sorted(moved, key=lambda o: (o.times.transfer_start_us, o.call)):
        times, source, target = outcome.times, outcome.prefill_instance, outcome.decode_instance
        if out_of_us[source] < times.transfer_start_us:
            ways.append((times.transfer_start_us - max(times.prefill_end_us, into_us[target])) // 2)
        into_us[target] = out_of_us[source] = times.transfer_end_us
    return ways
