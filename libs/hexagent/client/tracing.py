"""The caller's own trace, handed on with the start of a workflow."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The current OpenTelemetry context as gRPC metadata; empty where the program has none.

    A program that has not imported OpenTelemetry cannot have one, and importing it would cost it a tenth of a second.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
