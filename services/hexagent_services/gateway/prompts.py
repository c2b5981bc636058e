"""Prompts of calls: messages become segments, and outputs of earlier calls of the session stand for themselves."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.client import CallResult, Segment
from hexagent.client.prompts import build_prompt
from hexagent.text.reader import Whole
from hexagent_services.gateway.chat import Chat
from hexagent_services.gateway.messages import Message, assistant_text, output_key


class Output(NamedTuple):
    """What a call of the session generated."""

    workflow_id: str
    node_id: str
    digest: str  # "" = the body has expired
    tokens: int
    parents: tuple[str, ...]  # calls whose outputs stood in its prompt, as far as no other parent stands for them


class Outputs:
    """The latest outputs of a session by what their text says; bounded, the least used is forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_key: OrderedDict[str, Output] = OrderedDict()
        self._by_node: dict[str, Output] = {}

    def add(self, result: CallResult, said: Whole, parents: tuple[str, ...]) -> None:
        """Remember the output of a call that succeeded, and said so to its client."""
        if not result.digest or not self._limit:
            return
        key = output_key(assistant_text(said.content, said.tool_calls))
        self._drop(self._by_key.pop(key, None))
        output = Output(result.call.workflow_id, result.node_id, result.digest, result.usage.output_tokens, parents)
        self._by_key[key] = self._by_node[output.node_id] = output
        if len(self._by_key) > self._limit:
            self._drop(self._by_key.popitem(last=False)[1])

    def find(self, key: str) -> Output | None:
        """The output that a message with this key repeats."""
        output = self._by_key.get(key)
        if output is not None:
            self._by_key.move_to_end(key)
        return output

    def expire(self, keys: Iterable[str]) -> bool:
        """The bodies behind these keys are no longer stored, so messages stand for themselves; whether that is new."""
        found = {key: output for key in keys if (output := self._by_key.get(key)) is not None and output.digest}
        for key, output in found.items():
            self._by_key[key] = output._replace(digest="")
        return bool(found)

    def parents(self, outputs: Iterable[Output], workflow_id: str) -> tuple[str, ...]:
        """The calls of the workflow that a prompt with these outputs depends on.

        A conversation holds every earlier output, but the last call already depends on the ones before it: an edge
        for each pair would make the graph grow with the square of the turns.
        """
        own = dict.fromkeys(output.node_id for output in outputs if output.workflow_id == workflow_id)
        implied: set[str] = set()
        waiting = [parent for node_id in own for parent in self._parents_of(node_id)]
        while waiting:
            node_id = waiting.pop()
            if node_id not in implied:
                implied.add(node_id)
                waiting += self._parents_of(node_id)
        return tuple(node_id for node_id in own if node_id not in implied)

    def _parents_of(self, node_id: str) -> tuple[str, ...]:
        output = self._by_node.get(node_id)
        return output.parents if output is not None else ()

    def _drop(self, output: Output | None) -> None:
        if output is not None:
            self._by_node.pop(output.node_id, None)


class Revealed(NamedTuple):
    """A node to reveal, with the bodies its prompt needs and the calls whose outputs stand in it."""

    spec: workflow_pb2.NodeSpec
    bodies: dict[str, call_pb2.SegmentBody]
    parents: tuple[str, ...]


def node_of(chat: Chat, node_id: str, workflow_id: str, outputs: Outputs) -> Revealed:
    """The call of a request."""
    segments, bodies, found = _segments(chat.messages, workflow_id, outputs)
    parents = outputs.parents(found, workflow_id)
    request = call_pb2.CallRequest()
    request.CopyFrom(chat.request)
    request.segments.extend(segments)
    hints = workflow_pb2.CallHints(
        expected_output_tokens=chat.options.expected_output_tokens, min_precision=chat.options.min_precision
    )
    spec = workflow_pb2.NodeSpec(
        node_id=node_id,
        kind=enums_pb2.NODE_KIND_CALL,
        role=chat.options.role,
        after=sorted({*parents, *chat.options.after}),
        call=workflow_pb2.CallNode(request=request, hints=hints),
    )
    return Revealed(spec, bodies, parents)


def _segments(
    messages: Sequence[Message], workflow_id: str, outputs: Outputs
) -> tuple[list[call_pb2.PromptSegment], dict[str, call_pb2.SegmentBody], list[Output]]:
    segments: list[call_pb2.PromptSegment] = []
    bodies: dict[str, call_pb2.SegmentBody] = {}
    found: list[Output] = []
    for message in messages:
        output = outputs.find(message.output_key) if message.output_key else None
        if output is not None:
            found.append(output)
        if output is None or not output.digest:
            built = build_prompt(Segment(message.text, message.role, structured=message.structured), workflow_id)
            segments.extend(built.segments)
            bodies |= built.bodies
            continue
        segments.append(
            call_pb2.PromptSegment(
                ref=call_pb2.SegmentRef(digest=output.digest, tokens=output.tokens),
                role=enums_pb2.SEGMENT_ROLE_ASSISTANT,
                kind=enums_pb2.SEGMENT_KIND_OUTPUT,
            )
        )
    return segments, bodies, found
