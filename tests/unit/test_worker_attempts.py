"""What an agent takes over for decoding, and what it still does while it stops."""

import asyncio
from typing import cast

from hexagent.api.common.v1 import call_pb2
from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.events import Phase
from hexagent.wire.worker import Attempt, attempt_to_proto
from hexagent_services.worker_agent.attempts import Attempts
from hexagent_services.worker_agent.peers import Peers
from hexagent_services.worker_agent.reports import Reports
from hexagent_services.worker_agent.requests import BodyCache
from hexagent_services.worker_agent.results import Results
from tests.contract.engines import CLOCK, MODEL, emulated, spec


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
    attempts = Attempts({"d": engine}, bodies, Peers(), results, Reports(), CLOCK, "nowhere:1")
    assert await attempts.hand_off(offer("a", kv_ready=False), draining=False) == ""
    await asyncio.sleep(0)  # it waits for KV
    assert await attempts.hand_off(offer("b", kv_ready=False), draining=True) == "DRAINING"
    assert await attempts.hand_off(offer("a", kv_ready=True), draining=True) == ""
    (held,) = attempts.held()
    assert (held.ticket.call.node_id, held.phase) == ("a", Phase.ACCEPTED)
    assert attempts.abort(held.ticket, "d")
    await engine.close()
