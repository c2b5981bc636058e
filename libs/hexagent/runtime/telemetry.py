"""OpenTelemetry set-up: exporting where an OTLP endpoint is configured, free of cost where none is."""

import asyncio
from typing import Any, Final, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.metrics import Meter
from opentelemetry.trace import Tracer

from hexagent.runtime.app import App, Stage
from hexagent.runtime.metrics import Metrics, MetricsServer
from hexagent.runtime.spans import OtlpSpans, SpanSink

METRIC_PERIOD_MS: Final = 5_000
SPAN_PERIOD_MS: Final = 1_000
SPANS_MAX: Final = 20_000  # waiting to be exported; further ones are dropped
EXPORT_TIMEOUT_S: Final = 3  # an absent receiver holds a stop up by twice that


class Telemetry(NamedTuple):
    """A service's own tracer and meter; without an endpoint both do nothing."""

    tracer: Tracer
    meter: Meter
    spans: SpanSink | None  # for spans known only when they have ended; None without an endpoint
    providers: "_Providers | None"

    async def shut_down(self) -> None:
        """Export what is buffered; takes at most some seconds of wall time, also where nobody listens."""
        if self.providers is not None:
            await asyncio.to_thread(self.providers.shut_down)


def set_up_telemetry(service: str, instance: str = "", endpoint: str = "", sample_ratio: float = 1.0) -> Telemetry:
    """`endpoint` is the host:port or URL of an OTLP gRPC receiver, "" for none; `sample_ratio` of traces, 0 to 1.

    Nothing is set globally: two services in one process keep their names apart.
    """
    if not endpoint:
        return Telemetry(
            trace.NoOpTracerProvider().get_tracer(service), metrics.NoOpMeterProvider().get_meter(service), None, None
        )
    providers = _Providers(service, instance, endpoint, sample_ratio)
    return Telemetry(
        providers.traces.get_tracer(service), providers.metrics.get_meter(service), providers.spans, providers
    )


def exported_metrics(app: App[Any], telemetry: Telemetry, port: int) -> Metrics | None:
    """Instruments of a service, None where neither an OTLP receiver nor Prometheus (`port`) would get them.

    Registers what a stop has to end: the endpoint and the telemetry itself.
    """
    app.at_stop(Stage.CLOSE, "telemetry", telemetry.shut_down)
    if telemetry.providers is None and not port:
        return None
    registry = None
    if port:
        server = MetricsServer(app.settings.listen_host, port)
        app.at_stop(Stage.CLOSE, "metrics", server.close)
        registry = server.registry
    return Metrics(telemetry.meter, registry)


class _Providers:
    """The SDK is imported here: it takes a fifth of a second, which only those who export should pay."""

    def __init__(self, service: str, instance: str, endpoint: str, sample_ratio: float) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        attributes = {"service.name": service, "service.namespace": "hexagent"}
        if instance:
            attributes["service.instance.id"] = instance
        resource = Resource.create(attributes)
        insecure = not endpoint.startswith("https://")
        self.traces = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(sample_ratio)), shutdown_on_exit=False
        )
        processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S),
            max_queue_size=SPANS_MAX,
            schedule_delay_millis=SPAN_PERIOD_MS,
        )
        self.traces.add_span_processor(processor)
        self.spans = OtlpSpans(processor, resource, service)
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S),
            export_interval_millis=METRIC_PERIOD_MS,
        )
        self.metrics = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)

    def shut_down(self) -> None:
        self.traces.shutdown()
        self.metrics.shutdown(timeout_millis=EXPORT_TIMEOUT_S * 1000)
