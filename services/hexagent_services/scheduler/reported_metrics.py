"""What instances report beside their load, as metrics: tokens, steps and devices."""

from collections.abc import Sequence
from typing import Final

from hexagent.core.units import US_PER_S
from hexagent.runtime.metrics import Metrics
from hexagent_services.scheduler.reported import Reported

# Fields of `DeviceSample`, their metric, unit and meaning.
_DEVICE: Final = (
    ("utilization_percent", "utilization", "%", "Share of time with a kernel running."),
    ("memory_used_bytes", "memory.used", "By", "Memory in use."),
    ("memory_total_bytes", "memory.total", "By", "Memory in all."),
    ("power_watts", "power", "W", "Power draw."),
    ("temperature_celsius", "temperature", "Cel", "Temperature."),
    ("sm_clock_mhz", "clock", "MHz", "Clock of the multiprocessors."),
    ("throttle_reasons", "throttle_reasons", "1", "The driver's bit mask of reasons for a lowered clock."),
)


class ReportedMetrics:
    """Sums are those since the scheduler started. `names` are the labels of an instance."""

    def __init__(self, metrics: Metrics, names: Sequence[str]) -> None:
        self._silent = metrics.gauge("hexagent.instance.telemetry.age", "Wall time since its last report.", names, "s")
        self._sampled = metrics.gauge(
            "hexagent.instance.sample.age", "Time since its engine last gave statistics.", names, "s"
        )
        self._queued = metrics.gauge(
            "hexagent.instance.queue.age", "How long the oldest call that waits for prefill does.", names, "s"
        )
        self._tokens = metrics.gauge(
            "hexagent.instance.tokens",
            "Tokens of prompts reused and computed, those generated, and those drafted for speculation and accepted.",
            (*names, "hexagent.state"),
            "{token}",
        )
        self._steps = metrics.gauge("hexagent.instance.steps", "Engine steps.", names, "{step}")
        self._steps_us = metrics.gauge("hexagent.instance.steps.duration", "Time of all of them.", names, "s")
        self._incidents = metrics.gauge(
            "hexagent.instance.incidents",
            "Since its agent started: hand-offs dropped, gaps of KV events, restarts, quarantines; KV blocks leaked.",
            (*names, "hexagent.incident"),
            "{incident}",
        )
        self._links = metrics.gauge(
            "hexagent.instance.links",
            "Its links to decode instances that are warm, not yet, or failed to be.",
            (*names, "hexagent.state"),
            "{link}",
        )
        self._devices = {
            field: metrics.gauge(f"hexagent.device.{name}", meaning, (*names, "hexagent.device"), unit)
            for field, name, unit, meaning in _DEVICE
        }

    def set(self, reported: Reported, labels: Sequence[str], now_us: int) -> None:
        """Everything of one instance as it is at model time `now_us`."""
        self._silent.set(reported.silent_us / US_PER_S, *labels)
        if reported.sampled_at_us:
            self._sampled.set(max(now_us - reported.sampled_at_us, 0) / US_PER_S, *labels)
        oldest_us = reported.load.oldest_queued_us or now_us
        self._queued.set(max(now_us - oldest_us, 0) / US_PER_S, *labels)
        for state in ("reused", "prefilled", "generated", "drafted", "accepted"):
            self._tokens.set(getattr(reported, f"{state}_tokens"), *labels, state)
        self._steps.set(reported.steps, *labels)
        self._steps_us.set(reported.steps_us / US_PER_S, *labels)
        for kind, count in reported.incidents._asdict().items():
            self._incidents.set(count, *labels, kind)
        if (links := reported.links) is not None:
            for state, count in (("warm", links.warm), ("cold", links.cold), ("failed", len(links.failed))):
                self._links.set(count, *labels, state)
        for rank, device in enumerate(reported.devices):
            for field, gauge in self._devices.items():
                if (value := getattr(device, field)) is not None:
                    gauge.set(value, *labels, str(rank))
