"""The typed error tree; `hexagent.wire.status` maps each class to a gRPC status and an HTTP code."""

from collections.abc import Callable, Mapping
from functools import partial


class HexagentError(Exception):
    """Base of every error a user can meet.

    `reason` is a stable SCREAMING_CASE cause, `field` the offending input ("" when none),
    `details` further machine-readable facts (limits, missing digests, retry_after_us).
    """

    def __init__(self, message: str, *, reason: str, field: str = "", details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = field
        self.details: dict[str, str] = dict(details or {})

    def __reduce__(self) -> tuple[Callable[[str], "HexagentError"], tuple[str]]:
        """Whole in another process as well; an exception's own way forgets what has a name."""
        return partial(type(self), reason=self.reason, field=self.field, details=self.details), (self.message,)


class InvalidArgument(HexagentError):
    """The input can never be right: wrong type, out of range, cycle, unknown parent."""


class NotFound(HexagentError):
    """The named workflow, call, instance or model does not exist."""


class AlreadyExists(HexagentError):
    """The id is taken by other content."""


class FailedPrecondition(HexagentError):
    """Right in another state: finished or cancelled workflow, missing segments."""


class ResourceExhausted(HexagentError):
    """A named limit is reached; `details["retry_after_us"]` says when to try again, if ever."""


class DeadlineExceeded(HexagentError):
    """The deadline passed before the work could finish."""


class Cancelled(HexagentError):
    """The work was cancelled by its owner or by a join that no longer needs it."""


class Aborted(HexagentError):
    """A concurrent change won: stale epoch, preemption."""


class Unavailable(HexagentError):
    """A part of the system is down or starting; retrying is right."""


class Unsupported(HexagentError):
    """The engine or profile in use lacks the named capability."""


class PermissionDenied(HexagentError):
    """The tenant may not do this."""


class Internal(HexagentError):
    """A broken promise of our own; always worth a bug report."""
