"""Measurements under OpenTelemetry names, for an OTLP receiver and for Prometheus at once.

What clients choose may become a label, so labels are bounded: beyond `VALUES_MAX` values of a label, and beyond
`SERIES_MAX` combinations of one instrument, everything new counts as `other`. Ids of workflows and calls never
become labels. Durations are seconds of model time.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from opentelemetry.metrics import Meter

from hexagent.core.errors import Unavailable

if TYPE_CHECKING:
    # Imported where it is used: it takes a tenth of a second, which only those whom Prometheus asks should pay.
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics import MetricWrapperBase

    Metric = TypeVar("Metric", bound=MetricWrapperBase)

VALUES_MAX: Final = 1_000  # of a label
SERIES_MAX: Final = 10_000  # of an instrument
OTHER: Final = "other"

_UNITS: Final = {"s": "_seconds", "By": "_bytes"}  # what Prometheus' names end with


class LabelBounds:
    """Which values each label has; shared by all instruments of a service, so that `other` means the same in all."""

    def __init__(self, values_max: int = VALUES_MAX) -> None:
        self._values_max = values_max
        self._known: dict[str, set[str]] = {}

    def value(self, label: str, value: str) -> str:
        """`value`, or `other` where the label has too many already."""
        known = self._known.setdefault(label, set())
        if value not in known:
            if len(known) >= self._values_max:
                return OTHER
            known.add(value)
        return value


class Labels:
    """The labels of one instrument."""

    def __init__(self, names: Sequence[str], bounds: LabelBounds, series_max: int = SERIES_MAX) -> None:
        self.names: Final = tuple(names)
        self._bounds = bounds
        self._series_max = series_max
        self._series: set[tuple[str, ...]] = set()

    def bounded(self, values: Sequence[str]) -> tuple[str, ...]:
        """One value a name, as they are recorded."""
        series = tuple(self._bounds.value(name, value) for name, value in zip(self.names, values, strict=True))
        if series not in self._series:
            if len(self._series) >= self._series_max:
                return (OTHER,) * len(self.names)
            self._series.add(series)
        return series

    def attributes(self, series: tuple[str, ...]) -> dict[str, str]:
        """As OpenTelemetry takes them, without those that say nothing."""
        return {name: value for name, value in zip(self.names, series, strict=True) if value}


class Metrics:
    """The instruments of a service. `registry` is absent where Prometheus is not served."""

    def __init__(self, meter: Meter, registry: "CollectorRegistry | None") -> None:
        self._meter = meter
        self._registry = registry
        self._bounds = LabelBounds()

    def counter(self, name: str, meaning: str, labels: Sequence[str], unit: str = "1") -> "Counter":
        """Something that only grows."""
        return Counter(self._meter, self._registry, name, meaning, unit, Labels(labels, self._bounds))

    def histogram(
        self, name: str, meaning: str, labels: Sequence[str], buckets: Sequence[float], unit: str = "s"
    ) -> "Histogram":
        """How values are distributed; `buckets` are rising upper bounds."""
        return Histogram(self._meter, self._registry, name, meaning, unit, Labels(labels, self._bounds), buckets)

    def gauge(self, name: str, meaning: str, labels: Sequence[str], unit: str = "1") -> "Gauge":
        """Something as it is now."""
        return Gauge(self._meter, self._registry, name, meaning, unit, Labels(labels, self._bounds))


class Counter:
    def __init__(
        self,
        meter: Meter,
        registry: "CollectorRegistry | None",
        name: str,
        meaning: str,
        unit: str,
        labels: Labels,
    ) -> None:
        self._labels = labels
        self._otel = meter.create_counter(name, unit, meaning)
        self._prometheus = None
        if registry is not None:
            import prometheus_client

            names = prometheus_labels(labels)
            self._prometheus = prometheus_client.Counter(prometheus_name(name, unit), meaning, names, registry=registry)

    def add(self, amount: float, *values: str) -> None:
        """`values` of the labels, in their order."""
        series = self._labels.bounded(values)
        self._otel.add(amount, self._labels.attributes(series))
        if self._prometheus is not None:
            _of_series(self._prometheus, series).inc(amount)


class Histogram:
    def __init__(
        self,
        meter: Meter,
        registry: "CollectorRegistry | None",
        name: str,
        meaning: str,
        unit: str,
        labels: Labels,
        buckets: Sequence[float],
    ) -> None:
        self._labels = labels
        self._otel = meter.create_histogram(
            name, unit, meaning, explicit_bucket_boundaries_advisory=[float(bound) for bound in buckets]
        )
        self._prometheus = None
        if registry is not None:
            import prometheus_client

            names = prometheus_labels(labels)
            self._prometheus = prometheus_client.Histogram(
                prometheus_name(name, unit), meaning, names, buckets=tuple(buckets), registry=registry
            )

    def observe(self, value: float, *values: str) -> None:
        """One value; `values` of the labels, in their order."""
        series = self._labels.bounded(values)
        self._otel.record(value, self._labels.attributes(series))
        if self._prometheus is not None:
            _of_series(self._prometheus, series).observe(value)


class Gauge:
    def __init__(
        self,
        meter: Meter,
        registry: "CollectorRegistry | None",
        name: str,
        meaning: str,
        unit: str,
        labels: Labels,
    ) -> None:
        self._labels = labels
        self._otel = meter.create_gauge(name, unit, meaning)
        self._prometheus = None
        if registry is not None:
            import prometheus_client

            names = prometheus_labels(labels)
            self._prometheus = prometheus_client.Gauge(prometheus_name(name, unit), meaning, names, registry=registry)

    def set(self, value: float, *values: str) -> None:
        """`values` of the labels, in their order."""
        series = self._labels.bounded(values)
        self._otel.set(value, self._labels.attributes(series))
        if self._prometheus is not None:
            _of_series(self._prometheus, series).set(value)


class MetricsServer:
    """Prometheus' endpoint, `/metrics`, on a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        """`Unavailable` (PORT_TAKEN) where the address cannot be bound."""
        import prometheus_client

        self.registry: Final = prometheus_client.CollectorRegistry()
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, host, self.registry)
        except OSError as error:
            raise Unavailable(
                f"cannot serve metrics on {host}:{port}: {error.strerror}", reason="PORT_TAKEN", field="metrics_port"
            ) from error
        self.port: Final = int(self._server.server_port)

    async def close(self) -> None:
        """End the endpoint."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()


def _of_series(metric: "Metric", series: tuple[str, ...]) -> "Metric":
    """The part of a metric with these labels; one without labels has no parts."""
    return metric.labels(*series) if series else metric


def prometheus_name(name: str, unit: str) -> str:
    """As OpenTelemetry's exporters name it for Prometheus."""
    plain = name.replace(".", "_")
    suffix = _UNITS.get(unit, "")
    return plain if plain.endswith(suffix) else plain + suffix


def prometheus_labels(labels: Labels) -> list[str]:
    return [name.replace(".", "_") for name in labels.names]
