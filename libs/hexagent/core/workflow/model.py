"""Values a workflow is made of: nodes, joins, segments, results."""

from enum import IntEnum
from typing import Final, NamedTuple

from hexagent.core.ids import CallId
from hexagent.core.instance.needs import ANYTHING, Needs


class NodeKind(IntEnum):
    CALL = 1  # one LLM call
    TOOL = 2  # one tool run, outside the cluster


class JoinKind(IntEnum):
    ALL = 1  # ready when every parent has succeeded
    ANY = 2  # ready when the first parent has succeeded
    K_OF_N = 3  # ready when `k` parents have succeeded


class NodeStatus(IntEnum):
    BLOCKED = 1  # waits for parents
    READY = 2  # may run; a call waits for the scheduler, a tool for its client
    RUNNING = 3  # a call was dispatched, a tool was started
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6
    REFUSED = 7  # admission or a limit said no; retry may be right


TERMINAL: Final = frozenset({NodeStatus.SUCCEEDED, NodeStatus.FAILED, NodeStatus.CANCELLED, NodeStatus.REFUSED})


class WorkflowStatus(IntEnum):
    RUNNING = 1
    PAUSED = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5
    ABANDONED = 6  # idle expiry: no client for longer than the limit


LIVE: Final = frozenset({WorkflowStatus.RUNNING, WorkflowStatus.PAUSED})  # the workflow takes commands


class FinishReason(IntEnum):
    """Why generation ended."""

    NONE = 0  # it did not: failed, cancelled or refused
    STOP = 1  # end token or stop string
    LENGTH = 2  # max_tokens reached
    TOOL_CALLS = 3  # the output asks for tools


class Join(NamedTuple):
    kind: JoinKind = JoinKind.ALL
    k: int = 0  # only with K_OF_N: 1 <= k <= number of parents
    keep_losers: bool = False  # parents that the join no longer needs run on instead of being cancelled

    def needed(self, parents: int) -> int:
        """How many of `parents` must succeed before the node is ready."""
        if self.kind is JoinKind.ALL:
            return parents
        return min(parents, 1 if self.kind is JoinKind.ANY else self.k)


class SegmentRef(NamedTuple):
    """A piece of a prompt, by the digest of its body, or the output of a call that may still run."""

    digest: str  # SHA-256 hex of the canonical form; "" with `output_of`
    tokens: int  # estimate until the engine side has tokenised; 0 = unknown, filled from the body's bytes
    output_of: str = ""  # node id of the call whose output stands here


class CallSpec(NamedTuple):
    model: str
    segments: tuple[SegmentRef, ...]
    prompt_tokens: int  # sum over segments, estimated at reveal
    max_tokens: int  # >= 1, the most tokens the call may generate
    lora: str = ""
    expected_output_tokens: int = 0  # client hint, 0 = none
    min_precision: str = ""  # lowest weight precision the call accepts, "" = any
    cache_salt: str = ""  # keeps the prompt's KV apart from other salts'
    payload: bytes = b""  # the serialised request for the engine side; the core never reads it

    @property
    def needs(self) -> Needs:
        return Needs(self.lora, self.min_precision) if self.lora or self.min_precision else ANYTHING


class ToolSpec(NamedTuple):
    name: str
    expected_us: int = 0  # client hint, 0 = none
    timeout_us: int = 0  # 0 = the stack's limit
    start_now: bool = False  # the tool runs as soon as it is ready, without a StartTool of its client


class NodeSpec(NamedTuple):
    node_id: str
    kind: NodeKind
    role: str  # what the node does in its class of workflow: plan, worker, judge, ... ("" = unnamed)
    after: tuple[str, ...]  # parents: declared edges and those implied by the prompt's segments, sorted, unique
    join: Join = Join()
    call: CallSpec | None = None  # set iff kind is CALL
    tool: ToolSpec | None = None  # set iff kind is TOOL
    template: str = ""  # the node template of a loop, "" = none
    round: int = 0  # which repetition of the template


class Hints(NamedTuple):
    """What a client says about a workflow's future; 0 = nothing said. Never trusted beyond its record."""

    total_solo_us: int = 0  # the final horizon
    total_calls: int = 0


class WorkflowSpec(NamedTuple):
    workflow_id: str
    tenant: str
    workflow_class: str  # low-cardinality name of the kind of workflow; lengths are learned per class and role
    priority: int = 0  # -100..100, higher = sooner
    slo_scale_milli: int = 0  # timely iff JCT <= scale * horizon; 0 = none
    deadline_us: int = 0  # absolute model time; 0 = none
    hints: Hints = Hints()
    metadata: tuple[tuple[str, str], ...] = ()  # sorted, shown to people only


class CallTimes(NamedTuple):
    """Model time of each step of a call, microseconds; 0 = it did not happen."""

    dispatched_us: int = 0
    prefill_start_us: int = 0
    prefill_end_us: int = 0
    transfer_start_us: int = 0
    transfer_end_us: int = 0
    decode_start_us: int = 0
    first_token_us: int = 0
    end_us: int = 0


class CallOutcome(NamedTuple):
    """How one attempt of a call ended; the tracker accepts the first outcome of a call."""

    call: CallId
    attempt: int
    status: NodeStatus  # terminal
    finish_reason: FinishReason = FinishReason.NONE
    reason: str = ""  # cause of anything but success, as in `errors.HexagentError.reason`
    message: str = ""
    retry_after_us: int = 0
    prompt_tokens: int = 0  # exact, from the engine side
    cached_tokens: int = 0
    output_tokens: int = 0
    output: SegmentRef = SegmentRef("", 0)
    output_body: bytes = b""  # the output's stored form when small enough to ride along, else only in the segment store
    prefill_instance: str = ""
    decode_instance: str = ""
    kv_bytes: int = 0  # moved between instances, unscaled
    times: CallTimes = CallTimes()
    decode_us: int = 0  # its share of the decode steps it was in, each divided by its batch; 0 = not known
