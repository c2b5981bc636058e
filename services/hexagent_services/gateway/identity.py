"""Who asks: tenant, session, priority and trace, from the headers that agent harnesses send."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.tracing import TraceContext, context_from
from hexagent.wire.edge import DEFAULT_NAME, PRIORITY_MAX

SESSION_CHARS_MAX: Final = 256
REQUEST_ID_CHARS_MAX: Final = 128
SERVICE_TIERS: Final[Mapping[str, int | None]] = {"auto": None, "default": 0, "flex": -50, "priority": 50}


class Schema(NamedTuple):
    """The headers of one way to name a session; fields of two schemas are never combined."""

    name: str
    session: tuple[str, ...]
    parent: tuple[str, ...] = ()


# The first schema whose session header is there wins.
SCHEMAS: Final = (
    Schema(
        "dynamo",
        ("x-dynamo-session-id", "x-dynamo-trajectory-id"),
        ("x-dynamo-parent-session-id", "x-dynamo-parent-trajectory-id"),
    ),
    Schema("session", ("x-session-id",), ("x-parent-session-id",)),
    Schema("hexagent", ("x-workflow-id",)),
    Schema("claude-code", ("x-claude-code-session-id",), ("x-claude-code-parent-agent-id",)),
    Schema("codex", ("session-id", "session_id")),
    Schema("affinity", ("x-session-affinity",), ("x-parent-session-id",)),
)
FINAL_HEADER: Final = "x-dynamo-session-final"
PRIORITY_HEADER: Final = "x-dynamo-request-priority"
REQUEST_ID_HEADER: Final = "x-request-id"

_TENANT_HEADERS: Final = ("x-tenant-id", "x-smg-tenant-id")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}\Z")


class SessionName(NamedTuple):
    """A session as its client names it."""

    schema: str
    session_id: str
    parent: str = ""
    final: bool = False  # no further request belongs to it


class Caller(NamedTuple):
    """What the headers of a request say."""

    tenant: str
    session: SessionName | None  # None = the request is a workflow of its own
    priority: int | None  # -100 to 100, higher = sooner; None = nothing said
    trace: TraceContext | None = None  # the span a workflow that starts with the request belongs under


def caller_of(headers: Mapping[str, str]) -> Caller:
    """Reads the headers. `InvalidArgument` (BAD_HEADER) naming the one that is wrong."""
    tenant = DEFAULT_NAME
    for name in _TENANT_HEADERS:
        if value := headers.get(name, ""):
            tenant = value
            break
    return Caller(tenant, _session(headers), _priority(headers), context_from(headers))


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's own id of the request, "" where it has none that can be sent back."""
    value = headers.get(REQUEST_ID_HEADER, "")
    return value if len(value) <= REQUEST_ID_CHARS_MAX and value.isascii() and value.isprintable() else ""


def workflow_id_of(tenant: str, session: SessionName) -> str:
    """The id of a session's workflow: every gateway that sees the session comes to the same one."""
    name = json.dumps([tenant, session.schema, session.session_id])
    return f"s-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def tier_priority(tier: str | None, header: int | None) -> int | None:
    """The priority of a request: its header's, else that of its `service_tier`, else None."""
    if header is not None or tier is None:
        return header
    return SERVICE_TIERS[tier]


def _session(headers: Mapping[str, str]) -> SessionName | None:
    for schema in SCHEMAS:
        for name in schema.session:
            if value := headers.get(name, ""):
                parent = next((headers[header] for header in schema.parent if headers.get(header)), "")
                return SessionName(schema.name, _text(name, value), _text("parent", parent), _final(headers))
    return None


def _text(name: str, value: str) -> str:
    if len(value) > SESSION_CHARS_MAX or not value.isprintable():
        raise _bad(name, f"at most {SESSION_CHARS_MAX} printable characters")
    return value


def _final(headers: Mapping[str, str]) -> bool:
    value = headers.get(FINAL_HEADER, "").lower()
    if value in ("true", "1"):
        return True
    if value in ("", "false", "0"):
        return False
    raise _bad(FINAL_HEADER, f"must be true or false; got {value[:20]!r}")


def _priority(headers: Mapping[str, str]) -> int | None:
    """Clamped, so that a huge value means the most and never wraps around to the least."""
    value = headers.get(PRIORITY_HEADER, "").strip()
    if not value:
        return None
    if not _NUMBER.match(value):
        raise _bad(PRIORITY_HEADER, f"must be a whole number; got {value[:30]!r}")
    return max(-PRIORITY_MAX, min(PRIORITY_MAX, int(value)))


def _bad(name: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"{name}: {text}", reason="BAD_HEADER", field=name)
