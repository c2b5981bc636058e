"""Sessions to agents: found by their announcements, dialled, kept up, declared dead."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

import grpc

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.api.worker.v1 import worker_service_pb2_grpc as stubs
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.core.scheduling.events import CallProgress, InstanceDown, InstanceUp, Phase
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.grpc_client import open_channel
from hexagent.wire.telemetry import AgentAnnouncement
from hexagent.wire.worker import CordonCommand, command_to_proto, instance_ups_from_welcome, report_from_proto
from hexagent_services.scheduler.driver import Driver
from hexagent_services.scheduler.outbox import Outbox

log = logging.getLogger(__name__)

REDIAL_S = (0.05, 0.1, 0.2, 0.5)  # wall time between attempts to reach an agent, the last repeated
DEAD: Final = "its agent does not answer"


class AgentLink:
    """One agent. `settled` is set once it answered for the first time or is declared dead."""

    def __init__(
        self, announcement: AgentAnnouncement, hello: pb.Hello, driver: Driver, outbox: Outbox, clock: ModelClock
    ) -> None:
        self.agent_id = announcement.agent_id
        self.address = announcement.address
        self.settled = asyncio.Event()
        self._hello = hello
        self._driver = driver
        self._outbox = outbox
        self._clock = clock
        self._instances = {spec.instance_id for spec in announcement.instances}
        self._up = False
        self._dead = False

    async def run(self, dead_after_s: float) -> None:
        """Keep a session until cancelled; after `dead_after_s` of wall time without one, the agent's instances
        are down."""
        loop = asyncio.get_running_loop()
        lost_s, failures = loop.time(), 0
        channel = open_channel(self.address)
        try:
            while True:
                try:
                    async with asyncio.timeout(None if self._up else dead_after_s) as answer:
                        await self._session(stubs.WorkerServiceStub(channel), answer)
                except (grpc.aio.AioRpcError, TimeoutError, EOFError) as error:
                    log.warning("no session with agent %s at %s: %s", self.agent_id, self.address, _short(error))
                if self._up:
                    self._up, lost_s, failures = False, loop.time(), 0
                if loop.time() - lost_s >= dead_after_s:
                    self._declare_dead()
                await asyncio.sleep(REDIAL_S[min(failures, len(REDIAL_S) - 1)])
                failures += 1
        finally:
            await channel.close()

    async def _session(self, stub: "stubs.WorkerServiceAsyncStub", answer: asyncio.Timeout) -> None:
        # A call that cannot be made leaves its requests waiting for the next one.
        call = stub.Session(self._requests(self._outbox.open()))
        try:
            async for response in call:
                if response.HasField("welcome"):
                    answer.reschedule(None)
                    self._welcomed(response.welcome)
                for report in response.reports:
                    self._driver.handle(report_from_proto(report))
            raise EOFError("the agent ended the session")
        finally:
            self._outbox.close()
            call.cancel()

    async def _requests(self, session: int) -> AsyncIterator[pb.SessionRequest]:
        yield pb.SessionRequest(hello=self._hello)
        while (batch := await self._outbox.next_batch(session)) is not None:
            yield pb.SessionRequest(commands=[command_to_proto(command) for command in batch])

    def _welcomed(self, welcome: pb.Welcome) -> None:
        now_us = self._clock.now_us()
        ups = instance_ups_from_welcome(welcome, now_us)
        self._instances |= {up.spec.instance_id for up in ups}
        for up in ups:
            self._driver.handle(up)
            self._remind(up)
            self._report_lost(up, now_us)
        self._up, self._dead = True, False
        self.settled.set()
        log.info("session with agent %s: %d instances, %d attempts held", self.agent_id, len(ups), len(welcome.held))

    def _remind(self, up: InstanceUp) -> None:
        """Tell an agent that has been started again, or was away, what the next scheduler shall hear of it."""
        instance = self._driver.core.ledger.instances[up.spec.instance_id]
        if instance.cordoned != up.cordoned:
            self._outbox.put(CordonCommand(up.spec.instance_id, instance.cordoned))
        if instance.wanted_role is not up.wanted_role:
            role = instance.wanted_role or up.spec.role
            self._outbox.put(ChangeRole(up.spec.instance_id, role, now=False))

    def _report_lost(self, up: InstanceUp, now_us: int) -> None:
        """Attempts the ledger has on an instance whose agent has forgotten them, for instance by a restart.

        A prefilled one counts as handed over: its prefill side waits for a pull that would never come.
        """
        ledger = self._driver.core.ledger
        held = {h.ticket for h in up.held}
        for attempt in ledger.held_by(ledger.instances[up.spec.instance_id]):
            begun_here = attempt.prefill.spec.instance_id == up.spec.instance_id or attempt.phase >= Phase.PREFILLED
            if attempt.ticket not in held and begun_here:
                lost = CallProgress(attempt.ticket, Phase.LOST, up.spec.instance_id, now_us, reason="AGENT_FORGOT")
                self._driver.handle(lost)

    def _declare_dead(self) -> None:
        """Once for each silence: what the core handles is journaled, and it is dialled several times a second."""
        self._outbox.clear()
        if self._dead:
            return
        self._dead = True
        for instance_id in sorted(self._instances):
            self._driver.handle(InstanceDown(instance_id, self._clock.now_us(), DEAD))
        self.settled.set()


def _short(error: BaseException) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else (str(error) or type(error).__name__)
