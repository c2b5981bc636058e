"""Faults on demand, for tests and drills: an engine that crashes, hangs, slows down, drops, stalls or lies.

A plan is a comma-separated list of `KIND:INSTANCE[=VALUE][@FROM[-TO]]`, times in seconds of model time since
the stack's origin; without them the fault holds from the start on. INSTANCE may be `*`.

| kind | value | what happens |
|---|---|---|
| crash | - | the agent process kills itself at FROM |
| hang | - | the engine makes no progress |
| slow | factor | every step takes that many times as long |
| drop-hand-off | share 0..1 | the decode side accepts a call and forgets it |
| stall-transfer | seconds | the last byte of a KV transfer comes that much later |
| lie | factor | reported step times and load are multiplied by it |
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import Ticket
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.noise import Truth, hash64
from hexagent.core.instance.samples import Samples
from hexagent.core.instance.spec import LinkSpec, Role
from hexagent.core.instance.telemetry import Incidents
from hexagent.core.units import PPM, US_PER_S
from hexagent.runtime.clock import ModelClock
from hexagent_services.worker_agent.engine.emulated import EmulatedEngine
from hexagent_services.worker_agent.engine.port import (
    Capabilities,
    DecodeEvent,
    EngineAborted,
    EngineRequest,
    FetchKv,
    HandedOver,
    KvPiece,
    Prefilled,
)

KINDS: Final = ("crash", "hang", "slow", "drop-hand-off", "stall-transfer", "lie")
FOREVER_US: Final = 1 << 62

_FAULT = re.compile(r"([a-z-]+):([A-Za-z0-9._:*-]+?)(?:=([0-9.]+))?(?:@([0-9.]+)(?:-([0-9.]+))?)?\Z")


class Fault(NamedTuple):
    kind: str
    instance_id: str  # "*" = every one
    value: float
    from_us: int
    to_us: int

    def holds(self, now_us: int) -> bool:
        return self.from_us <= now_us < self.to_us


def parse_faults(text: str) -> tuple[Fault, ...]:
    """A fault plan; `InvalidArgument` (BAD_FAULT) names the entry that is none."""
    faults: list[Fault] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _FAULT.match(entry)
        if match is None or match[1] not in KINDS:
            raise InvalidArgument(
                f"{entry!r} is no fault; write KIND:INSTANCE[=VALUE][@FROM[-TO]] with KIND one of {', '.join(KINDS)}",
                reason="BAD_FAULT",
                field="HEXAGENT_FAULTS",
            )
        kind, instance_id, value, start, end = match.groups()
        faults.append(
            Fault(
                kind,
                instance_id,
                float(value or 1),
                round(float(start or 0) * US_PER_S),
                round(float(end) * US_PER_S) if end else FOREVER_US,
            )
        )
    return tuple(faults)


class FaultyEngine:
    """An emulated engine under a fault plan; without a fault that holds it is that engine."""

    def __init__(self, inner: EmulatedEngine, faults: tuple[Fault, ...], truth: Truth, clock: ModelClock) -> None:
        self.spec = inner.spec
        self._inner = inner
        self._faults = tuple(f for f in faults if f.instance_id in ("*", inner.spec.instance_id))
        self._truth = truth
        self._clock = clock
        self._dropped: dict[Ticket, asyncio.Event] = {}

    async def run(self) -> None:
        """Switch crash, hang and slow on and off at their times."""
        async with asyncio.TaskGroup() as tasks:
            for fault in self._faults:
                if fault.kind in ("crash", "hang", "slow"):
                    tasks.create_task(self._switch(fault))

    async def _switch(self, fault: Fault) -> None:
        await self._clock.sleep_until(fault.from_us)
        if fault.kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        factor_ppm = round(fault.value * PPM)
        if fault.kind == "hang":
            self._inner.freeze(True)
        else:
            slow = replace(self._truth, prefill_factor_ppm=factor_ppm, decode_factor_ppm=factor_ppm)
            self._inner.retune(slow)
        if fault.to_us < FOREVER_US:
            await self._clock.sleep_until(fault.to_us)
            self._inner.freeze(False)
            self._inner.retune(self._truth)

    def _value(self, kind: str) -> float | None:
        now_us = self._clock.now_us()
        return next((f.value for f in self._faults if f.kind == kind and f.holds(now_us)), None)

    async def start(self) -> Capabilities:
        return await self._inner.start()

    async def change_role(self, role: Role) -> Capabilities:
        found = await self._inner.change_role(role)
        self.spec = self._inner.spec
        return found

    async def lost(self) -> str:
        return await self._inner.lost()

    async def prefill(self, request: EngineRequest, started: Callable[[], None] | None = None) -> Prefilled:
        return await self._inner.prefill(request, started)

    async def send_kv(self, ticket: Ticket, to_instance: str, to_link: LinkSpec) -> AsyncIterator[KvPiece]:
        async for piece in self._inner.send_kv(ticket, to_instance, to_link):
            stall_s = self._value("stall-transfer") if piece.last else None
            if stall_s is not None:
                await self._clock.sleep_until(self._clock.now_us() + round(stall_s * US_PER_S))
            yield piece

    def reserve(self, request: EngineRequest, source_instance: str, kv_ready: bool) -> None:
        share = self._value("drop-hand-off")
        if share is not None and hash64("drop", request.ticket) % PPM < share * PPM:
            self._dropped[request.ticket] = asyncio.Event()
        else:
            self._inner.reserve(request, source_instance, kv_ready)

    def kv_ready(self, ticket: Ticket) -> None:
        self._inner.kv_ready(ticket)

    async def decode(self, request: EngineRequest, handed: HandedOver, fetch_kv: FetchKv) -> AsyncIterator[DecodeEvent]:
        dropped = self._dropped.get(request.ticket)
        if dropped is not None:
            await dropped.wait()
            raise EngineAborted(0)
        async for event in self._inner.decode(request, handed, fetch_kv):
            yield event

    async def local(self, request: EngineRequest) -> AsyncIterator[DecodeEvent | Prefilled]:
        async for event in self._inner.local(request):
            yield event

    def abort(self, ticket: Ticket) -> None:
        dropped = self._dropped.pop(ticket, None)
        if dropped is not None:
            dropped.set()
        self._inner.abort(ticket)

    def load(self) -> InstanceLoad:
        load, lie = self._inner.load(), self._value("lie")
        return load if lie is None else InstanceLoad(*(round(lie * count) for count in load))

    def take_samples(self) -> Samples:
        samples, lie = self._inner.take_samples(), self._value("lie")
        if lie is None:
            return samples
        return samples._replace(steps=tuple(s._replace(duration_us=round(lie * s.duration_us)) for s in samples.steps))

    def sampled_at_us(self) -> int:
        return self._inner.sampled_at_us()

    def incidents(self) -> Incidents:
        return self._inner.incidents()

    async def close(self) -> None:
        await self._inner.close()
