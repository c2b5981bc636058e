"""Settings of the scheduler."""

from typing import ClassVar

from hexagent.runtime.settings import Settings, setting


class SchedulerSettings(Settings):
    service: ClassVar[str] = "scheduler"

    policy: str = setting("hexagent", "", "Scheduling policy: ORDER or ORDER:DISPATCHER.", min_length=1)
    agent_dead_after_s: float = setting(2.0, "s", "Wall time without an agent before its calls are retried.", gt=0)
