"""What an agent takes over for decoding, and what it still does while it stops."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from hexagent.api.common.v1 import call_pb2
from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.effects import Bind, CancelAttempt
from hexagent.core.scheduling.events import Phase
from hexagent.core.workflow.model import FinishReason
from hexagent.wire.worker import Attempt, BindCommand, DispatchCommand, attempt_from_proto, attempt_to_proto
from hexagent_services.worker_agent.agent import Agent
from hexagent_services.worker_agent.attempts import Attempts
from hexagent_services.worker_agent.engine.port import Engine, EngineRequest, Prefilled
from hexagent_services.worker_agent.engine.supervision import Supervisor
from hexagent_services.worker_agent.peers import Peers
from hexagent_services.worker_agent.reports import Reports
from hexagent_services.worker_agent.requests import BodyCache
from hexagent_services.worker_agent.results import Results
from hexagent_services.worker_agent.warm_up import WarmUps
from tests.contract.engines import CLOCK, MODEL, emulated, spec


class NoBodies(BodyCache):
    """Of prompts without segments."""

    def __init__(self) -> None: ...

    async def get(self, digests: list[str]) -> dict[str, bytes]:
        return {}


def offer(node: str, kv_ready: bool) -> pb.HandOffRequest:
    ticket, payload = Ticket(CallId("w", node), 1, 1), call_pb2.CallRequest(model=MODEL).SerializeToString()
    attempt = Attempt(ticket, payload, {}, 64, 8, 8, 0, "default", "agent", {}, 0)
    return pb.HandOffRequest(
        attempt=attempt_to_proto(attempt),
        source_instance="p",
        target_instance="d",
        prompt_tokens=64,
        first_tokens=1,
        kv_ready=kv_ready,
    )


async def test_an_agent_that_stops_still_takes_the_kv_of_what_was_reserved() -> None:
    engine = emulated(spec("d", Role.DECODE)._replace(profile="push"))
    bodies, results = cast("BodyCache", None), cast("Results", None)  # a reservation needs neither
    warm_ups = WarmUps({}, Peers(), CLOCK, "nowhere:1")
    attempts = Attempts({"d": engine}, bodies, Peers(), results, Reports(), CLOCK, warm_ups, "nowhere:1")
    assert await attempts.hand_off(offer("a", kv_ready=False), draining=False) == ""
    await asyncio.sleep(0)  # it waits for KV
    assert await attempts.hand_off(offer("b", kv_ready=False), draining=True) == "DRAINING"
    assert await attempts.hand_off(offer("a", kv_ready=True), draining=True) == ""
    (held,) = attempts.held()
    assert (held.ticket.call.node_id, held.phase) == ("a", Phase.ACCEPTED)
    assert attempts.abort(held.ticket, "d")
    await engine.close()


class Scripted:
    """An engine whose prompts are prefilled at once."""

    spec = spec("p", Role.PREFILL)

    def __init__(self) -> None:
        self.aborted: list[Ticket] = []

    async def prefill(self, request: EngineRequest, started: object = None) -> Prefilled:
        return Prefilled(0, 1, 0, b"x", FinishReason.NONE, 0, b"", 64)

    def abort(self, ticket: Ticket) -> None:
        self.aborted.append(ticket)


class Told(Reports):
    """Keeps what a scheduler would hear."""

    def progress(self, ticket: Ticket, phase: Phase, instance_id: str, at_us: int, **more: Any) -> None:
        self.heard = [*getattr(self, "heard", []), (phase, more.get("reason", ""))]


async def test_calls_are_not_handed_over_where_links_fail() -> None:
    warm_ups = WarmUps({}, Peers(), CLOCK, "nowhere:1")
    warm_ups.refusal = lambda source, target: "LINK_FAILED"  # type: ignore[method-assign]
    engine, told = Scripted(), Told()
    engines = {"p": cast("Engine", engine)}
    attempts = Attempts(engines, NoBodies(), Peers(), cast("Results", None), told, CLOCK, warm_ups, "nowhere:1")
    attempt = attempt_from_proto(offer("a", kv_ready=True).attempt)
    await attempts.dispatch([DispatchCommand(attempt, "p", "d0", "there:1", 1)])
    await asyncio.sleep(0.01)
    attempts.bind(BindCommand(Bind(attempt.ticket, "p", "d1", 1), "there:1"))
    await asyncio.sleep(0.01)
    refused = (Phase.HAND_OFF_REFUSED, "LINK_FAILED")
    assert told.heard == [(Phase.PREFILLED, ""), refused, refused]
    attempts.cancel(CancelAttempt(attempt.ticket, "p", "d1", "LINK_FAILED"))
    assert (engine.aborted, attempts.held()) == ([attempt.ticket], ())


async def test_schedulers_hear_which_instances_are_cut_off_when_they_attach_and_when_that_ends() -> None:
    warm_ups, told = WarmUps({}, Peers(), CLOCK, "nowhere:1"), Reports()
    cut_off = {"p"}
    warm_ups.cut_off = lambda instance_id: instance_id in cut_off  # type: ignore[method-assign]
    up = {name: cast("Supervisor", SimpleNamespace(spec=spec(name, Role.PREFILL), cause="")) for name in ("p", "q")}
    agent = Agent("a", "nowhere:1", up, {}, cast("Attempts", None), warm_ups, told, CLOCK)
    session = agent.attach(1, True)
    agent.report_closed()
    cut_off.clear()
    agent.report("p")
    heard = [report.instance_changed for report in await told.next_batch(session) or ()]
    assert [(h.instance.instance_id, h.up, h.draining) for h in heard] == [("p", True, True), ("p", True, False)]
