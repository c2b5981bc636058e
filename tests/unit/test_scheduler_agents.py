"""What the scheduler makes of an agent's answer to its hello."""

import asyncio
from typing import cast

import pytest

from hexagent.api.worker.v1 import worker_service_pb2
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.core.scheduling.events import HeldTicket, InstanceDown, InstanceFlip, InstanceUp, Phase, SchedulerEvent
from hexagent.runtime.clock import ModelClock
from hexagent.wire.cluster import instance_to_proto
from hexagent.wire.telemetry import AgentAnnouncement
from hexagent.wire.worker import CordonCommand, report_from_proto, welcome_to_proto
from hexagent_services.scheduler.agents import AgentLink
from hexagent_services.scheduler.driver import Driver
from hexagent_services.scheduler.outbox import Outbox
from tests.sim.cases import CAP, PROMPT, Desk, decodes, prefills


class DeskDriver:
    """A core without journal, bus and clock behind it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    @property
    def core(self) -> SchedulerCore:
        return self.desk.core

    def handle(self, event: SchedulerEvent) -> None:
        self.desk.tell(event)


def link_to(desk: Desk, specs: tuple[InstanceSpec, ...], outbox: Outbox | None = None) -> AgentLink:
    """To the agent of these instances, which has announced itself."""
    announcement = AgentAnnouncement("agent", "here:1", specs, 1, 0, 1)
    driver = cast("Driver", DeskDriver(desk))
    return AgentLink(announcement, worker_service_pb2.Hello(), driver, outbox or Outbox(), ModelClock(0))


def answered(
    desk: Desk, instance_id: str, *held: HeldTicket, cordoned: bool = False, wanted: Role | None = None
) -> Outbox:
    """The agent of one instance of the desk answers; gives what is on its way to it then."""
    spec = desk.core.ledger.instances[instance_id].spec
    outbox = Outbox()
    link = link_to(desk, (spec,), outbox)
    link._welcomed(welcome_to_proto("agent", (InstanceUp(spec, held, 0, cordoned, wanted_role=wanted),)))
    return outbox


@pytest.mark.parametrize("phase", [Phase.ACCEPTED, Phase.PREFILLED, Phase.DECODING])
def test_what_a_decode_side_has_forgotten_is_made_again(phase: Phase) -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.start("w")
    desk.reveal("w", "a")
    (first,) = desk.dispatched
    for reached in (Phase.PREFILLED, Phase.DECODING):
        if reached <= phase:
            desk.progress(first.ticket, reached)
    holds = HeldTicket(first.ticket, Phase.PREFILLED, "d0", PROMPT, CAP, 0, "d0")
    answered(desk, "d0", holds)
    assert len(desk.dispatched) == 1
    answered(desk, "d0")
    # Before its prefill has ended the decode side has not heard of it.
    assert [d.ticket.attempt for d in desk.dispatched] == ([1] if phase is Phase.ACCEPTED else [1, 2])


def test_an_instance_whose_engine_has_never_run_is_known_with_the_reason() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    spec = desk.core.ledger.instances["d0"].spec._replace(instance_id="d1")
    desk.tell(InstanceDown("d1", 0))
    assert "d1" not in desk.core.ledger.instances
    desk.tell(InstanceDown("d1", 0, "its engine loads", spec))
    instance = desk.core.ledger.instances["d1"]
    assert (instance.usable, instance.down_reason) == (False, "its engine loads")
    desk.tell(InstanceDown("d1", 0, "quarantined", spec))
    assert instance.down_reason == "quarantined"
    desk.tell(InstanceUp(spec, (), 0))
    assert (instance.usable, instance.down_reason) == (True, "")


def test_an_agent_that_stops_gets_no_new_calls_until_it_answers_again() -> None:
    desk = Desk(prefills("h100", "h100") + decodes("h100"))
    spec = desk.core.ledger.instances["p0"].spec
    stops = worker_service_pb2.InstanceChanged(instance=instance_to_proto(spec), up=True, draining=True)
    event = report_from_proto(worker_service_pb2.Report(instance_changed=stops))
    assert isinstance(event, InstanceUp)
    desk.start("w")
    desk.tell(event)
    desk.reveal("w", "a", "b", "c")
    assert {d.prefill_instance for d in desk.dispatched} == {"p1"}
    answered(desk, "p0")
    desk.reveal("w", "d", "e")
    assert "p0" in {d.prefill_instance for d in desk.dispatched}


def test_an_agent_that_is_dead_takes_those_along_that_came_up_later() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    specs = tuple(instance.spec for instance in desk.core.ledger.instances.values())
    link = link_to(desk, specs)
    link._welcomed(welcome_to_proto("agent", (InstanceUp(specs[0], (), 0),)))
    link._declare_dead()
    assert {i.down_reason for i in desk.core.ledger.instances.values()} == {"its agent does not answer"}


def test_an_agent_that_stays_away_is_declared_dead_once_and_again_after_it_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    (spec, *_) = (instance.spec for instance in desk.core.ledger.instances.values())
    link = link_to(desk, (spec,))
    told: list[SchedulerEvent] = []
    monkeypatch.setattr(link._driver, "handle", told.append)
    for _ in range(3):
        link._declare_dead()
    assert [type(event) for event in told] == [InstanceDown]
    link._welcomed(welcome_to_proto("agent", (InstanceUp(spec, (), 0),)))
    link._declare_dead()
    assert [type(event) for event in told] == [InstanceDown, InstanceUp, InstanceDown]


async def test_an_agent_that_was_away_hears_what_is_closed() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    desk.core.ledger.instances["d0"].cordoned = True
    assert await answered(desk, "d0").next_batch(0) == [CordonCommand("d0", True)]
    desk.core.ledger.instances["d0"].cordoned = False
    assert await answered(desk, "d0", cordoned=True).next_batch(0) == [CordonCommand("d0", False)]


async def test_an_agent_that_was_away_hears_of_changes_of_roles_that_go_on() -> None:
    desk = Desk(prefills("h100") + decodes("h100"))
    assert await answered(desk, "d0", wanted=Role.PREFILL).next_batch(0) == [ChangeRole("d0", Role.DECODE, now=False)]
    desk.tell(InstanceFlip("d0", Role.PREFILL, 0))
    assert await answered(desk, "d0").next_batch(0) == [ChangeRole("d0", Role.PREFILL, now=False)]


async def test_commands_go_to_the_session_that_is_open_and_not_to_one_that_could_not_be_made() -> None:
    outbox, commands = Outbox(), [CordonCommand("d0", True), CordonCommand("d0", False)]
    stale = asyncio.create_task(outbox.next_batch(outbox.open()))
    await asyncio.sleep(0)
    outbox.close()
    current = asyncio.create_task(outbox.next_batch(outbox.open()))
    await asyncio.sleep(0)
    outbox.put(commands[0])
    assert await current == commands[:1]
    assert await stale is None
    outbox.close()
    outbox.put(commands[1])
    assert await outbox.next_batch(outbox.open()) == commands[1:]
