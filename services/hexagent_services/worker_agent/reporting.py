"""Telemetry of the agent's instances, a few times a second of wall time, on core NATS."""

import asyncio
from collections.abc import Callable
from typing import Final

from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.telemetry import Telemetry
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.runtime.clock import Clock
from hexagent.wire.telemetry import Links, TelemetryReport, telemetry_to_bytes
from hexagent_services.worker_agent.devices import Devices
from hexagent_services.worker_agent.engine.supervision import Supervisor

REPEAT_S: Final = 1.0  # wall time after which an instance is reported again though nothing changed


async def report_telemetry(
    agent_id: str,
    supervisors: dict[str, Supervisor],
    devices: Devices,
    links_of: Callable[[str], Links | None],
    bus: Bus,
    clock: Clock,
    period_s: float,
) -> None:
    """Publish once a period what is new of any instance, until cancelled."""
    last: dict[str, tuple[InstanceLoad, int]] = {}  # load and sequence of each instance's last report
    periods = 0
    while True:
        await asyncio.sleep(period_s)
        periods += 1
        everything = periods % max(1, int(REPEAT_S / period_s)) == 0
        reports: list[TelemetryReport] = []
        for instance_id, supervisor in supervisors.items():
            load, samples = supervisor.engine.load(), supervisor.engine.take_samples()
            known, sequence = last.get(instance_id, (None, 0))
            if everything or load != known or any(samples):
                last[instance_id] = (load, sequence + 1)
                telemetry = Telemetry(instance_id, clock.now_us(), load, *samples)
                incidents, sampled_at_us = supervisor.incidents(), supervisor.engine.sampled_at_us()
                shown = devices.of(instance_id), incidents, links_of(instance_id), sampled_at_us
                reports.append(TelemetryReport(telemetry, sequence + 1, *shown))
        if reports:
            bus.publish_core(subjects.telemetry(agent_id), telemetry_to_bytes(reports))
