"""The scheduler core, fed event by event."""

import pytest

from hexagent.core.errors import NotFound
from hexagent.core.estimate.snapshot import LengthQuantiles, Snapshot
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.needs import Needs
from hexagent.core.instance.spec import Lora, Role
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.policy.registry import known
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Bind, CancelAttempt, Dispatch, Record, Refuse
from hexagent.core.scheduling.events import (
    CallProgress,
    HeldTicket,
    InstanceCordoned,
    InstanceDown,
    InstanceUp,
    Phase,
    Started,
    Tick,
)
from hexagent.core.scheduling.record import DecisionKind
from hexagent.core.workflow.events import WorkflowFinished
from hexagent.core.workflow.model import NodeStatus, WorkflowStatus
from tests.sim.cases import CAP, MODEL, PROMPT, Desk, cluster, decodes, instance, prefills

POLICIES = known()


def small(policy: str = "fcfs", start: bool = True) -> Desk:
    return Desk(prefills("h100", "h100") + decodes("h100", "h200"), policy, start)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_call_is_dispatched_once(policy: str) -> None:
    desk = small(policy)
    desk.start("w")
    desk.reveal("w", "a")
    assert desk.calls == ["w/a"]
    assert desk.dispatched[0].ticket == Ticket(CallId("w", "a"), 1, 1)
    assert desk.dispatched[0].reserve_output_tokens == CAP
    desk.tell(Tick(1), 1)
    desk.reveal("w", "a")
    desk.pause("w", False)
    assert desk.calls == ["w/a"]


def test_calls_that_are_revealed_ahead_are_priced_by_what_is_learned_of_lengths() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    desk.reveal("w", "a", expected=0)
    desk.reveal("w", "b", after=("a",), expected=0)
    workflow, solo_us = desk.core.projection.workflows["w"], desk.core.estimator.solo_us
    assert workflow.horizon_us == 2 * solo_us(MODEL, PROMPT, 100)
    for revision, tokens in enumerate((10, 20, 30, 40), 1):
        learned = LengthQuantiles("test", "worker", "", 0, 50, tokens, 50, 60, tokens)
        desk.tell(Snapshot(revision, desk.now_us, lengths=(learned,)))
        priced = 20 if revision == 3 else tokens  # each time twice as much was heard
        assert workflow.horizon_us == solo_us(MODEL, PROMPT, 100) + solo_us(MODEL, PROMPT, priced)


def test_a_dispatch_comes_with_the_record_that_explains_it() -> None:
    desk = small()
    desk.start("w", 5)
    effects = desk.reveal("w", "a", now_us=7)
    dispatch, record = effects
    assert isinstance(dispatch, Dispatch)
    assert isinstance(record, Record)
    said = record.record
    assert (said.sequence, said.kind, said.ticket) == (dispatch.decision, DecisionKind.DISPATCH, dispatch.ticket)
    assert (said.chosen.prefill_instance, said.chosen.decode_instance) == ("p0", "d1")
    assert (said.position, said.waiting, said.age_us, said.prompt_tokens) == (1, 1, 2, PROMPT)
    assert 7 == said.chosen.prefill_start_us < said.chosen.prefill_end_us < said.chosen.transfer_end_us
    assert [o.finish_us for o in said.others] == sorted(o.finish_us for o in said.others)
    assert len(said.others) == 3
    assert said.chosen.finish_us <= said.others[0].finish_us
    assert said.horizon_us > 0


def test_nothing_is_dispatched_before_the_start() -> None:
    desk = small(start=False)
    desk.start("w")
    desk.reveal("w", "a", "b")
    assert desk.calls == []
    desk.tell(Started(3, 0))
    assert desk.calls == ["w/a", "w/b"]
    assert {d.ticket.epoch for d in desk.dispatched} == {3}


def test_an_attempt_that_agents_hold_is_adopted_whichever_of_its_instances_comes_first() -> None:
    held = HeldTicket(Ticket(CallId("w", "a"), 2, 1), Phase.PREFILLED, "p0", PROMPT, CAP, 0, "d0")
    specs = prefills("h100") + decodes("h100")
    for order in (specs, specs[::-1]):
        desk = Desk((), start=False)
        desk.start("w")
        desk.reveal("w", "a")
        for spec in order:
            desk.tell(InstanceUp(spec, (held,) if spec.instance_id == "p0" else (), 0))
        desk.tell(Started(2, 0))
        assert desk.calls == []
        assert desk.core.ledger.instances["d0"].reserved_tokens == PROMPT + CAP
        desk.progress(held.ticket, Phase.ENDED)
        desk.finish(CallId("w", "a"))
        assert desk.ledger_is_empty()


@pytest.mark.parametrize(
    ("one", "other", "prefill", "decode"),
    [
        # the two sides of a hand-off, before and after KV has moved
        ((1, Phase.PREFILLED, "p0", "d0"), (1, Phase.PREFILLED, "d0", "d0"), "p0", "d0"),
        ((1, Phase.PREFILLED, "p0", "d0"), (1, Phase.DECODING, "d0", "d0"), "d0", "d0"),
        ((2, Phase.ACCEPTED, "p1", "d0"), (1, Phase.DECODING, "d1", "d1"), "p1", "d0"),
        ((2, Phase.PREFILLED, "p1", "d1"), (2, Phase.PREFILLED, "p0", "d1"), "p1", "d1"),
    ],
)
def test_a_call_held_by_two_agents_is_booked_the_same_whoever_answers_last(
    one: tuple[int, Phase, str, str], other: tuple[int, Phase, str, str], prefill: str, decode: str
) -> None:
    specs = prefills("h100", "h100") + decodes("h100", "h100")
    for order in (specs, specs[::-1]):
        desk = Desk((), start=False)
        desk.start("w")
        desk.reveal("w", "a")
        for spec in order:
            held = tuple(
                HeldTicket(Ticket(CallId("w", "a"), attempt, 1), phase, at, PROMPT, CAP, 0, bound)
                for attempt, phase, at, bound in (one, other)
                if at == spec.instance_id
            )
            desk.tell(InstanceUp(spec, held, 0))
        desk.tell(Started(2, 0))
        (booked,) = desk.core.ledger.attempts.values()
        assert booked.ticket.attempt == max(one[0], other[0])
        assert (booked.prefill.spec.instance_id, booked.decode.spec.instance_id) == (prefill, decode)
        assert desk.calls == []


def test_what_is_lost_before_the_start_is_made_again_whoever_else_holds_it() -> None:
    """The decode side has heard that its KV is gone; the prefill side answers with what it held before."""
    desk = Desk(decodes("h100"), start=False)
    desk.start("w")
    desk.reveal("w", "a")
    ticket = Ticket(CallId("w", "a"), 1, 1)
    (d0,), (p0,) = decodes("h100"), prefills("h100")
    desk.tell(InstanceUp(d0, (HeldTicket(ticket, Phase.PREFILLED, "d0", PROMPT, CAP, 0, "d0"),), 0))
    desk.progress(ticket, Phase.LOST)
    desk.tell(InstanceUp(p0, (HeldTicket(ticket, Phase.PREFILLED, "p0", PROMPT, CAP, 0, "d0"),), 0))
    desk.tell(Started(2, 0))
    assert [d.ticket for d in desk.dispatched] == [Ticket(CallId("w", "a"), 2, 2)]


def test_an_attempt_that_cannot_be_adopted_is_made_again_as_a_later_one() -> None:
    held = HeldTicket(Ticket(CallId("w", "a"), 2, 1), Phase.PREFILLED, "p0", PROMPT, CAP, 0, "d9")
    desk = Desk((), start=False)
    desk.start("w")
    desk.reveal("w", "a")
    for spec in prefills("h100") + decodes("h100"):
        desk.tell(InstanceUp(spec, (held,) if spec.instance_id == "p0" else (), 0))
    desk.tell(Started(2, 0))
    assert [d.ticket for d in desk.dispatched] == [Ticket(CallId("w", "a"), 3, 2)]


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_lost_instance_means_another_attempt_elsewhere(side: str) -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    first = desk.dispatched[0]
    lost = first.prefill_instance if side == "prefill" else first.decode_instance
    desk.tell(InstanceDown(lost, 0))
    assert [(c.ticket, c.reason) for c in desk.cancelled] == [(first.ticket, "INSTANCE_DOWN")]
    second = desk.dispatched[1]
    assert second.ticket == first.ticket._replace(attempt=2)
    assert lost not in (second.prefill_instance, second.decode_instance)
    desk.progress(first.ticket, Phase.ENDED)  # a late word about the old attempt changes nothing
    desk.run(second)
    assert desk.ledger_is_empty()


def test_a_call_past_its_transfer_outlives_its_prefill_instance() -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    first = desk.dispatched[0]
    desk.progress(first.ticket, Phase.PREFILLED)
    desk.progress(first.ticket, Phase.DECODING)
    desk.tell(InstanceDown(first.prefill_instance, 0))
    assert not desk.cancelled


def test_a_lost_attempt_is_made_again_and_keeps_its_place() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    for at_us, node in enumerate("abc"):
        desk.reveal("w", node, now_us=at_us)
    assert desk.calls == ["w/a"]
    desk.progress(desk.dispatched[0].ticket, Phase.LOST, reason="ENGINE_DIED")
    assert desk.calls[:2] == ["w/a", "w/a"]
    assert desk.dispatched[1].ticket.attempt == 2


def test_a_refused_hand_off_is_bound_elsewhere_and_is_no_attempt() -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    first = desk.dispatched[0]
    desk.progress(first.ticket, Phase.PREFILLED)
    bind, record = desk.progress(first.ticket, Phase.HAND_OFF_REFUSED, reason="KV_TOO_SMALL")
    assert isinstance(bind, Bind)
    assert isinstance(record, Record)
    assert record.record.kind is DecisionKind.BIND
    assert bind.ticket == first.ticket
    assert {bind.decode_instance, first.decode_instance} == {"d0", "d1"}
    ledger = desk.core.ledger.instances
    assert ledger[first.decode_instance].reserved_tokens == 0
    assert ledger[bind.decode_instance].reserved_tokens == PROMPT + CAP
    desk.run(first)
    assert desk.ledger_is_empty()
    assert len(desk.dispatched) == 1


def test_a_hand_off_is_offered_to_each_decode_side_once() -> None:
    desk = Desk(prefills("h100") + decodes("h200", "h200", "a100"))
    desk.start("w")
    desk.reveal("w", "a")
    first = desk.dispatched[0]
    desk.progress(first.ticket, Phase.PREFILLED)
    effects = [effect for _ in range(4) for effect in desk.progress(first.ticket, Phase.HAND_OFF_REFUSED)]
    offered = [effect.decode_instance for effect in effects if isinstance(effect, Bind)]
    assert sorted([first.decode_instance, *offered]) == ["d0", "d1", "d2"]
    assert [c.ticket for c in desk.cancelled] == [first.ticket]
    assert desk.dispatched[1].ticket.attempt == 2


def test_an_agent_that_does_not_answer_is_asked_again_and_costs_no_attempt() -> None:
    desk = Desk(prefills("h100") + decodes("h200", "h200"))
    desk.start("w")
    desk.reveal("w", "a")
    first = desk.dispatched[0]
    desk.progress(first.ticket, Phase.PREFILLED)
    for _ in range(60):
        effects = desk.progress(first.ticket, Phase.HAND_OFF_REFUSED, reason="UNREACHABLE_UNAVAILABLE")
        assert [effect.ticket for effect in effects if isinstance(effect, Bind)] == [first.ticket]
    assert len(desk.dispatched) == 1


def test_a_refused_hand_off_with_no_other_place_is_another_attempt() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    desk.reveal("w", "a")
    desk.progress(desk.dispatched[0].ticket, Phase.HAND_OFF_REFUSED, reason="KV_TOO_SMALL")
    assert [c.ticket.attempt for c in desk.cancelled] == [1]
    assert [d.ticket.attempt for d in desk.dispatched] == [1, 2]


def test_a_hand_off_never_goes_to_an_instance_of_other_kv() -> None:
    other = instance("d1", "h200", Role.DECODE, kv_precision="fp8")
    desk = Desk((*prefills("h100"), *decodes("a100"), other))
    desk.start("w")
    desk.reveal("w", "a")
    assert desk.dispatched[0].decode_instance == "d0"
    effects = desk.progress(desk.dispatched[0].ticket, Phase.HAND_OFF_REFUSED)
    assert not any(isinstance(e, Bind) for e in effects)


def test_a_cancelled_call_frees_the_ledger_and_its_slot() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    desk.reveal("w", "a", "b")
    first = desk.dispatched[0]
    assert desk.calls == ["w/a", "w/b"]  # a batch of two
    desk.reveal("w", "c", now_us=1)
    assert len(desk.dispatched) == 2
    desk.finish(CallId("w", "b"), NodeStatus.CANCELLED)
    effects = desk.finish(CallId("w", "a"), NodeStatus.CANCELLED)
    assert effects[0] == CancelAttempt(first.ticket, "p0", "d0", "CALL_ENDED")
    assert desk.calls[2:] == ["w/c"]
    desk.finish(CallId("w", "c"), NodeStatus.CANCELLED)
    assert desk.ledger_is_empty()


def test_an_attempt_that_succeeded_needs_no_cancel_and_a_later_one_does() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    desk.reveal("w", "a", "b")
    desk.finish(CallId("w", "a"))  # its agent's report is still on the way
    assert not desk.cancelled
    first = desk.live[CallId("w", "b")]
    desk.progress(first.ticket, Phase.LOST)
    again = desk.live[CallId("w", "b")]
    desk.cancelled.clear()
    desk.live[CallId("w", "b")] = first  # it had ended all the same
    desk.finish(CallId("w", "b"))
    assert [c.ticket for c in desk.cancelled] == [again.ticket]
    assert desk.ledger_is_empty()


def test_a_cancelled_call_that_waits_is_never_dispatched() -> None:
    desk = Desk(prefills("h100") + decodes("h100"), "fcfs:least-loaded")
    desk.start("w")
    desk.reveal("w", "a")
    desk.reveal("w", "b")
    desk.finish(CallId("w", "b"), NodeStatus.CANCELLED)
    desk.run(desk.dispatched[0])
    assert desk.calls == ["w/a"]
    assert not desk.cancelled


def test_a_finished_workflow_takes_all_its_calls_back() -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a", "b", "c")
    desk.tell(WorkflowFinished("w", WorkflowStatus.CANCELLED, 0))
    assert {c.ticket.call.node_id for c in desk.cancelled} == {d.ticket.call.node_id for d in desk.dispatched}
    assert desk.ledger_is_empty()
    assert not desk.core.projection.workflows


@pytest.mark.parametrize("policy", POLICIES)
def test_calls_of_a_paused_workflow_wait(policy: str) -> None:
    desk = small(policy)
    desk.start("w")
    desk.pause("w", True)
    desk.reveal("w", "a")
    desk.tell(Tick(0))
    assert desk.calls == []
    desk.pause("w", False)
    assert desk.calls == ["w/a"]


def test_pausing_takes_waiting_calls_out_and_leaves_started_ones() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    desk.start("v")
    desk.reveal("w", "a")
    desk.reveal("w", "b", now_us=1)
    desk.reveal("v", "c", now_us=2)
    desk.pause("w", True)
    desk.run(desk.dispatched[0], 3)
    assert desk.calls == ["w/a", "v/c"]
    assert not desk.cancelled
    desk.pause("w", False)
    desk.run(desk.dispatched[1], 4)
    assert desk.calls == ["w/a", "v/c", "w/b"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cordoned_instance_gets_nothing_until_it_is_back(policy: str) -> None:
    desk = small(policy)
    desk.start("w")
    for cordoned in ("p0", "d1"):
        desk.tell(InstanceCordoned(cordoned, True, 0))
    desk.reveal("w", "a", "b", "c", "d")
    assert {(d.prefill_instance, d.decode_instance) for d in desk.dispatched} == {("p1", "d0")}
    for cordoned in ("p1", "d0"):
        desk.tell(InstanceCordoned(cordoned, True, 0))
    count = len(desk.dispatched)
    desk.reveal("w", "e")
    assert len(desk.dispatched) == count
    for back in ("d0", "p0"):
        desk.tell(InstanceCordoned(back, False, 0))
    assert len(desk.dispatched) > count
    assert desk.dispatched[-1].prefill_instance in ("p0", "d0")


@pytest.mark.parametrize("policy", POLICIES)
def test_calls_wait_for_the_only_instance_that_serves_them_and_hold_up_no_others(policy: str) -> None:
    sql = (Lora("sql", 16),)
    specs = [spec._replace(loras=sql) for spec in prefills("h100") + decodes("h100")]
    desk = Desk((*specs, instance("d1", "h100", Role.DECODE)), policy)
    desk.tell(InstanceDown("d0", 0))
    desk.start("w")
    desk.start("v")
    desk.reveal("w", "a", needs=Needs("sql"))
    desk.reveal("v", "b")
    assert desk.calls == ["v/b"]
    desk.run(desk.dispatched[0])
    desk.tell(InstanceUp(specs[1], (), 0))
    assert desk.calls == ["v/b", "w/a"]


def test_calls_that_nobody_serves_do_not_disturb_queues_of_which_many_are_cancelled() -> None:
    desk = Desk(prefills("h100") + decodes("h100"), "fcfs:least-loaded")
    for workflow in ("w", "v"):
        desk.start(workflow)
    desk.reveal("v", "running")
    desk.reveal("w", *[f"n{number:04}" for number in range(1_010)])
    desk.tell(WorkflowFinished("w", WorkflowStatus.CANCELLED, 0))
    desk.reveal("v", "unserved", needs=Needs("sql"))
    desk.reveal("v", "next")
    desk.run(desk.dispatched[0])
    assert desk.calls == ["v/running", "v/next"]


def test_an_agent_remembers_a_cordon_for_the_next_scheduler() -> None:
    told = small()  # and not of a cordon
    for desk, instances in ((told, {"p0", "p1"}), (Desk((), start=False), {"p1"})):
        for spec in prefills("h100", "h100") + decodes("h100", "h200"):
            desk.tell(InstanceUp(spec, (), 0, cordoned=spec.instance_id == "p0"))
        desk.tell(Started(2, 0))
        desk.start("w")
        desk.reveal("w", "a", "b")
        assert {d.prefill_instance for d in desk.dispatched} == instances


def test_an_unknown_instance_cannot_be_cordoned() -> None:
    with pytest.raises(NotFound) as caught:
        small().tell(InstanceCordoned("p9", True, 0))
    assert caught.value.reason == "UNKNOWN_INSTANCE"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_ledger_is_empty_after_a_run(policy: str) -> None:
    desk = small(policy)
    for number in range(5):
        desk.start(f"w{number}", number)
        desk.reveal(f"w{number}", "a", "b", "c", now_us=number)
    done = 0
    while done < len(desk.dispatched):
        desk.run(desk.dispatched[done], 1_000 * done)
        done += 1
    assert done == 15
    assert desk.ledger_is_empty()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_call_waits_for_room_and_starts_when_it_is_there(policy: str) -> None:
    room = -(-(PROMPT + CAP) // 32)
    desk = Desk(prefills("h100", "h100") + decodes("h100", kv_blocks=room), policy)
    desk.start("w")
    desk.reveal("w", "a")
    desk.reveal("w", "b", now_us=1)
    assert desk.calls == ["w/a"]
    first = desk.dispatched[0]
    for phase in (Phase.PREFILLED, Phase.DECODING):
        desk.progress(first.ticket, phase)
        assert desk.calls == ["w/a"]
    desk.progress(first.ticket, Phase.ENDED)
    assert desk.calls == ["w/a", "w/b"]


def test_progress_of_an_unknown_ticket_is_ignored() -> None:
    desk = small()
    for phase in Phase:
        assert desk.progress(Ticket(CallId("w", "x"), 1, 1), phase) == ()


def test_equal_inputs_give_equal_effects() -> None:
    def effects() -> list[object]:
        desk = small("hexagent")
        out: list[object] = []
        for number in range(4):
            desk.start(f"w{number}", number)
            out += desk.reveal(f"w{number}", "a", "b", now_us=number)
        for dispatch in list(desk.dispatched):
            out += desk.tell(CallProgress(dispatch.ticket, Phase.PREFILLED, "", 9), 9)
        return out

    assert effects() == effects()


def test_the_policy_must_be_known() -> None:
    with pytest.raises(NotFound) as caught:
        SchedulerCore(cluster(*prefills("h100")), "lifo")
    assert "workflow-fcfs" in caught.value.message


@pytest.mark.parametrize("phase", [Phase.ACCEPTED, Phase.PREFILLED])
def test_a_stuck_attempt_is_retried_away_from_where_it_got_stuck(phase: Phase) -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    first = desk.dispatched[0]
    if phase is Phase.PREFILLED:
        desk.progress(first.ticket, phase)
    give_up_us = desk.core.ledger.attempts[first.ticket].give_up_us
    desk.tell(Tick(give_up_us - 1), give_up_us - 1)
    assert len(desk.dispatched) == 1
    effects = desk.tell(Tick(give_up_us), give_up_us)
    cancels = [e for e in effects if isinstance(e, CancelAttempt)]
    assert [(c.ticket, c.reason) for c in cancels] == [(first.ticket, "STUCK")]
    second = desk.dispatched[1]
    assert second.ticket.attempt == 2
    if phase is Phase.PREFILLED:
        assert second.decode_instance != first.decode_instance
    else:
        assert second.prefill_instance != first.prefill_instance


def test_a_suspect_instance_is_used_again_after_a_while() -> None:
    desk = Desk(prefills("h100") + decodes("h100"), "fcfs")
    desk.start("w")
    desk.reveal("w", "a")
    give_up_us = desk.core.ledger.attempts[desk.dispatched[0].ticket].give_up_us
    desk.tell(Tick(give_up_us), give_up_us)
    assert len(desk.dispatched) == 1
    later_us = give_up_us + DEFAULT.suspect_us
    desk.tell(Tick(later_us), later_us)
    assert [d.ticket.attempt for d in desk.dispatched] == [1, 2]


def test_a_call_whose_attempts_are_always_lost_fails() -> None:
    desk = small()
    desk.start("w")
    desk.reveal("w", "a")
    refused: list[Refuse] = []
    for _ in range(DEFAULT.attempts_max):
        effects = desk.progress(desk.dispatched[-1].ticket, Phase.LOST)
        refused += [e for e in effects if isinstance(e, Refuse)]
    assert len(desk.dispatched) == DEFAULT.attempts_max
    (last,) = refused
    assert (last.outcome.status, last.outcome.reason) == (NodeStatus.FAILED, "ATTEMPTS_EXHAUSTED")
    desk.finish(CallId("w", "a"))
    assert desk.ledger_is_empty()


def test_calls_without_room_take_no_places_in_a_plan_of_a_long_queue() -> None:
    """Of a queue too long to score anew two calls are placed: one that fits starts behind three that do not."""
    profile = DEFAULT._replace(rescored_max=0, walked_max=2)
    desk = Desk(prefills("h100", "h100") + decodes("h100", kv_blocks=300), "hexagent", profile=profile)
    desk.start("w")
    desk.reveal("w", "running")
    desk.reveal("w", "big0", "big1", "big2", prompt=8_700, now_us=1)
    desk.reveal("w", "small", now_us=2)
    assert desk.calls == ["w/running", "w/small"]
    for dispatch in list(desk.dispatched):
        desk.run(dispatch, 10)
    assert desk.calls[2] == "w/big0"
