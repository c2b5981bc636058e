"""What the agent tells its scheduler: progress of attempts, batched."""

import asyncio
from typing import Final

from hexagent.api.worker.v1 import worker_service_pb2
from hexagent.core.ids import Ticket
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.scheduling.events import CallProgress, Phase
from hexagent.wire.cluster import instance_to_proto
from hexagent.wire.worker import progress_to_proto

LAZY_S: Final = 0.02  # wall time that what nobody waits for is kept, to travel with what somebody does


class Reports:
    """A queue that one session drains. Without a session reports are dropped: the next scheduler asks what is held."""

    def __init__(self) -> None:
        self.draining = False  # the agent stops
        self._pending: list[worker_service_pb2.Report] = []
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._session = 0
        self._attached = False

    def open(self) -> int:
        """Begin a session; an earlier one gets nothing any more. Returns its number for `next_batch`."""
        self._attached = True
        self._next_session()
        return self._session

    def close(self, session: int) -> None:
        """End a session; nothing happens to a later one."""
        if session == self._session:
            self._attached = False
            self._next_session()

    def _next_session(self) -> None:
        self._session += 1
        self._pending.clear()
        self._wake.set()

    async def next_batch(self, session: int) -> list[worker_service_pb2.Report] | None:
        """Everything reported since the last batch, at least one; None once the session is over."""
        while session == self._session:
            await self._wake.wait()
            if session != self._session:
                break
            self._wake.clear()
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            batch, self._pending = self._pending, []
            if batch:
                return batch
        return None

    def instance(self, spec: InstanceSpec, at_us: int, cause: str, cut_off: bool) -> None:
        """An instance went, for `cause`, and with it every attempt there; or runs, with none.

        One that is `cut_off` gets no new calls.
        """
        if self._attached:
            changed = worker_service_pb2.InstanceChanged(
                instance=instance_to_proto(spec),
                up=not cause,
                reason=cause,
                at_us=at_us,
                draining=self.draining or cut_off,
            )
            self._pending.append(worker_service_pb2.Report(instance_changed=changed))
            self._wake.set()

    def progress(
        self,
        ticket: Ticket,
        phase: Phase,
        instance_id: str,
        at_us: int,
        *,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        reason: str = "",
    ) -> None:
        if not self._attached:
            return
        progress = CallProgress(ticket, phase, instance_id, at_us, cached_tokens, output_tokens, reason)
        self._pending.append(worker_service_pb2.Report(progress=progress_to_proto(progress)))
        if phase is not Phase.DECODING:  # which frees the prefill side's KV: no slot that a call may wait for
            self._wake.set()
        elif self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(LAZY_S, self._wake.set)
