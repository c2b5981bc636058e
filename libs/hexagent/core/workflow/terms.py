"""Checks the terms of a workflow: who it belongs to, what it hints, how soon it must be done; what its calls demand."""

from hexagent.core.errors import DeadlineExceeded, InvalidArgument, NotFound
from hexagent.core.estimate.roofline import PRECISION_BYTES
from hexagent.core.ids import checked_id
from hexagent.core.workflow.limits import Catalog, Limits
from hexagent.core.workflow.model import CallSpec, WorkflowSpec

PRIORITY_MAX = 100  # either side of 0


def validate_start(spec: WorkflowSpec, limits: Limits, catalog: Catalog, now_us: int) -> None:
    """Raises InvalidArgument, NotFound (UNKNOWN_TENANT) or DeadlineExceeded (DEADLINE_PASSED)."""
    checked_id(spec.workflow_id, "workflow_id")
    if spec.tenant not in catalog.tenants:
        raise NotFound(
            f"there is no tenant {spec.tenant[:40]!r}; known: {', '.join(catalog.tenants)}",
            reason="UNKNOWN_TENANT",
            field="tenant",
        )
    if spec.workflow_class:
        checked_id(spec.workflow_class, "workflow_class")
    validate_terms(spec, limits, now_us)
    hints = spec.hints
    for name, value, limit in (
        ("hints.total_solo_us", hints.total_solo_us, limits.duration_us),
        ("hints.total_calls", hints.total_calls, limits.hinted_calls),
    ):
        if not 0 <= value <= limit:
            raise _out_of_range("HINT_TOO_LARGE", name, value, 0, limit)
    size = sum(len(key.encode()) + len(value.encode()) for key, value in spec.metadata)
    if len(spec.metadata) > limits.metadata_entries or size > limits.metadata_bytes:
        raise InvalidArgument(
            f"metadata: {len(spec.metadata)} entries of {size} bytes, the limits are {limits.metadata_entries}"
            f" and {limits.metadata_bytes}",
            reason="METADATA_TOO_LARGE",
            field="metadata",
        )


def validate_terms(spec: WorkflowSpec, limits: Limits, now_us: int) -> None:
    """Raises InvalidArgument (BAD_PRIORITY, BAD_SLO_SCALE, BAD_DEADLINE) or DeadlineExceeded (DEADLINE_PASSED)."""
    if not -PRIORITY_MAX <= spec.priority <= PRIORITY_MAX:
        raise _out_of_range("BAD_PRIORITY", "priority", spec.priority, -PRIORITY_MAX, PRIORITY_MAX)
    if not 0 <= spec.slo_scale_milli <= limits.slo_scale_milli:
        raise _out_of_range("BAD_SLO_SCALE", "slo_scale_milli", spec.slo_scale_milli, 0, limits.slo_scale_milli)
    if spec.deadline_us < 0 or spec.deadline_us > now_us + limits.duration_us:
        raise _out_of_range("BAD_DEADLINE", "deadline_us", spec.deadline_us, 0, now_us + limits.duration_us)
    if 0 < spec.deadline_us <= now_us:
        raise DeadlineExceeded(
            f"the deadline {spec.deadline_us} us has passed, it is {now_us} us",
            reason="DEADLINE_PASSED",
            field="deadline_us",
            details={"deadline_us": str(spec.deadline_us), "now_us": str(now_us)},
        )


def validate_demands(call: CallSpec, path: str, catalog: Catalog) -> None:
    """Raises NotFound UNKNOWN_MODEL or InvalidArgument PROMPT_TOO_LARGE, UNKNOWN_PRECISION, PRECISION_NOT_SERVED."""
    _validate_size(call, path, catalog)
    _validate_precision(call, path, catalog)


def _validate_size(call: CallSpec, path: str, catalog: Catalog) -> None:
    """Some instance could prefill it, and some decode it."""
    limit = catalog.largest_kv_tokens.get(call.model)
    if limit is None:
        raise NotFound(
            f"{path}.model: there is no model {call.model[:80]!r}; known: {', '.join(catalog.largest_kv_tokens)}",
            reason="UNKNOWN_MODEL",
            field=f"{path}.model",
        )
    for needed, largest, does in (
        (call.prompt_tokens, catalog.largest_prompt_tokens.get(call.model, limit), "prefills"),
        (call.prompt_tokens + call.max_tokens, limit, "decodes"),
    ):
        if needed > largest:
            raise InvalidArgument(
                f"{path}: {call.prompt_tokens} prompt and at most {call.max_tokens} output tokens fit no instance that"
                f" {does} {call.model}; the largest holds {largest}",
                reason="PROMPT_TOO_LARGE",
                field=f"{path}.prompt_tokens",
                details={"limit": str(largest)},
            )


def _validate_precision(call: CallSpec, path: str, catalog: Catalog) -> None:
    """All instances of its model, any of which may get it, are as precise as it wants."""
    field, wanted, least = f"{path}.hints.min_precision", call.min_precision, catalog.least_precision.get(call.model)
    if not wanted:
        return
    if wanted not in PRECISION_BYTES:
        message = f"{field}: there is no precision {wanted[:40]!r}; known: {', '.join(PRECISION_BYTES)}"
        raise InvalidArgument(message, reason="UNKNOWN_PRECISION", field=field)
    if least is not None and PRECISION_BYTES[least] < PRECISION_BYTES[wanted]:
        message = f"{field}: weights of {call.model} are in {least} on some instance, the call wants {wanted} at least"
        raise InvalidArgument(message, reason="PRECISION_NOT_SERVED", field=field, details={"limit": least})


def validate_text(reason: str, message: str, limits: Limits) -> None:
    """Raises InvalidArgument REASON_TOO_LONG for what a client says about an end."""
    if len(reason) > limits.reason_chars or len(message) > limits.message_chars:
        raise InvalidArgument(
            f"a reason has at most {limits.reason_chars} characters, a message {limits.message_chars}",
            reason="REASON_TOO_LONG",
            field="reason" if len(reason) > limits.reason_chars else "message",
        )


def _out_of_range(reason: str, field: str, value: int, low: int, high: int) -> InvalidArgument:
    return InvalidArgument(
        f"{field} must be {low} to {high}; got {value}", reason=reason, field=field, details={"limit": str(high)}
    )
