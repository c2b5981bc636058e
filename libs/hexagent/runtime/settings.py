"""What a process reads from its environment: once, at start, checked and documented."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from hexagent.core.errors import InvalidArgument
from hexagent.runtime.bus import BusOptions
from hexagent.runtime.streams import StreamLimits

PREFIX: Final = "HEXAGENT_"

_LIMITS: Final = StreamLimits()


def setting(default: Any, unit: str, meaning: str, **constraints: Any) -> Any:
    """A documented field. `unit` is "" where there is none; `constraints` are pydantic's (ge, le, pattern...)."""
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit}, **constraints)


class Settings(BaseModel):
    """What every service has. A service adds its own fields in a subclass and sets `service`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    service: ClassVar[str] = "service"

    nats_url: str = setting("nats://127.0.0.1:4222", "", "NATS servers, comma-separated.", min_length=1)
    nats_connect_s: float = setting(30.0, "s", "How long a start waits for NATS.", gt=0, le=3600)
    bus_deadline_s: float = setting(10.0, "s", "Storing or reading one message, all attempts together.", gt=0, le=600)
    bus_in_flight_max: int = setting(4096, "messages", "Unacknowledged messages; further ones wait.", ge=1, le=65536)

    listen_host: str = setting("127.0.0.1", "", "Interface the gRPC server listens on.", min_length=1)
    listen_port: int = setting(0, "", "Its port; 0 takes a free one.", ge=0, le=65535)
    advertise_host: str = setting("", "", "Host that others reach this service by; empty: `listen_host`.")
    rpc_deadline_s: float = setting(5.0, "s", "Unary RPCs to other services.", gt=0, le=600)
    stop_grace_s: float = setting(10.0, "s", "Draining after SIGTERM before work is cut off.", ge=0, le=3600)

    data_dir: Path = setting(Path(".hexagent"), "", "Folder of journals and other local files.")
    ready_file: Path | None = setting(None, "", "File that gets the ready line, besides stdout.")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = setting("INFO", "", "Least level that is logged.")
    log_format: Literal["json", "human"] = setting("json", "", "One JSON object a line, or text for people.")
    otlp_endpoint: str = setting("", "", "OTLP gRPC receiver of traces and metrics; empty: none.")
    trace_sample_ratio: float = setting(1.0, "", "Share of traces that are recorded.", ge=0, le=1)

    workflow_stream_bytes: int = setting(_LIMITS.workflow_bytes, "bytes", "Disk for workflow events.", ge=2**20)
    workflow_stream_age_s: float = setting(_LIMITS.workflow_age_s, "s", "Age of workflow events; 0: any.", ge=0)
    outcome_stream_bytes: int = setting(_LIMITS.outcome_bytes, "bytes", "Disk for call outcomes.", ge=2**20)
    outcome_stream_age_s: float = setting(_LIMITS.outcome_age_s, "s", "Age of call outcomes; 0: any.", ge=0)
    token_stream_bytes: int = setting(_LIMITS.token_bytes, "bytes", "Memory for token deltas.", ge=2**20)
    token_stream_age_s: float = setting(_LIMITS.token_age_s, "s", "Age of token deltas; 0: any.", ge=0)
    decision_stream_bytes: int = setting(_LIMITS.decision_bytes, "bytes", "Disk for decision records.", ge=2**20)
    decision_stream_age_s: float = setting(_LIMITS.decision_age_s, "s", "Age of decision records; 0: any.", ge=0)
    segment_bucket_bytes: int = setting(_LIMITS.segment_bytes, "bytes", "Disk for segment bodies.", ge=2**20)
    segment_ttl_s: float = setting(_LIMITS.segment_age_s, "s", "Lifetime of segment bodies; 0: any.", ge=0)
    stream_replicas: int = setting(1, "", "Copies of each stream in a NATS cluster.", ge=1, le=5)

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, **overrides: object) -> Self:
        """Overrides before the environment before defaults; an empty variable counts as absent.

        InvalidArgument (BAD_SETTINGS) names every variable that is wrong and why.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, object] = {}
        for name in cls.model_fields:
            if text := environ.get(variable(name), ""):
                values[name] = text
        values.update(overrides)
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise _bad_settings(error) from None

    def bus_options(self, name: str = "") -> BusOptions:
        """How this service connects to NATS; `name` tells its processes apart."""
        return BusOptions(
            url=self.nats_url,
            name=name or self.service,
            connect_s=self.nats_connect_s,
            deadline_s=self.bus_deadline_s,
            in_flight_max=self.bus_in_flight_max,
        )

    def stream_limits(self) -> StreamLimits:
        """Sizes and ages of the streams; the same for every service of a stack."""
        return StreamLimits(
            workflow_bytes=self.workflow_stream_bytes,
            workflow_age_s=self.workflow_stream_age_s,
            outcome_bytes=self.outcome_stream_bytes,
            outcome_age_s=self.outcome_stream_age_s,
            token_bytes=self.token_stream_bytes,
            token_age_s=self.token_stream_age_s,
            decision_bytes=self.decision_stream_bytes,
            decision_age_s=self.decision_stream_age_s,
            segment_bytes=self.segment_bucket_bytes,
            segment_age_s=self.segment_ttl_s,
            replicas=self.stream_replicas,
        )

    def advertised(self, port: int) -> str:
        """The host:port that others reach this service by."""
        return f"{self.advertise_host or self.listen_host}:{port}"


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def settings_table(settings: type[Settings], *, own_only: bool = False) -> str:
    """A Markdown table of a service's settings; `own_only` leaves out what every service has."""
    lines = ["| variable | default | unit | meaning |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        if own_only and name in Settings.model_fields:
            continue
        lines.append(f"| `{variable(name)}` | {_default(field)} | {_unit(field)} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default in ("", None) else f"`{field.default}`"


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def _bad_settings(error: pydantic.ValidationError) -> InvalidArgument:
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        problems[variable(str(item["loc"][0])) if item["loc"] else "settings"] = item["msg"]
    text = "; ".join(f"{name}: {message}" for name, message in problems.items())
    return InvalidArgument(
        f"wrong settings: {text}", reason="BAD_SETTINGS", field=next(iter(problems), ""), details=problems
    )
