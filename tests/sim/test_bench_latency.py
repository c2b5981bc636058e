"""Control latencies are measured as what they are: the simulator's own, from the journal of a simulated run."""

from hexagent.cli.bench.latency import measured_latency
from hexagent.cli.program import Trip
from hexagent.core.ids import CallId
from hexagent.core.workflow.events import CallFinished, NodesRevealed
from hexagent.sim.clusters import named_cluster
from hexagent.sim.fleet import Latency
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World
from hexagent.wire.journal import JournalEntry

GIVEN = Latency(4_100, 3_200, 2_300, 1_400, 2_500, 1_600, 700)


def test_latencies_given_to_a_run_are_measured_in_it() -> None:
    journal: list[JournalEntry] = []
    world = World(
        named_cluster("mixed-3"),
        generate("bfcl", Options(workflows=12, seed=3)),
        "hexagent",
        1,
        GIVEN,
        journal=lambda event, now_us: journal.append(JournalEntry(len(journal) + 1, now_us, event)),
    )
    world.run()
    issued_us: dict[CallId, int] = {}
    trips: list[Trip] = []
    for entry in journal:
        if isinstance(entry.event, NodesRevealed):
            for node in entry.event.nodes:
                issued_us[CallId(entry.event.workflow_id, node.node_id)] = entry.event.at_us - GIVEN.request_us
        elif isinstance(entry.event, CallFinished):
            call, received_us = entry.event.outcome.call, entry.event.at_us + GIVEN.update_us
            trips.append(Trip(call, issued_us[call], entry.event.outcome.times.end_us, received_us))
    assert measured_latency(journal, trips) == GIVEN


def test_what_nothing_went_is_left_as_it_is() -> None:
    assert measured_latency([], []) == Latency()
