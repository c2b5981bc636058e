"""Telemetry of every instance, a few times a second of wall time, on core NATS."""

import asyncio

from hexagent.core.instance.telemetry import Telemetry
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.runtime.clock import Clock
from hexagent.wire.telemetry import TelemetryReport, telemetry_to_bytes
from hexagent_services.worker_agent.engine.port import Engine


async def report_telemetry(engines: dict[str, Engine], bus: Bus, clock: Clock, period_s: float) -> None:
    """Publish one report an instance and period, until cancelled."""
    sequence = 0
    while True:
        await asyncio.sleep(period_s)
        sequence += 1
        for instance_id, engine in engines.items():
            load, samples = engine.load(), engine.take_samples()
            telemetry = Telemetry(instance_id, clock.now_us(), load, *samples)
            report = TelemetryReport(telemetry, sequence)
            await bus.publish_core(subjects.telemetry(instance_id), telemetry_to_bytes(report))
