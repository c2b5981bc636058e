"""Settings of the scheduler."""

from pathlib import Path
from typing import ClassVar

from hexagent.core.scheduling.shadows import SHADOWS_MAX
from hexagent.runtime.settings import Settings, setting


class SchedulerSettings(Settings):
    service: ClassVar[str] = "scheduler"

    policy: str = setting("hexagent", "", "Scheduling policy: ORDER or ORDER:DISPATCHER.", min_length=1)
    shadow_policies: str = setting(
        "", "", f"Policies, at most {SHADOWS_MAX} with commas between, that plan beside it and do not act."
    )
    shadow_every: int = setting(
        10, "plans", "They plan at one of so many points where the policy plans.", ge=1, le=1_000_000
    )
    profile: Path | None = setting(None, "", "TOML file of what policies are tuned by; absent: the shipped one.")
    agent_dead_after_s: float = setting(2.0, "s", "Wall time without an agent before its calls are retried.", gt=0)
    metrics_port: int = setting(0, "", "Port of Prometheus' `/metrics`, on `listen_host`; 0: off.", ge=0, le=65535)
    journal_bytes_max: int = setting(256 << 20, "bytes", "Size at which a journal ends.", ge=1 << 16)
    journals_kept: int = setting(4, "files", "Journals of earlier starts that are kept.", ge=0, le=1000)
