"""Settings of the estimator."""

from typing import ClassVar

from hexagent.runtime.settings import Settings, setting


class EstimatorSettings(Settings):
    service: ClassVar[str] = "estimator"

    snapshot_period_s: float = setting(0.5, "s", "Wall time between two snapshots, when something changed.", ge=0.05)
