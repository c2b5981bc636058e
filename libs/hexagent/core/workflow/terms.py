"""Checks the terms of a workflow: who it belongs to, what it hints, how soon it must be done; what its calls demand."""

from hexagent.core.errors import DeadlineExceeded, InvalidArgument, NotFound
from hexagent.core.estimate.roofline import PRECISION_BYTES
from hexagent.core.ids import checked_id
from hexagent.core.instance.needs import ANYTHING, Needs, served, serves
from hexagent.core.instance.spec import Role
from hexagent.core.workflow.limits import Catalog, Limits, largest_kv_tokens
from hexagent.core.workflow.model import CallSpec, WorkflowSpec

PRIORITY_MAX = 100  # either side of 0
_NAMED_MAX = 20  # adapters in an error


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
    """Some instances could run the call from prompt to end.

    Raises NotFound UNKNOWN_MODEL or UNKNOWN_LORA, or InvalidArgument UNKNOWN_PRECISION, PRECISION_NOT_SERVED or
    PROMPT_TOO_LARGE.
    """
    decodes = catalog.largest_kv_tokens.get(call.model)
    if decodes is None:
        raise NotFound(
            f"{path}.model: there is no model {call.model[:80]!r}; known: {', '.join(catalog.largest_kv_tokens)}",
            reason="UNKNOWN_MODEL",
            field=f"{path}.model",
        )
    prefills = catalog.largest_prompt_tokens.get(call.model, decodes)
    if call.needs != ANYTHING:
        _validate_needs(call, path, catalog)
        able = [spec for spec in catalog.engines[call.model] if serves(spec, call.needs)]
        prefills, decodes = largest_kv_tokens(able, Role.DECODE), largest_kv_tokens(able, Role.PREFILL)
    _validate_size(call, path, prefills, decodes)


def _validate_needs(call: CallSpec, path: str, catalog: Catalog) -> None:
    """Some instances serve the adapter, and some of these are as precise as the call wants."""
    engines, wanted = catalog.engines[call.model], call.min_precision
    if not served(engines, Needs(call.lora)):
        names = sorted({lora.name for spec in engines for lora in spec.loras})
        known = ", ".join([name for name in names if served(engines, Needs(name))][:_NAMED_MAX]) or "none"
        message = f"{path}.lora: {call.model} has no adapter {call.lora[:80]!r}; known: {known}"
        raise NotFound(message, reason="UNKNOWN_LORA", field=f"{path}.lora")
    field = f"{path}.hints.min_precision"
    if wanted and wanted not in PRECISION_BYTES:
        message = f"{field}: there is no precision {wanted[:40]!r}; known: {', '.join(PRECISION_BYTES)}"
        raise InvalidArgument(message, reason="UNKNOWN_PRECISION", field=field)
    if not served(engines, call.needs):
        limit = max(PRECISION_BYTES, key=lambda name: served(engines, Needs(call.lora, name)) * PRECISION_BYTES[name])
        what = f"{call.model} with adapter {call.lora}" if call.lora else call.model
        message = f"{field}: weights of {what} are in {limit} at most, the call wants {wanted} at least"
        raise InvalidArgument(message, reason="PRECISION_NOT_SERVED", field=field, details={"limit": limit})


def _validate_size(call: CallSpec, path: str, prefills: int, decodes: int) -> None:
    """What its prompt and its output need fits the KV tokens of the largest instance for each phase."""
    for needed, largest, does in (
        (call.prompt_tokens, prefills, "prefills"),
        (call.prompt_tokens + call.max_tokens, decodes, "decodes"),
    ):
        if needed > largest:
            raise InvalidArgument(
                f"{path}: {call.prompt_tokens} prompt and at most {call.max_tokens} output tokens fit no instance that"
                f" {does} {call.model} as the call needs it; the largest holds {largest}",
                reason="PROMPT_TOO_LARGE",
                field=f"{path}.prompt_tokens",
                details={"limit": str(largest)},
            )


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
