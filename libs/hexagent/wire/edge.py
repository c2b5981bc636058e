"""The public edge: what a client sends, checked and turned into core values.

Refusals name the path of the field as the client wrote it. What needs the graph or the cluster (parents, cycles,
tenants, models, sizes) is the tracker's to refuse.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from hexagent.api.common.v1 import call_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2
from hexagent.core.errors import DeadlineExceeded, FailedPrecondition
from hexagent.core.ids import checked_id
from hexagent.core.units import MILLI
from hexagent.core.workflow.commands import ChangeWorkflow
from hexagent.core.workflow.model import (
    CallSpec,
    Hints,
    Join,
    NodeKind,
    NodeSpec,
    SegmentRef,
    ToolSpec,
    WorkflowSpec,
)
from hexagent.wire.codec import bad, enum_of, to_bytes
from hexagent.wire.nodes import join_from_proto
from hexagent.wire.requests import check_request
from hexagent.wire.segments import INLINE_BODY_MAX_BYTES, Segment, SegmentKind, SegmentRole, segment_from_proto
from hexagent.wire.times import duration_from_proto, timestamp_from_proto

PRIORITY_MAX = 100  # and its negative is the least
MISSING_LISTED = 32  # digests named in a refusal; a status must fit into gRPC's 8 KiB of metadata
DEFAULT_NAME = "default"  # of tenant and class where the client names none

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class Reveal(NamedTuple):
    """The nodes of one request, with what they bring along."""

    nodes: tuple[NodeSpec, ...]  # in the order of the request
    bodies: Mapping[str, Segment]  # inline bodies by digest, to be stored before the nodes are known


# --- workflow terms ---------------------------------------------------------------------------------------
def workflow_spec_from_proto(
    message: workflow_pb2.WorkflowSpec,
    *,
    minted_id: str,
    now_us: int,
    model_us_of: Callable[[int], int],
    path: str = "spec",
) -> WorkflowSpec:
    """The terms of a new workflow; `minted_id` where the client gives no id, `model_us_of` the stack's clock.

    `InvalidArgument`, or `DeadlineExceeded` (DEADLINE_PASSED).
    """
    deadline_us = due_from_proto(message, now_us=now_us, model_us_of=model_us_of, path=path)
    hints = message.hints
    total_solo_us = 0
    if hints.HasField("total_solo"):
        total_solo_us = duration_from_proto(hints.total_solo, f"{path}.hints.total_solo")
    if hints.total_calls < 0:
        raise bad("BAD_HINT", f"{path}.hints.total_calls", f"cannot be negative; got {hints.total_calls}")
    return WorkflowSpec(
        workflow_id=checked_id(message.workflow_id or minted_id, f"{path}.workflow_id"),
        tenant=checked_id(message.tenant or DEFAULT_NAME, f"{path}.tenant"),
        workflow_class=checked_id(message.workflow_class or DEFAULT_NAME, f"{path}.workflow_class"),
        priority=checked_priority(message.priority, f"{path}.priority"),
        slo_scale_milli=slo_scale_milli(message.slo_scale, f"{path}.slo_scale"),
        deadline_us=deadline_us or 0,
        hints=Hints(total_solo_us, hints.total_calls),
        metadata=tuple(sorted(message.metadata.items())),
    )


def due_from_proto(
    message: workflow_pb2.WorkflowSpec | workflow_service_pb2.SetDeadlineRequest,
    *,
    now_us: int,
    model_us_of: Callable[[int], int],
    path: str = "",
) -> int | None:
    """The deadline in model time; 0 = none from now on, None = nothing said.

    One that has passed is refused here, so that it can never become the most urgent of all.
    """
    prefix = f"{path}." if path else ""
    due = message.WhichOneof("due")
    if due == "deadline":
        deadline_us = model_us_of(timestamp_from_proto(message.deadline, f"{prefix}deadline"))
        if deadline_us <= max(now_us, 0):
            raise DeadlineExceeded(
                f"{prefix}deadline: passed {now_us - deadline_us} us of model time ago",
                reason="DEADLINE_PASSED",
                field=f"{prefix}deadline",
            )
        return deadline_us
    if due == "budget":
        budget_us = duration_from_proto(message.budget, f"{prefix}budget")
        if budget_us == 0:
            raise bad("BAD_DURATION", f"{prefix}budget", "must be above 0")
        return now_us + budget_us
    if isinstance(message, workflow_service_pb2.SetDeadlineRequest) and due == "no_deadline":
        if not message.no_deadline:
            raise bad("BAD_DEADLINE", f"{prefix}no_deadline", "false says nothing; leave it out")
        return 0
    return None


def change_from_set_deadline(
    request: workflow_service_pb2.SetDeadlineRequest, *, now_us: int, model_us_of: Callable[[int], int]
) -> ChangeWorkflow:
    """The command behind SetDeadline; `InvalidArgument` (NOTHING_TO_CHANGE) where it names no term."""
    deadline_us = due_from_proto(request, now_us=now_us, model_us_of=model_us_of)
    scale = slo_scale_milli(request.slo_scale, "slo_scale") if request.HasField("slo_scale") else None
    if deadline_us is None and scale is None:
        raise bad("NOTHING_TO_CHANGE", "due", "name a deadline, a budget, no_deadline or slo_scale")
    return ChangeWorkflow(
        workflow_id=checked_id(request.workflow_id, "workflow_id"),
        slo_scale_milli=scale,
        deadline_us=deadline_us,
        request_id=request.request_id,
    )


def checked_priority(value: int, field: str) -> int:
    """`value` if it lies within -100 to 100."""
    if not -PRIORITY_MAX <= value <= PRIORITY_MAX:
        raise bad("BAD_PRIORITY", field, f"must be -{PRIORITY_MAX} to {PRIORITY_MAX}; got {value}")
    return value


def slo_scale_milli(value: float, field: str) -> int:
    """An SLO scale in thousandths; 0 = none. What would round to none is refused."""
    scaled = value * MILLI
    if not math.isfinite(scaled) or scaled < 0 or (value and round(scaled) == 0):
        raise bad("BAD_SLO_SCALE", field, f"must be 0 for none, or 0.001 or more; got {value}")
    return round(scaled)


# --- nodes ------------------------------------------------------------------------------------------------
def referenced_digests(messages: Iterable[workflow_pb2.NodeSpec]) -> tuple[str, ...]:
    """Digests whose bodies the request leaves out, sorted: what a reveal must find stored."""
    segments = [s for m in messages for s in m.call.request.segments]
    return tuple(sorted({s.ref.digest for s in segments if s.ref.digest and not s.HasField("body")}))


def nodes_from_proto(
    messages: Iterable[workflow_pb2.NodeSpec], *, stored: Mapping[str, int], path: str = "nodes"
) -> Reveal:
    """The nodes of a request; `stored` gives the token count of each body that is in the segment store.

    `InvalidArgument`, `ResourceExhausted` (SEGMENT_TOO_LARGE), or `FailedPrecondition` (SEGMENTS_MISSING) with the
    digests in its details.
    """
    nodes: list[NodeSpec] = []
    bodies: dict[str, Segment] = {}
    for i, message in enumerate(messages):
        nodes.append(_node(message, bodies, stored, f"{path}[{i}]"))
    _check_stored(nodes, bodies, stored, path)
    return Reveal(tuple(nodes), bodies)


def _node(message: workflow_pb2.NodeSpec, bodies: dict[str, Segment], stored: Mapping[str, int], path: str) -> NodeSpec:
    kind = enum_of(NodeKind, message.kind, f"{path}.kind")
    node_id = checked_id(message.node_id, f"{path}.node_id")
    work = message.WhichOneof("work")
    if work != kind.name.lower():
        raise bad("BAD_NODE", f"{path}.{kind.name.lower()}", f"a {kind.name} node sets it; got {work or 'neither'}")
    call = _call(message.call, bodies, stored, f"{path}.call") if kind is NodeKind.CALL else None
    implied = {s.output_of for s in call.segments if s.output_of} if call else set()
    declared = {checked_id(parent, f"{path}.after[{j}]") for j, parent in enumerate(message.after)}
    if node_id in declared | implied:
        raise bad("CYCLE", f"{path}.after", f"{node_id} cannot wait for itself")
    return NodeSpec(
        node_id=node_id,
        kind=kind,
        role=checked_id(message.role, f"{path}.role") if message.role else "",
        after=tuple(sorted(declared | implied)),
        join=join_from_proto(message.join, f"{path}.join") if message.HasField("join") else Join(),
        call=call,
        tool=_tool(message.tool, f"{path}.tool") if kind is NodeKind.TOOL else None,
        template=checked_id(message.template, f"{path}.template") if message.template else "",
        round=message.round,
    )


def _tool(message: workflow_pb2.ToolNode, path: str) -> ToolSpec:
    expected = duration_from_proto(message.expected, f"{path}.expected") if message.HasField("expected") else 0
    timeout = duration_from_proto(message.timeout, f"{path}.timeout") if message.HasField("timeout") else 0
    return ToolSpec(checked_id(message.name, f"{path}.name"), expected, timeout, message.start_now)


def _call(message: workflow_pb2.CallNode, bodies: dict[str, Segment], stored: Mapping[str, int], path: str) -> CallSpec:
    """The core's view of a call. The payload is the request with references in place of inline bodies: equal
    requests give equal payloads however their bodies travelled, so revealing again is recognised."""
    request = call_pb2.CallRequest()
    request.CopyFrom(message.request)
    check_request(request, f"{path}.request")
    if not request.segments:
        raise bad("NO_PROMPT", f"{path}.request.segments", "a prompt has at least one segment")
    refs = []
    for i, segment in enumerate(request.segments):
        ref, body = _segment(segment, stored, f"{path}.request.segments[{i}]")
        if body is not None:
            bodies[ref.digest] = body
        segment.ClearField("body")
        segment.ref.digest, segment.ref.tokens = ref.digest, ref.tokens
        refs.append(ref)
    hints = message.hints
    if hints.expected_output_tokens < 0:
        field = f"{path}.hints.expected_output_tokens"
        raise bad("NEGATIVE_TOKENS", field, f"tokens cannot be negative; got {hints.expected_output_tokens}")
    precision = hints.min_precision
    return CallSpec(
        model=request.model,
        segments=tuple(refs),
        prompt_tokens=sum(ref.tokens for ref in refs),
        max_tokens=request.sampling.max_tokens,
        lora=request.lora,
        expected_output_tokens=hints.expected_output_tokens,
        min_precision=checked_id(precision, f"{path}.hints.min_precision") if precision else "",
        cache_salt=request.cache_salt,
        payload=to_bytes(request),
    )


def _segment(
    message: call_pb2.PromptSegment, stored: Mapping[str, int], path: str
) -> tuple[SegmentRef, Segment | None]:
    """The reference for one place of a prompt, and its body where it came along.

    An output of another call keeps the client's own count, 0 = unknown, whatever is known of that call by now:
    a count that changed with time would make a repeated reveal differ from the first.
    """
    role = enum_of(SegmentRole, message.role, f"{path}.role")
    kind = enum_of(SegmentKind, message.kind, f"{path}.kind")
    ref = message.ref
    if ref.tokens < 0:
        raise bad("NEGATIVE_TOKENS", f"{path}.ref.tokens", f"tokens cannot be negative; got {ref.tokens}")
    if message.HasField("body"):
        return _inline(message, role, kind, path)
    if bool(ref.digest) == bool(ref.output_of):
        raise bad("BAD_SEGMENT", f"{path}.ref", "needs either a digest or `output_of`, or the segment a body")
    if ref.output_of:
        if kind is not SegmentKind.OUTPUT:
            raise bad("BAD_SEGMENT", f"{path}.kind", "with `output_of` the kind is OUTPUT")
        return SegmentRef("", ref.tokens, checked_id(ref.output_of, f"{path}.ref.output_of")), None
    if not _DIGEST.match(ref.digest):
        raise bad("BAD_DIGEST", f"{path}.ref.digest", "must be 64 lower-case hex digits")
    return SegmentRef(ref.digest, ref.tokens or stored.get(ref.digest, 0)), None


def _inline(
    message: call_pb2.PromptSegment, role: SegmentRole, kind: SegmentKind, path: str
) -> tuple[SegmentRef, Segment]:
    body = segment_from_proto(message.body, f"{path}.body", INLINE_BODY_MAX_BYTES)
    if (body.role, body.kind) != (role, kind):
        raise bad("BAD_SEGMENT", f"{path}.body", "its role and kind must equal those of the segment")
    if message.ref.output_of:
        raise bad("BAD_SEGMENT", f"{path}.ref.output_of", "an output that is still to come has no body")
    if message.ref.digest and message.ref.digest != body.digest:
        raise bad("BAD_DIGEST", f"{path}.ref.digest", f"the body's digest is {body.digest}")
    body = body._replace(tokens=body.tokens or message.ref.tokens)
    return body.ref, body


def _check_stored(
    nodes: Iterable[NodeSpec], bodies: Mapping[str, Segment], stored: Mapping[str, int], path: str
) -> None:
    """Every body a prompt names is stored or came along, in whichever node."""
    digests = {s.digest for node in nodes if node.call for s in node.call.segments if s.digest}
    missing = sorted(digest for digest in digests if digest not in bodies and digest not in stored)
    if missing:
        raise FailedPrecondition(
            f"{path}: {len(missing)} segments are not stored; put them first",
            reason="SEGMENTS_MISSING",
            field=path,
            details={"digests": ",".join(missing[:MISSING_LISTED]), "missing": str(len(missing))},
        )
