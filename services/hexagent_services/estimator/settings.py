"""Settings of the estimator."""

from typing import ClassVar

from hexagent.runtime.settings import Settings, setting


class EstimatorSettings(Settings):
    service: ClassVar[str] = "estimator"

    metrics_port: int = setting(0, "", "Port of Prometheus' `/metrics`, on `listen_host`; 0: off.", ge=0, le=65535)
    snapshot_period_s: float = setting(0.5, "s", "Wall time between two snapshots, when something changed.", ge=0.05)
