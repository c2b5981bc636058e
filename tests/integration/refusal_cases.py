"""What the WorkflowService refuses, as data: one row a refusal.

The rows refer to three workflows that the test sets up: one that is open, one that is finished, one that is
cancelled. Their node and request ids are named here.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hexagent.api.common.v1 import call_pb2, enums_pb2, ids_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.api.workflow.v1 import workflow_service_pb2 as api
from hexagent.core.workflow.limits import Limits
from hexagent.wire.segments import BODY_MAX_BYTES, INLINE_BODY_MAX_BYTES

OPEN, FINISHED, CANCELLED = "refusals-open", "refusals-finished", "refusals-cancelled"
UNKNOWN: Final = "refusals-nobody"
FILLER: Final = "refusals-filler"
LIVE_WORKFLOWS_MAX: Final = 2  # what the stack under test allows: the open workflow and one more
SINGLE: Final = "single"  # a tenant with one live workflow at most
TENANTS: Final = f'[[tenant]]\nname = "default"\n[[tenant]]\nname = "{SINGLE}"\nworkflows_max = 1\n'  # of the stack
# Nodes of the open workflow. Nothing of it moves by itself: what is blocked waits for a tool that never ends.
READY_TOOL, RUNNING_TOOL, ENDED_TOOL, BLOCKED_TOOL = "ready-tool", "running-tool", "ended-tool", "blocked-tool"
ENDED_CALL, BLOCKED_CALL, LOOP = "ended-call", "blocked-call", "loop"
# Requests that were answered before, by what they did.
USED: Final = "used-by-a-reveal"
STARTED, FINISHED_BY, CANCELLED_BY = "start", "finish", "cancel"
BAD_ID: Final = "no blanks"

INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
EXISTS: Final = grpc.StatusCode.ALREADY_EXISTS
STATE: Final = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
LATE: Final = grpc.StatusCode.DEADLINE_EXCEEDED

LIMITS: Final = Limits()
SERVICE: Final = "hexagent.api.workflow.v1.WorkflowService"
DONE: Final = enums_pb2.NODE_STATUS_SUCCEEDED
COMPLETED: Final = enums_pb2.WORKFLOW_STATUS_COMPLETED
USER: Final = enums_pb2.SEGMENT_ROLE_USER
TEXT: Final = enums_pb2.SEGMENT_KIND_TEXT
OUTPUT: Final = enums_pb2.SEGMENT_KIND_OUTPUT

Call = tuple[str, Message]  # full name of an RPC and its request


class Case(NamedTuple):
    """One refusal."""

    rpc: str  # full name
    cause: str  # what is wrong with the request, for people
    request: Message | bytes  # bytes are sent as they are
    code: grpc.StatusCode
    reason: str  # of ErrorInfo; the name of the status where gRPC itself refuses
    field: str = ""
    before: tuple[Call, ...] = ()  # what makes the request wrong
    after: tuple[Call, ...] = ()  # takes that back


def case(
    method: str, cause: str, request: Message | bytes, code: grpc.StatusCode, reason: str, field: str = ""
) -> Case:
    return Case(f"{SERVICE}.{method}", cause, request, code, reason, field)


# --- requests ---------------------------------------------------------------------------------------------
def text(body: str = "hello", **ref: Any) -> call_pb2.PromptSegment:
    content = call_pb2.SegmentBody(role=USER, kind=TEXT, text=body.encode())
    segment = call_pb2.PromptSegment(role=content.role, kind=content.kind, body=content)
    if ref:
        segment.ref.CopyFrom(call_pb2.SegmentRef(**ref))
    return segment


def reference(kind: enums_pb2.SegmentKind.ValueType = OUTPUT, **ref: Any) -> call_pb2.PromptSegment:
    return call_pb2.PromptSegment(ref=call_pb2.SegmentRef(**ref), role=USER, kind=kind)


def sampling(**values: Any) -> call_pb2.SamplingParams:
    return call_pb2.SamplingParams(**{"max_tokens": 8, **values})


def call(node_id: str = "new", *, node: dict[str, Any] | None = None, **request: Any) -> workflow_pb2.NodeSpec:
    """A call that is right but for what is given: fields of its request, and of the node by `node`."""
    hints = request.pop("hints", None)
    content = call_pb2.CallRequest(**{"segments": [text()], "sampling": sampling(), **request})
    work = workflow_pb2.CallNode(request=content, hints=hints)
    return workflow_pb2.NodeSpec(node_id=node_id, kind=enums_pb2.NODE_KIND_CALL, call=work, **(node or {}))


def tool(node_id: str = "new", *, name: str = "search", times: dict[str, Any] | None = None, **node: Any) -> Any:
    work = workflow_pb2.ToolNode(name=name, **(times or {}))
    return workflow_pb2.NodeSpec(**{"node_id": node_id, "kind": enums_pb2.NODE_KIND_TOOL, "tool": work, **node})


def reveal(*nodes: workflow_pb2.NodeSpec, workflow_id: str = OPEN, request_id: str = "") -> api.RevealNodesRequest:
    return api.RevealNodesRequest(request_id=request_id, workflow_id=workflow_id, nodes=nodes)


def start(request_id: str = "", nodes: tuple[workflow_pb2.NodeSpec, ...] = (), **spec: Any) -> api.StartWorkflowRequest:
    return api.StartWorkflowRequest(request_id=request_id, spec=workflow_pb2.WorkflowSpec(**spec), nodes=nodes)


def node_of(workflow_id: str, node_id: str) -> ids_pb2.CallId:
    return ids_pb2.CallId(workflow_id=workflow_id, node_id=node_id)


def deadline(workflow_id: str = OPEN, **terms: Any) -> api.SetDeadlineRequest:
    return api.SetDeadlineRequest(workflow_id=workflow_id, **terms)


def watch(**request: Any) -> api.WatchWorkflowRequest:
    return api.WatchWorkflowRequest(**{"workflow_id": OPEN, **request})


def offset(node_id: str = ENDED_CALL, workflow_id: str = OPEN, **position: int) -> workflow_pb2.TokenOffset:
    return workflow_pb2.TokenOffset(call=node_of(workflow_id, node_id), **position)


# --- what every verb refuses ------------------------------------------------------------------------------
WorkflowVerb = Callable[[str, str], Message]  # of a workflow id and a request id
NodeVerb = Callable[[ids_pb2.CallId, str], Message]

WORKFLOW_VERBS: Final[dict[str, WorkflowVerb]] = {
    "RevealNodes": lambda w, r: reveal(tool(), workflow_id=w, request_id=r),
    "FinishWorkflow": lambda w, r: api.FinishWorkflowRequest(request_id=r, workflow_id=w, status=COMPLETED),
    "CancelWorkflow": lambda w, r: api.CancelWorkflowRequest(request_id=r, workflow_id=w),
    "PauseWorkflow": lambda w, r: api.PauseWorkflowRequest(request_id=r, workflow_id=w),
    "ResumeWorkflow": lambda w, r: api.ResumeWorkflowRequest(request_id=r, workflow_id=w),
    "SetPriority": lambda w, r: api.SetPriorityRequest(request_id=r, workflow_id=w, priority=1),
    "SetDeadline": lambda w, r: api.SetDeadlineRequest(request_id=r, workflow_id=w, no_deadline=True),
}
NODE_VERBS: Final[dict[str, NodeVerb]] = {
    "StartTool": lambda n, r: api.StartToolRequest(request_id=r, node=n),
    "FinishTool": lambda n, r: api.FinishToolRequest(request_id=r, node=n, status=DONE),
    "CancelNode": lambda n, r: api.CancelNodeRequest(request_id=r, node=n),
}
# Take no request id, or are idempotent by content, and work on workflows that have ended unless said otherwise.
READS: Final[dict[str, Callable[[str], Message]]] = {
    "PutSegments": lambda w: api.PutSegmentsRequest(workflow_id=w),
    "WatchWorkflow": lambda w: watch(workflow_id=w),
    "DescribeWorkflow": lambda w: api.DescribeWorkflowRequest(workflow_id=w),
    "GetUsage": lambda w: api.GetUsageRequest(workflow_id=w),
}


def verb_cases() -> list[Case]:
    cases = []
    for method, request in WORKFLOW_VERBS.items():
        cases += [
            case(method, "no workflow id", request("", ""), INVALID, "BAD_ID", "workflow_id"),
            case(method, "unknown workflow", request(UNKNOWN, ""), NOT_FOUND, "UNKNOWN_WORKFLOW", "workflow_id"),
            case(method, "finished workflow", request(FINISHED, ""), STATE, "WORKFLOW_FINISHED", "workflow_id"),
            case(method, "cancelled workflow", request(CANCELLED, ""), STATE, "WORKFLOW_FINISHED", "workflow_id"),
            case(method, "bad request id", request(OPEN, BAD_ID), INVALID, "BAD_ID", "request_id"),
            case(
                method, "request id of another request", request(OPEN, USED), EXISTS, "DUPLICATE_REQUEST", "request_id"
            ),
        ]
    for method, verb in NODE_VERBS.items():
        ready = node_of(OPEN, READY_TOOL)
        finished, cancelled = node_of(FINISHED, READY_TOOL), node_of(CANCELLED, READY_TOOL)
        cases += [
            case(method, "no node", verb(node_of("", ""), ""), INVALID, "BAD_ID", "node.workflow_id"),
            case(method, "bad node id", verb(node_of(OPEN, BAD_ID), ""), INVALID, "BAD_ID", "node.node_id"),
            case(
                method,
                "unknown workflow",
                verb(node_of(UNKNOWN, "a"), ""),
                NOT_FOUND,
                "UNKNOWN_WORKFLOW",
                "workflow_id",
            ),
            case(method, "unknown node", verb(node_of(OPEN, "nobody"), ""), NOT_FOUND, "UNKNOWN_NODE", "node_id"),
            case(method, "finished workflow", verb(finished, ""), STATE, "WORKFLOW_FINISHED", "workflow_id"),
            case(method, "cancelled workflow", verb(cancelled, ""), STATE, "WORKFLOW_FINISHED", "workflow_id"),
            case(method, "bad request id", verb(ready, BAD_ID), INVALID, "BAD_ID", "request_id"),
            case(method, "request id of another request", verb(ready, USED), EXISTS, "DUPLICATE_REQUEST", "request_id"),
        ]
    for method, read in READS.items():
        cases += [
            case(method, "bad workflow id", read(BAD_ID), INVALID, "BAD_ID", "workflow_id"),
            case(method, "unknown workflow", read(UNKNOWN), NOT_FOUND, "UNKNOWN_WORKFLOW", "workflow_id"),
        ]
    return cases


# --- what each RPC refuses --------------------------------------------------------------------------------
def start_cases() -> list[Case]:
    m = "StartWorkflow"
    past = Timestamp(seconds=1)
    filler = (f"{SERVICE}.{m}", start(workflow_id=FILLER))
    emptied = (f"{SERVICE}.CancelWorkflow", api.CancelWorkflowRequest(workflow_id=FILLER))
    full = case(m, "too many open workflows", start(workflow_id=UNKNOWN), EXHAUSTED, "TOO_MANY_WORKFLOWS")
    single = (f"{SERVICE}.{m}", start(workflow_id=SINGLE, tenant=SINGLE))
    ended = (f"{SERVICE}.CancelWorkflow", api.CancelWorkflowRequest(workflow_id=SINGLE))
    second = case(m, "too many open workflows of the tenant", start(workflow_id=UNKNOWN, tenant=SINGLE), EXHAUSTED,
                  "TOO_MANY_TENANT_WORKFLOWS", "tenant")  # fmt: skip
    entries = {f"k{i}": "v" for i in range(LIMITS.metadata_entries + 1)}
    negative = workflow_pb2.WorkflowHints(total_solo=Duration(seconds=-1))
    return [
        full._replace(before=(filler,), after=(emptied,)),
        second._replace(before=(single,), after=(ended,)),
        case(m, "id taken, without request id", start(workflow_id=OPEN), EXISTS, "WORKFLOW_EXISTS", "workflow_id"),
        case(m, "id of a finished workflow", start("x", workflow_id=FINISHED), EXISTS, "WORKFLOW_EXISTS",
             "workflow_id"),
        case(m, "equal request id, other terms", start(STARTED, workflow_id=OPEN, priority=7), EXISTS,
             "DUPLICATE_REQUEST", "request_id"),
        case(m, "bad workflow id", start(workflow_id=BAD_ID), INVALID, "BAD_ID", "spec.workflow_id"),
        case(m, "workflow id of 129 characters", start(workflow_id="x" * 129), INVALID, "BAD_ID", "spec.workflow_id"),
        case(m, "bad request id", start(BAD_ID), INVALID, "BAD_ID", "request_id"),
        case(m, "bad tenant", start(tenant="*"), INVALID, "BAD_ID", "spec.tenant"),
        case(m, "unknown tenant", start(tenant="nobody"), NOT_FOUND, "UNKNOWN_TENANT", "tenant"),
        case(m, "bad class", start(workflow_class="a/b"), INVALID, "BAD_ID", "spec.workflow_class"),
        case(m, "priority above 100", start(priority=101), INVALID, "BAD_PRIORITY", "spec.priority"),
        case(m, "negative SLO scale", start(slo_scale=-1.0), INVALID, "BAD_SLO_SCALE", "spec.slo_scale"),
        case(m, "SLO scale that is no number", start(slo_scale=float("nan")), INVALID, "BAD_SLO_SCALE",
             "spec.slo_scale"),
        case(m, "SLO scale out of range", start(slo_scale=1e6), INVALID, "BAD_SLO_SCALE", "slo_scale_milli"),
        case(m, "deadline in the past", start(deadline=past), LATE, "DEADLINE_PASSED", "spec.deadline"),
        case(m, "deadline before 1970", start(deadline=Timestamp(seconds=-9)), INVALID, "BAD_TIMESTAMP",
             "spec.deadline"),
        case(m, "no time at all", start(budget=Duration()), INVALID, "BAD_DURATION", "spec.budget"),
        case(m, "negative time", start(budget=Duration(seconds=-5)), INVALID, "BAD_DURATION", "spec.budget"),
        case(m, "negative hint", start(hints=negative), INVALID, "BAD_DURATION", "spec.hints.total_solo"),
        case(m, "negative number of calls", start(hints=workflow_pb2.WorkflowHints(total_calls=-1)), INVALID,
             "BAD_HINT",
             "spec.hints.total_calls"),
        case(m, "too much metadata", start(metadata=entries), INVALID, "METADATA_TOO_LARGE", "metadata"),
        case(m, "a bad node", start(nodes=(call(model="gpt-17"),)), NOT_FOUND, "UNKNOWN_MODEL", "nodes[0].call.model"),
    ]  # fmt: skip


def verb_specific_cases() -> list[Case]:
    ended, ready = node_of(OPEN, ENDED_TOOL), node_of(OPEN, READY_TOOL)
    long = "x" * (LIMITS.reason_chars + 1)
    body = call_pb2.SegmentBody(role=USER, kind=TEXT, text=b"a")
    wrong = call_pb2.SegmentBody(digest="0" * 64, role=body.role, kind=body.kind, text=b"a")
    huge = call_pb2.SegmentBody(role=body.role, kind=body.kind, text=b"a" * (BODY_MAX_BYTES + 1))
    large = call_pb2.SegmentBody(role=body.role, kind=body.kind, text=b"a" * BODY_MAX_BYTES)
    no_kind = call_pb2.SegmentBody(role=body.role, text=b"a")
    no_text = call_pb2.SegmentBody(role=body.role, kind=body.kind, text=b"\xff")
    negative = call_pb2.SegmentBody(role=body.role, kind=body.kind, text=b"a", tokens=-1)

    def put(*segments: call_pb2.SegmentBody, workflow_id: str = OPEN) -> api.PutSegmentsRequest:
        return api.PutSegmentsRequest(workflow_id=workflow_id, segments=segments)

    def finish(node: ids_pb2.CallId, **how: Any) -> api.FinishToolRequest:
        return api.FinishToolRequest(**{"node": node, "status": DONE, **how})

    def end(workflow_id: str = OPEN, **how: Any) -> api.FinishWorkflowRequest:
        return api.FinishWorkflowRequest(workflow_id=workflow_id, **how)

    def priority(value: int) -> api.SetPriorityRequest:
        return api.SetPriorityRequest(workflow_id=OPEN, priority=value)

    cancel = api.CancelWorkflowRequest
    failed = enums_pb2.WORKFLOW_STATUS_FAILED
    return [
        case("PutSegments", "finished workflow", put(body, workflow_id=FINISHED), STATE, "WORKFLOW_FINISHED",
             "workflow_id"),
        case("PutSegments", "cancelled workflow", put(body, workflow_id=CANCELLED), STATE, "WORKFLOW_FINISHED",
             "workflow_id"),
        case("PutSegments", "body above 1 MiB", put(body, huge), EXHAUSTED, "SEGMENT_TOO_LARGE", "segments[1]"),
        case("PutSegments", "bodies above 4 MiB", put(*[large] * 5), INVALID, "TOO_MANY_BYTES", "segments"),
        case("PutSegments", "wrong digest", put(wrong), INVALID, "BAD_DIGEST", "segments[0].digest"),
        case("PutSegments", "unspecified kind", put(no_kind), INVALID, "BAD_ENUM", "segments[0].kind"),
        case("PutSegments", "text that is no UTF-8", put(no_text), INVALID, "BAD_UTF8", "segments[0].text"),
        case("PutSegments", "negative tokens", put(negative), INVALID, "NEGATIVE_TOKENS", "segments[0].tokens"),
        case("StartTool", "a call", NODE_VERBS["StartTool"](node_of(OPEN, BLOCKED_CALL), ""), STATE, "NOT_A_TOOL",
             "node_id"),
        case("StartTool", "blocked", NODE_VERBS["StartTool"](node_of(OPEN, BLOCKED_TOOL), ""), STATE, "NODE_NOT_READY",
             "node_id"),
        case("StartTool", "runs", NODE_VERBS["StartTool"](node_of(OPEN, RUNNING_TOOL), ""), STATE, "NODE_NOT_READY",
             "node_id"),
        case("StartTool", "has ended", NODE_VERBS["StartTool"](ended, ""), STATE, "NODE_FINISHED", "node_id"),
        case("FinishTool", "a call", finish(node_of(OPEN, BLOCKED_CALL)), STATE, "NOT_A_TOOL", "node_id"),
        case("FinishTool", "blocked", finish(node_of(OPEN, BLOCKED_TOOL)), STATE, "NODE_NOT_READY", "node_id"),
        case("FinishTool", "has ended", finish(ended, status=enums_pb2.NODE_STATUS_FAILED), STATE, "NODE_FINISHED",
             "node_id"),
        case("FinishTool", "unspecified status", finish(ready, status=0), INVALID, "BAD_ENUM", "status"),
        case("FinishTool", "status of a newer version", finish(ready, status=99), INVALID, "BAD_ENUM", "status"),
        case("FinishTool", "no end", finish(ready, status=enums_pb2.NODE_STATUS_RUNNING), INVALID, "BAD_STATUS",
             "status"),
        case("FinishTool", "long reason", finish(ready, reason=long), INVALID, "REASON_TOO_LONG", "reason"),
        case("FinishTool", "long message", finish(ready, message="x" * 5_000), INVALID, "REASON_TOO_LONG", "message"),
        case("FinishWorkflow", "unspecified status", end(status=0), INVALID, "BAD_ENUM", "status"),
        case("FinishWorkflow", "no end", end(status=enums_pb2.WORKFLOW_STATUS_PAUSED), INVALID, "BAD_STATUS", "status"),
        case("FinishWorkflow", "long reason", end(status=failed, reason=long), INVALID, "REASON_TOO_LONG", "reason"),
        case("FinishWorkflow", "equal request id, other end", end(FINISHED, request_id=FINISHED_BY, status=failed),
             EXISTS,
             "DUPLICATE_REQUEST", "request_id"),
        case("CancelWorkflow", "long reason", cancel(workflow_id=OPEN, reason=long), INVALID, "REASON_TOO_LONG",
             "reason"),
        case("CancelWorkflow", "equal request id, other reason",
             cancel(workflow_id=CANCELLED, request_id=CANCELLED_BY, reason="other"), EXISTS, "DUPLICATE_REQUEST",
                    "request_id"),
        case("CancelNode", "long reason", api.CancelNodeRequest(node=ready, reason=long), INVALID, "REASON_TOO_LONG",
             "reason"),
        case("SetPriority", "above 100", priority(101), INVALID, "BAD_PRIORITY", "priority"),
        case("SetPriority", "below -100", priority(-(2**31)), INVALID, "BAD_PRIORITY", "priority"),
        case("SetDeadline", "in the past", deadline(deadline=Timestamp(seconds=1)), LATE, "DEADLINE_PASSED",
             "deadline"),
        case("SetDeadline", "beyond ten years", deadline(deadline=Timestamp(seconds=250_000_000_000)), INVALID,
             "BAD_DEADLINE", "deadline_us"),
        case("SetDeadline", "no time at all", deadline(budget=Duration()), INVALID, "BAD_DURATION", "budget"),
        case("SetDeadline", "negative time", deadline(budget=Duration(nanos=-1)), INVALID, "BAD_DURATION", "budget"),
        case("SetDeadline", "no_deadline that is false", deadline(no_deadline=False), INVALID, "BAD_DEADLINE",
             "no_deadline"),
        case("SetDeadline", "negative SLO scale", deadline(slo_scale=-0.5), INVALID, "BAD_SLO_SCALE", "slo_scale"),
        case("SetDeadline", "nothing to change", deadline(), INVALID, "NOTHING_TO_CHANGE", "due"),
    ]  # fmt: skip


def read_cases() -> list[Case]:
    def get(workflow_id: str, node_id: str) -> api.GetCallRequest:
        return api.GetCallRequest(call=node_of(workflow_id, node_id))

    page, unspecified = api.ListWorkflowsRequest, enums_pb2.WORKFLOW_STATUS_UNSPECIFIED
    return [
        case("GetCall", "no call", get("", ""), INVALID, "BAD_ID", "call.workflow_id"),
        case("GetCall", "bad node id", get(OPEN, BAD_ID), INVALID, "BAD_ID", "call.node_id"),
        case("GetCall", "unknown workflow", get(UNKNOWN, "a"), NOT_FOUND, "UNKNOWN_WORKFLOW", "workflow_id"),
        case("GetCall", "unknown node", get(OPEN, "nobody"), NOT_FOUND, "UNKNOWN_NODE", "node_id"),
        case("GetCall", "a tool", get(OPEN, READY_TOOL), STATE, "NOT_A_CALL", "call.node_id"),
        case("WatchWorkflow", "negative sequence", watch(after_sequence=-1), INVALID, "BAD_SEQUENCE", "after_sequence"),
        case("WatchWorkflow", "sequence to come", watch(after_sequence=9_999), INVALID, "BAD_SEQUENCE",
             "after_sequence"),
        case("WatchWorkflow", "negative offset", watch(offsets=[offset(offset=-1)]), INVALID, "BAD_OFFSET",
             "offsets[0].offset"),
        case("WatchWorkflow", "negative choice", watch(offsets=[offset(), offset(choice=-1)]), INVALID, "BAD_OFFSET",
             "offsets[1].choice"),
        case("WatchWorkflow", "offset of another workflow", watch(offsets=[offset(workflow_id=FINISHED)]), INVALID,
             "BAD_OFFSET", "offsets[0].call.workflow_id"),
        case("WatchWorkflow", "offset of an unknown node", watch(offsets=[offset("nobody")]), NOT_FOUND, "UNKNOWN_NODE",
             "offsets[0].call.node_id"),
        case("DescribeWorkflow", "id of another type", b"\x08\x05", INVALID, "BAD_ID", "workflow_id"),
        case("GetUsage", "unknown tenant", api.GetUsageRequest(tenant="nobody"), NOT_FOUND, "UNKNOWN_TENANT", "tenant"),
        case("ListWorkflows", "negative page size", page(page_size=-1), INVALID, "BAD_PAGE_SIZE", "page_size"),
        case("ListWorkflows", "page size above 1000", page(page_size=1_001), INVALID, "BAD_PAGE_SIZE", "page_size"),
        case("ListWorkflows", "unspecified status", page(statuses=[unspecified]), INVALID, "BAD_ENUM", "statuses"),
        case("ListWorkflows", "made-up page token", page(page_token="\u00fc"), INVALID, "BAD_PAGE_TOKEN", "page_token"),
        case("ListWorkflows", "page token of other filters", page(page_token="MTIzNDU2NzgvMS93"), INVALID,
             "BAD_PAGE_TOKEN", "page_token"),
    ]  # fmt: skip


def oversize_inline() -> workflow_pb2.NodeSpec:
    return call(segments=[text("a" * (INLINE_BODY_MAX_BYTES + 1))])
