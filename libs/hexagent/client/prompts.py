"""Prompts: what a user may write, and the segments it becomes."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.client.results import CallResult
from hexagent.core.errors import InvalidArgument
from hexagent.core.units import ceil_div
from hexagent.wire.segments import BODY_MAX_BYTES, SegmentKind, SegmentRole, segment_to_proto
from hexagent.wire.segments import Segment as Body

PIECE_BYTES_MAX: Final = BODY_MAX_BYTES - 4_096  # of text in one segment: what is stored has a digest beside it

_ROLES: Final = {role.name.lower(): role for role in SegmentRole}


class Segment(NamedTuple):
    """A piece of a prompt.

    `role` says who speaks: system, user, assistant, tool, or raw for text outside any chat template. `tokens`
    declares how many tokens the piece has (0 = unknown, a quarter of its bytes is assumed); a workload may declare
    many tokens for a small body. `token_ids` in place of `text` are for prompts that are tokenised already. The text
    of a `structured` one is JSON of a chat message that has more than content, as SEGMENT_KIND_MESSAGE says.
    """

    text: str = ""
    role: str = "user"
    tokens: int = 0
    token_ids: tuple[int, ...] = ()
    structured: bool = False


class Handle:
    """A node of a workflow, which may not have run yet."""

    __slots__ = ("node_id", "workflow_id")

    def __init__(self, workflow_id: str, node_id: str) -> None:
        self.workflow_id = workflow_id
        self.node_id = node_id


PromptPart: TypeAlias = str | Segment | CallResult | Handle
Prompt: TypeAlias = PromptPart | Sequence[PromptPart]
Parent: TypeAlias = str | CallResult | Handle  # what `after=` takes; a string is a node id


class BuiltPrompt(NamedTuple):
    """Segments without bodies, the bodies by digest, and the parents that outputs in the prompt imply."""

    segments: tuple[call_pb2.PromptSegment, ...]
    bodies: dict[str, call_pb2.SegmentBody]
    parents: tuple[str, ...]


def build_prompt(prompt: Prompt, workflow_id: str) -> BuiltPrompt:
    """The prompt as the API takes it. A text of about 1 MiB or more becomes several segments.

    `InvalidArgument`: NO_PROMPT, BAD_ROLE, BAD_PROMPT for what can be no part of one, OTHER_WORKFLOW.
    """
    parts = [prompt] if isinstance(prompt, str | Segment | CallResult | Handle) else list(prompt)
    segments: list[call_pb2.PromptSegment] = []
    bodies: dict[str, call_pb2.SegmentBody] = {}
    parents: list[str] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            part = Segment(part)
        if isinstance(part, Segment):
            for body in _bodies(part, f"prompt[{i}]"):
                message = segment_to_proto(body)
                bodies[message.digest] = message
                segments.append(_place(message.digest, body.counted_tokens, body.role, body.kind))
        elif isinstance(part, CallResult):
            parents.append(parent_id(part, workflow_id))
            bodies[part.digest] = part.body
            segments.append(_place(part.digest, part.usage.output_tokens, SegmentRole.ASSISTANT, SegmentKind.OUTPUT))
        elif isinstance(part, Handle):
            parents.append(parent_id(part, workflow_id))
            segments.append(_output_of(part.node_id))
        else:
            raise InvalidArgument(
                f"prompt[{i}] must be a str, Segment, CallResult or a handle of a call; got {type(part).__name__}",
                reason="BAD_PROMPT",
                field=f"prompt[{i}]",
            )
    if not segments:
        raise InvalidArgument("prompt: has no parts", reason="NO_PROMPT", field="prompt")
    return BuiltPrompt(tuple(segments), bodies, tuple(dict.fromkeys(parents)))


def parent_id(parent: Parent, workflow_id: str) -> str:
    """The node id of a parent. `InvalidArgument` (OTHER_WORKFLOW) for one of another workflow."""
    if isinstance(parent, str):
        return parent
    theirs = parent.call.workflow_id if isinstance(parent, CallResult) else parent.workflow_id
    if theirs != workflow_id:
        raise InvalidArgument(
            f"node {parent.node_id} belongs to workflow {theirs}, not to {workflow_id}; pass its text instead",
            reason="OTHER_WORKFLOW",
            field="after",
        )
    return parent.node_id


def _bodies(segment: Segment, path: str) -> Iterator[Body]:
    role = _ROLES.get(segment.role)
    if role is None:
        raise InvalidArgument(
            f"{path}.role: must be one of {', '.join(_ROLES)}; got {segment.role!r}",
            reason="BAD_ROLE",
            field=f"{path}.role",
        )
    if segment.tokens < 0:
        raise InvalidArgument(
            f"{path}.tokens: cannot be negative; got {segment.tokens}", reason="NEGATIVE_TOKENS", field=f"{path}.tokens"
        )
    if segment.token_ids:
        if segment.text:
            raise InvalidArgument(
                f"{path}: has either text or token_ids", reason="BAD_PROMPT", field=f"{path}.token_ids"
            )
        yield Body(role, SegmentKind.TOKEN_IDS, token_ids=segment.token_ids, tokens=segment.tokens)
        return
    data = segment.text.encode()
    if segment.structured:
        yield Body(role, SegmentKind.MESSAGE, data, tokens=segment.tokens)
        return
    pieces = list(_split(data))
    for piece in pieces:
        tokens = segment.tokens if len(pieces) == 1 else ceil_div(segment.tokens * len(piece), len(data))
        yield Body(role, SegmentKind.TEXT, piece, tokens=tokens)


def _split(data: bytes) -> Iterator[bytes]:
    """Pieces that fit into a segment and end between characters."""
    start = 0
    while len(data) - start > PIECE_BYTES_MAX:
        end = start + PIECE_BYTES_MAX
        while data[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        yield data[start:end]
        start = end
    yield data[start:]


def _place(digest: str, tokens: int, role: SegmentRole, kind: SegmentKind) -> call_pb2.PromptSegment:
    return call_pb2.PromptSegment(
        ref=call_pb2.SegmentRef(digest=digest, tokens=tokens),
        role=enums_pb2.SegmentRole.ValueType(role),
        kind=enums_pb2.SegmentKind.ValueType(kind),
    )


def _output_of(node_id: str) -> call_pb2.PromptSegment:
    return call_pb2.PromptSegment(
        ref=call_pb2.SegmentRef(output_of=node_id),
        role=enums_pb2.SEGMENT_ROLE_ASSISTANT,
        kind=enums_pb2.SEGMENT_KIND_OUTPUT,
    )
