"""What instances have reported of themselves since the scheduler started."""

import time
from typing import Final

from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.telemetry import Incidents
from hexagent.wire.telemetry import DeviceSample, Links, TelemetryReport

# Wall time without a report after which an instance counts as stale. Agents report at least once a second.
STALE_US: Final = 1_500_000


class Reported:
    """One instance. Sums begin with the scheduler."""

    __slots__ = (
        "accepted_tokens",
        "at_us",
        "devices",
        "drafted_tokens",
        "generated_tokens",
        "heard_ns",
        "incidents",
        "links",
        "load",
        "prefilled_tokens",
        "reused_tokens",
        "sampled_at_us",
        "steps",
        "steps_us",
    )

    def __init__(self, load: InstanceLoad) -> None:
        self.load = load
        self.at_us = 0  # model time of the last report
        self.heard_ns = 0  # when it came, monotonic
        self.devices: tuple[DeviceSample, ...] = ()
        self.incidents = Incidents()
        self.links: Links | None = None
        self.reused_tokens = 0
        self.prefilled_tokens = 0
        self.generated_tokens = 0
        self.drafted_tokens = 0  # by speculative decoding
        self.accepted_tokens = 0
        self.sampled_at_us = 0  # model time of the engine's last statistics, 0 = it gave none
        self.steps = 0
        self.steps_us = 0

    @property
    def silent_us(self) -> int:
        """Wall time since the last report."""
        return (time.monotonic_ns() - self.heard_ns) // 1_000

    @property
    def stale(self) -> bool:
        return self.silent_us > STALE_US

    def take(self, report: TelemetryReport) -> None:
        """Add one report."""
        telemetry = report.telemetry
        self.load, self.at_us, self.heard_ns = telemetry.load, telemetry.at_us, time.monotonic_ns()
        self.devices, self.incidents = report.devices, report.incidents
        self.links, self.sampled_at_us = report.links, report.sampled_at_us
        self.reused_tokens += telemetry.reused_tokens
        self.prefilled_tokens += telemetry.prefilled_tokens
        self.generated_tokens += telemetry.generated_tokens
        if telemetry.speculation is not None:
            self.drafted_tokens += telemetry.speculation.drafted_tokens
            self.accepted_tokens += telemetry.speculation.accepted_tokens
        self.steps += sum([step.steps for step in telemetry.steps])
        self.steps_us += sum([step.duration_us for step in telemetry.steps])


class Reports(dict[str, Reported]):
    """By instance, of those that have reported."""

    def take(self, report: TelemetryReport) -> None:
        """Add one report."""
        instance_id = report.telemetry.instance_id
        if instance_id not in self:
            self[instance_id] = Reported(report.telemetry.load)
        self[instance_id].take(report)
