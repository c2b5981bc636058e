"""The chassis of every service: lifecycle, settings, clocks, gRPC, NATS, logs and telemetry."""
