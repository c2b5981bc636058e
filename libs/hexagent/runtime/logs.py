"""One line a log record on stderr, as JSON for machines or plain for people; sizes are bounded."""

import json
import logging
import sys
import time
from typing import Any, Final, Literal

LogFormat = Literal["json", "human"]

MESSAGE_CHARS_MAX: Final = 1_000
FIELD_CHARS_MAX: Final = 300
FIELDS_MAX: Final = 24
TRACEBACK_CHARS_MAX: Final = 8_000

_FIELDS: Final = "hexagent_fields"


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Structured fields of a record: `log.info("call ended", extra=fields(call=str(call), tokens=12))`."""
    return {_FIELDS: values}


def set_up_logs(service: str, instance: str = "", level: str = "INFO", form: LogFormat = "json") -> None:
    """Send every logger's records to stderr; called once, first thing in a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service, instance) if form == "json" else _HumanFormatter(service, instance))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 12]}…(+{len(text) - limit + 12})"


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    values: dict[str, object] = getattr(record, _FIELDS, {})
    bounded: dict[str, object] = {}
    for name, value in list(values.items())[:FIELDS_MAX]:
        bounded[name] = value if isinstance(value, bool | int | float | None) else _bounded(str(value), FIELD_CHARS_MAX)
    return bounded


class _Formatter(logging.Formatter):
    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._service = service
        self._instance = instance

    def _traceback(self, record: logging.LogRecord) -> str:
        if not record.exc_info:
            return ""
        text = self.formatException(record.exc_info)
        # The end names the error; the beginning of a deep traceback is the event loop's.
        return text if len(text) <= TRACEBACK_CHARS_MAX else "…" + text[-TRACEBACK_CHARS_MAX:]


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
        }
        if self._instance:
            line["instance"] = self._instance
        line["logger"] = record.name
        line["message"] = _bounded(record.getMessage(), MESSAGE_CHARS_MAX)
        if values := _fields_of(record):
            line["fields"] = values
        if text := self._traceback(record):
            line["traceback"] = text
        return json.dumps(line, ensure_ascii=False)


class _HumanFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = f"{self._service}/{self._instance}" if self._instance else self._service
        message = _bounded(record.getMessage(), MESSAGE_CHARS_MAX)
        line = f"{stamp}.{int(record.msecs):03d} {record.levelname:<7} {name:<18} {message}"
        if values := _fields_of(record):
            line += "  " + " ".join(f"{key}={value}" for key, value in values.items())
        text = self._traceback(record)
        return f"{line}\n{text}" if text else line
