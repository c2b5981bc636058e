"""What calls and workflows end with, and the errors that failed ones raise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hexagent.api.common.v1 import call_pb2
from hexagent.core import errors
from hexagent.core.errors import HexagentError
from hexagent.core.ids import CallId
from hexagent.core.workflow.model import CallOutcome, CallTimes, FinishReason, NodeStatus
from hexagent.text.tools import ToolCall, tool_calls


class CallFailed(HexagentError):
    """A call or tool ended without success: by an engine's error, or because a parent failed (PARENT_FAILED).

    `result` is how a call ended, with what it had used by then; None for a tool.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        field: str = "",
        details: Mapping[str, str] | None = None,
        result: "CallResult | None" = None,
    ) -> None:
        super().__init__(message, reason=reason, field=field, details=details)
        self.result = result


class Usage(NamedTuple):
    """Tokens of one call, exact."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, served from the prefix cache
    output_tokens: int


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that succeeded. As a part of a prompt it stands for its output, and makes the new call its child."""

    call: CallId
    text: str  # bytes that are no UTF-8 appear as U+FFFD
    tokens: tuple[int, ...]  # ids, where the engine reports them
    usage: Usage
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...]  # parsed, where the output asks for tools
    times: CallTimes  # model time of each step, microseconds
    prefill_instance: str
    decode_instance: str
    kv_bytes: int  # moved between instances
    attempt: int
    status: NodeStatus
    digest: str  # of the output as a segment, "" = none
    body: call_pb2.SegmentBody  # the output as it is stored

    @property
    def node_id(self) -> str:
        """Id of the call in its workflow."""
        return self.call.node_id

    @property
    def instances(self) -> tuple[str, ...]:
        """Where it ran: prefill, then decode, once where both are the same."""
        return tuple(dict.fromkeys(name for name in (self.prefill_instance, self.decode_instance) if name))

    def __str__(self) -> str:
        return self.text


def call_result(outcome: CallOutcome, body: call_pb2.SegmentBody) -> CallResult:
    """The result of a call that succeeded, with the body of its output."""
    text = body.text.decode("utf-8", errors="replace")
    return CallResult(
        call=outcome.call,
        text=text,
        tokens=tuple(body.token_ids),
        usage=Usage(outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens),
        finish_reason=outcome.finish_reason,
        tool_calls=tool_calls(text) if outcome.finish_reason is FinishReason.TOOL_CALLS else (),
        times=outcome.times,
        prefill_instance=outcome.prefill_instance,
        decode_instance=outcome.decode_instance,
        kv_bytes=outcome.kv_bytes,
        attempt=outcome.attempt,
        status=outcome.status,
        digest=outcome.output.digest,
        body=body,
    )


def call_error(outcome: CallOutcome) -> HexagentError:
    """What a call that did not succeed raises: for a refusal what a refused request would raise."""
    details = {"workflow_id": outcome.call.workflow_id, "node_id": outcome.call.node_id}
    if outcome.retry_after_us:
        details["retry_after_us"] = str(outcome.retry_after_us)
    cause = outcome.message or outcome.reason or "no cause is known"
    text = f"call {outcome.call} was {outcome.status.name.lower()}: {cause}"
    reason = outcome.reason or outcome.status.name
    if outcome.status is NodeStatus.CANCELLED:
        return errors.Cancelled(text, reason=reason, details=details)
    if outcome.status is NodeStatus.REFUSED:
        return _refusal(reason)(text, reason=reason, details=details)
    result = call_result(outcome, call_pb2.SegmentBody())
    return CallFailed(text, reason=reason, details=details, result=result)


def tool_error(tool: CallId, status: NodeStatus, reason: str, message: str) -> HexagentError:
    """What waiting for a tool that did not succeed raises."""
    details = {"workflow_id": tool.workflow_id, "node_id": tool.node_id}
    text = f"tool {tool} was {status.name.lower()}: {message or reason or 'no cause is known'}"
    kind = errors.Cancelled if status is NodeStatus.CANCELLED else CallFailed
    return kind(text, reason=reason or status.name, details=details)


def _refusal(reason: str) -> type[HexagentError]:
    """The class a refused request with this reason would raise; what is not named here is a matter of load."""
    if "DEADLINE" in reason:
        return errors.DeadlineExceeded
    if reason in ("PROMPT_TOO_LARGE", "BAD_ENGINE_OPTION") or reason.startswith(("BAD_", "NEGATIVE_")):
        return errors.InvalidArgument
    if reason.startswith("UNSUPPORTED"):
        return errors.Unsupported
    if reason.startswith("UNKNOWN_"):
        return errors.NotFound
    if reason.startswith(("SEGMENTS_MISSING", "SEGMENT_EXPIRED")):
        return errors.FailedPrecondition
    return errors.ResourceExhausted
