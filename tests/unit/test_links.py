"""When KV arrives: queues at both ends, and what a further transfer finds there."""

import numpy as np

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import LinkSpec
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.links import Backlog, Receiver, Sender, Transfer
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.events import CallFinished
from hexagent.sim.clusters import named_cluster
from hexagent.sim.fleet import Latency
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World


def send(name: str, sender: Sender, receiver: Receiver, ready_us: int, duration_us: int) -> Transfer:
    ticket = Ticket(CallId("w", name), 1, 1)
    transfer = sender.pending[ticket] = receiver.pending[ticket] = Transfer(ticket, sender, ready_us, duration_us)
    receiver.predict()
    return transfer


def test_transfers_come_in_one_at_a_time_in_the_order_of_their_prompts() -> None:
    receiver = Receiver()
    late, early = (send(name, Sender(1), receiver, ready, 30) for name, ready in (("a", 110), ("b", 100)))
    assert (early.arrives_us, late.arrives_us) == (130, 160)
    assert receiver.backlog == Backlog(160, 60)


def test_a_busy_sender_keeps_what_waits_behind_it_at_the_receiver() -> None:
    """q asked d0 first; d1 asks for q's second prompt and holds its only slot until q is free."""
    q, d0, d1 = Sender(1), Receiver(), Receiver()
    send("a", q, d0, 100, 50)
    second = send("b", q, d1, 110, 50)
    behind = send("c", Sender(1), d1, 120, 10)
    assert (second.asked_us, second.arrives_us) == (110, 200)
    assert (behind.asked_us, behind.arrives_us) == (200, 210)
    assert d1.backlog == Backlog(210, 100)
    assert q.backlog == Backlog(200, 100)


def test_a_sender_of_several_at_a_time_keeps_only_the_next_one_waiting() -> None:
    sender = Sender(2)
    arrivals = [send(name, sender, Receiver(), 100, 50).arrives_us for name in "abc"]
    assert arrivals == [150, 150, 200]


def test_a_backlog_of_what_is_ready_much_later_keeps_nobody_waiting_for_it() -> None:
    receiver = Receiver()
    send("long", Sender(1), receiver, 5_000_000, 400_000)
    assert receiver.backlog.begins_us(100_000) == 500_000, "at most the time of the transfers there are"
    assert receiver.backlog.begins_us(5_100_000) == 5_400_000
    assert receiver.backlog.begins_us(6_000_000) == 6_000_000


def test_predicted_arrivals_of_a_crowded_network_are_close() -> None:
    """A burst over links so slow that most transfers wait, and that differ from what is said of them."""
    predicted: dict[tuple[CallId, int], int] = {}
    wait_us: list[int] = []
    error_us: list[int] = []

    def journal(entry: SchedulerEvent | DecisionRecord, now_us: int) -> None:
        match entry:
            case DecisionRecord(ticket=ticket, chosen=chosen):
                predicted[ticket.call, ticket.attempt] = chosen.transfer_end_us - chosen.prefill_end_us
            case CallFinished(outcome=outcome) if outcome.times.transfer_end_us:
                times, said_us = outcome.times, predicted[outcome.call, outcome.attempt]
                wait_us.append(times.transfer_start_us - times.prefill_end_us)
                error_us.append(said_us - (times.transfer_end_us - times.prefill_end_us))

    cluster = named_cluster("mixed-3", link=LinkSpec(2_000_000_000, 5_000))
    workload = generate("bfcl", Options(workflows=24, rate_per_s=40, seed=1))
    World(cluster, workload, "hexagent", 1, Latency.even(0), journal=journal).run()
    assert np.mean(wait_us) > 50_000
    assert abs(np.mean(error_us)) < 0.2 * np.mean(wait_us)
    assert np.mean(np.abs(error_us)) < 0.4 * np.mean(wait_us)
