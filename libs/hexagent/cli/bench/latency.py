"""Control latencies of a live run, from what its scheduler's journal and its clients have recorded."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
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
    outcomes: list[CallOutcome] = []
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
            outcomes.append(event.outcome)
            ways["outcome_us"].append(event.at_us - ended.ended_us)
            ways["update_us"].append(ended.received_us - event.at_us)
    # Schedulers dispatch to idle engines alone, so a prompt waits for nothing but its way there.
    ways["dispatch_us"] = [o.times.prefill_start_us - o.times.dispatched_us for o in outcomes]
    ways["agent_us"] = [us // 2 for us in undisturbed_hand_offs_us(outcomes)]
    return Latency()._replace(**{name: max(round(mean(values)), 0) for name, values in ways.items() if values})


def undisturbed_hand_offs_us(outcomes: Sequence[CallOutcome]) -> list[int]:
    """From prefill end to the transfer's start, of calls whose two instances had no other KV to hand over meanwhile:
    the offer to the decode side and its request for the KV."""
    moved = sorted((o for o in outcomes if o.times.transfer_start_us), key=lambda o: (o.times.prefill_end_us, o.call))
    at: dict[str, list[CallOutcome]] = defaultdict(list)
    for outcome in moved:
        for instance_id in (outcome.prefill_instance, outcome.decode_instance):
            at[instance_id].append(outcome)
    disturbed: set[CallId] = set()
    for here in at.values():
        latest_us = 0  # until when those before had to do with the instance's links
        for outcome, following in zip_longest(here, here[1:]):
            times = outcome.times
            if latest_us > times.prefill_end_us or (
                following is not None and following.times.prefill_end_us < times.transfer_start_us
            ):
                disturbed.add(outcome.call)
            latest_us = max(latest_us, times.decode_start_us)
    return [o.times.transfer_start_us - o.times.prefill_end_us for o in moved if o.call not in disturbed]
