"""What the dag-tracker reads from its environment."""

from pathlib import Path
from typing import ClassVar

from hexagent.core.workflow.limits import Limits
from hexagent.runtime.settings import Settings, setting
from hexagent_services.dag_tracker.relay import RelayLimits

_LIMITS = Limits()
_RELAY = RelayLimits()


class TrackerSettings(Settings):
    """Bounds of what clients make grow; each has a defined answer when it is hit."""

    service: ClassVar[str] = "dag-tracker"

    cluster_wait_s: float = setting(60.0, "s", "How long a start waits for the cluster record.", gt=0, le=3600)
    tick_s: float = setting(
        1.0, "s", "Wall time between looks at tool timeouts, idle workflows and unused bodies.", gt=0, le=60
    )
    live_workflows_max: int = setting(_LIMITS.live_workflows, "workflows", "Open at a time.", ge=1)
    finished_workflows_kept: int = setting(
        _LIMITS.finished_workflows, "workflows", "Ended ones that can still be read; the oldest go first.", ge=0
    )
    idle_expiry_s: float = setting(
        _LIMITS.idle_expiry_us / 1e6, "s of model time", "A workflow nobody moves for so long is abandoned.", gt=0
    )
    tool_timeout_s: float = setting(
        _LIMITS.tool_timeout_us / 1e6, "s of model time", "Default and longest run of a tool.", gt=0
    )
    watchers_max: int = setting(_RELAY.watchers, "streams", "Open watches.", ge=1)
    watcher_queue_bytes: int = setting(
        _RELAY.queued_bytes, "bytes", "Unread by one watcher; beyond it the watch ends and can resume.", ge=64 * 1024
    )
    metrics_port: int = setting(0, "", "Port of Prometheus' `/metrics`, on `listen_host`; 0: off.", ge=0, le=65535)
    trace_file: Path | None = setting(None, "", "File that gets every span as a JSON line; absent: none.")
    trace_file_bytes_max: int = setting(256 << 20, "bytes", "Size at which nothing more is written to it.", ge=4096)
    trace_queue_max: int = setting(20_000, "nodes", "Ended ones without spans yet; further ones get none.", ge=1)
    segment_grace_s: float = setting(
        600.0, "s", "Wall time from the end of the last workflow that names a body to its deletion.", ge=0
    )
    known_segments_max: int = setting(200_000, "segments", "Digests remembered as stored.", ge=0)

    def limits(self) -> Limits:
        """Bounds of the core."""
        return _LIMITS._replace(
            live_workflows=self.live_workflows_max,
            finished_workflows=self.finished_workflows_kept,
            idle_expiry_us=round(self.idle_expiry_s * 1e6),
            tool_timeout_us=round(self.tool_timeout_s * 1e6),
        )

    def relay_limits(self) -> RelayLimits:
        """Bounds of the watchers."""
        return RelayLimits(self.watchers_max, self.watcher_queue_bytes)
