"""Errors as the OpenAI API shows them."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from starlette.responses import JSONResponse, Response

from hexagent.core.errors import HexagentError
from hexagent.core.units import US_PER_S
from hexagent.wire.status import http_code
from hexagent_services.gateway.chat import HexagentOptions

TOO_LARGE: Final = 413

_TYPES: Final = {
    403: "permission_error",
    429: "rate_limit_error",
    499: "request_cancelled",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_CODES: Final = {"UNKNOWN_MODEL": "model_not_found", "PROMPT_TOO_LARGE": "context_length_exceeded"}
_STATUSES: Final = {"BODY_TOO_LARGE": TOO_LARGE}  # what HTTP has a number of its own for
# Where the tracker finds a field, and where the client has put it.
_PATH: Final = re.compile(r"^(?:nodes\[\d+\]\.|spec\.)(?:call\.)?(?:request\.)?(?:sampling\.)?(?:hints\.)?")
_RENAMED: Final = {"segments": "messages", "prompt_tokens": "messages"}


class Failure(NamedTuple):
    """An error's HTTP status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class Failures:
    """Shows errors; `retry_after_s` holds where a 429 or 503 names no time of its own."""

    def __init__(self, time_scale: float, retry_after_s: int) -> None:
        self._time_scale = time_scale
        self._retry_after_s = retry_after_s

    def of(self, error: HexagentError) -> Failure:
        """How a client sees the error."""
        status = _STATUSES.get(error.reason) or http_code(error)
        field = client_field(error.field)
        message = error.message
        if error.field and field != error.field:
            message = message.replace(error.field, field)
        headers: dict[str, str] = {}
        if status in (429, 503):
            headers["retry-after"] = str(_retry_after_s(error, self._time_scale) or self._retry_after_s)
        kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
        code = _CODES.get(error.reason, error.reason.lower())
        body = {"error": {"message": message, "type": kind, "param": field or None, "code": code}}
        return Failure(status, headers, body)

    def response(self, error: HexagentError, headers: Mapping[str, str]) -> Response:
        """The error as a whole answer."""
        failure = self.of(error)
        return JSONResponse(dict(failure.body), failure.status, {**headers, **failure.headers})


def client_field(field: str) -> str:
    """The name under which the client sent what the tracker calls `field`."""
    inner = _PATH.sub("", field)
    if inner == field:
        return field
    head, dot, rest = inner.partition(".")
    name, bracket, index = head.partition("[")
    inner = _RENAMED.get(name, name) + bracket + index + dot + rest
    return f"hexagent.{inner}" if name in HexagentOptions.model_fields else inner


def _retry_after_s(error: HexagentError, time_scale: float) -> int:
    """Whole wall seconds, at least one; 0 where the error names no time."""
    retry_after_us = error.details.get("retry_after_us", "")
    if not retry_after_us.isdecimal():
        return 0
    return max(1, math.ceil(int(retry_after_us) / (US_PER_S * time_scale)))
