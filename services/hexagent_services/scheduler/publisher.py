"""What the scheduler publishes: decision records in batches, its own refusals."""

import asyncio
from collections import OrderedDict, deque
from typing import Final

from hexagent.core.ids import CallId
from hexagent.core.scheduling.effects import Shadowed
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.scheduling.shadows import ShadowChoice, by_call
from hexagent.core.workflow.model import CallOutcome
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.wire.scheduler import records_to_bytes
from hexagent.wire.workflow import outcome_id, outcome_to_bytes

BATCH_S: Final = 0.1  # wall time that a record waits for more; watchers learn from it that a call runs
BATCH_MAX: Final = 500  # records a message; about 400 bytes each
REMEMBERED_CALLS: Final = 20_000  # whose records `ExplainCall` answers from memory
REMEMBERED_CHOICES: Final = 8  # of shadows, about a call; the newest


class Publisher:
    """`record` and `outcome` only queue; `run` sends."""

    def __init__(self, bus: Bus, scheduler_id: str, epoch: int) -> None:
        self._bus = bus
        self._scheduler_id = scheduler_id
        self._epoch = epoch
        self._records: list[DecisionRecord] = []
        self._wake = asyncio.Event()
        self._by_call: OrderedDict[CallId, list[DecisionRecord]] = OrderedDict()
        self._shadows: OrderedDict[CallId, deque[ShadowChoice]] = OrderedDict()
        self._refusals: asyncio.Queue[CallOutcome] = asyncio.Queue()
        self._sequence = 0

    def record(self, record: DecisionRecord) -> None:
        self._records.append(record)
        self._wake.set()
        self._by_call.setdefault(record.ticket.call, []).append(record)
        while len(self._by_call) > REMEMBERED_CALLS:
            self._by_call.popitem(last=False)

    def records_of(self, call: CallId) -> tuple[DecisionRecord, ...]:
        """Decisions about one of the last calls, in order."""
        return tuple(self._by_call.get(call, ()))

    def shadowed(self, found: Shadowed) -> None:
        for call, choice in by_call(found).items():
            self._shadows.setdefault(call, deque(maxlen=REMEMBERED_CHOICES)).append(choice)
        while len(self._shadows) > REMEMBERED_CALLS:
            self._shadows.popitem(last=False)

    def shadows_of(self, call: CallId) -> tuple[ShadowChoice, ...]:
        """What shadows would have done with one of the last calls, in order."""
        return tuple(self._shadows.get(call, ()))

    def outcome(self, outcome: CallOutcome) -> None:
        self._refusals.put_nowait(outcome)

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_refusals())
            tasks.create_task(self._send_records())

    async def _send_refusals(self) -> None:
        while True:
            outcome = await self._refusals.get()
            self._sequence += 1
            data = outcome_to_bytes(outcome, publisher=self._scheduler_id, sequence=self._sequence)
            await self._bus.publish(subjects.outcome(outcome.call.workflow_id), data, msg_id=outcome_id(outcome))

    async def _send_records(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(BATCH_S)
            await self.flush()

    async def flush(self) -> None:
        """Send the records that wait."""
        while self._records:
            batch, self._records = self._records[:BATCH_MAX], self._records[BATCH_MAX:]
            data = records_to_bytes(batch, scheduler_id=self._scheduler_id, epoch=self._epoch)
            await self._bus.publish_soon(subjects.DECISION, data)
