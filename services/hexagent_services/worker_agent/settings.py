"""Settings of a worker-agent."""

from pathlib import Path
from typing import ClassVar

from hexagent.runtime.settings import Settings, setting


class WorkerAgentSettings(Settings):
    service: ClassVar[str] = "worker-agent"

    agent_id: str = setting("", "", "Which of the cluster's agents this is.", min_length=1)
    telemetry_period_s: float = setting(0.5, "s", "Wall time between two reports of what changed.", ge=0.1, le=1)
    engines_file: Path | None = setting(None, "", "TOML of the instances with real engines; the others are emulated.")
    quarantine_failures: int = setting(5, "", "Failures of an engine after which it is not tried again.", ge=1, le=1000)
    quarantine_within_s: float = setting(600.0, "s", "Wall time they fall into.", gt=0)
    quarantine_s: float = setting(1800.0, "s", "Wall time after which it is tried again all the same.", gt=0)
    faults: str = setting("", "", "Fault plan for drills: KIND:INSTANCE[=VALUE][@FROM[-TO]], comma-separated.")
