"""What the scheduler publishes: dispatches as they happen, decision records in batches, its own refusals."""

import asyncio
from collections import OrderedDict
from typing import Final

from hexagent.core.ids import CallId
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.model import CallOutcome
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.wire.scheduler import records_to_bytes
from hexagent.wire.workflow import CallDispatched, dispatched_to_bytes, outcome_id, outcome_to_bytes

BATCH_S: Final = 0.25  # wall time between two batches of records
BATCH_MAX: Final = 500  # records a message; about 400 bytes each
REMEMBERED_CALLS: Final = 20_000  # whose records `ExplainCall` answers from memory


class Publisher:
    """`record`, `dispatched` and `outcome` only queue; `run` sends."""

    def __init__(self, bus: Bus, scheduler_id: str, epoch: int) -> None:
        self._bus = bus
        self._scheduler_id = scheduler_id
        self._epoch = epoch
        self._records: list[DecisionRecord] = []
        self._by_call: OrderedDict[CallId, list[DecisionRecord]] = OrderedDict()
        self._queue: asyncio.Queue[CallDispatched | CallOutcome] = asyncio.Queue()
        self._sequence = 0

    def record(self, record: DecisionRecord) -> None:
        self._records.append(record)
        self._by_call.setdefault(record.ticket.call, []).append(record)
        while len(self._by_call) > REMEMBERED_CALLS:
            self._by_call.popitem(last=False)

    def records_of(self, call: CallId) -> tuple[DecisionRecord, ...]:
        """Decisions about one of the last calls, in order."""
        return tuple(self._by_call.get(call, ()))

    def dispatched(self, dispatched: CallDispatched) -> None:
        self._queue.put_nowait(dispatched)

    def outcome(self, outcome: CallOutcome) -> None:
        self._queue.put_nowait(outcome)

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_queued())
            tasks.create_task(self._send_records())

    async def _send_queued(self) -> None:
        while True:
            item = await self._queue.get()
            self._sequence += 1
            if isinstance(item, CallDispatched):
                data = dispatched_to_bytes(item._replace(sequence=self._sequence))
                await self._bus.publish_core(subjects.DISPATCHED, data)
            else:
                data = outcome_to_bytes(item, publisher=self._scheduler_id, sequence=self._sequence)
                await self._bus.publish(subjects.outcome(item.call.workflow_id), data, msg_id=outcome_id(item))

    async def _send_records(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S)
            await self.flush()

    async def flush(self) -> None:
        """Send the records that wait."""
        while self._records:
            batch, self._records = self._records[:BATCH_MAX], self._records[BATCH_MAX:]
            data = records_to_bytes(batch, scheduler_id=self._scheduler_id, epoch=self._epoch)
            await self._bus.publish_soon(subjects.DECISION, data)
