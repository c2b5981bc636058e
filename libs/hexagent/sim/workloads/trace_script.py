"""From recorded nodes to scripted items: samples become siblings, prompts are cut where another prompt leaves them.

A prompt is a list of spans of sources: a template of its kind, tokens of its own, or the output of a call. A prompt
that extends another starts with the other's spans. Each source is cut wherever some prompt stops sharing it, over the
whole file, so that shared tokens come out as segments of equal names.
"""

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import NamedTuple

from hexagent.sim.workloads.draws import between, lognormal_by_median, stream
from hexagent.sim.workloads.model import Segment, WorkItem, output_cap
from hexagent.sim.workloads.trace_nodes import TraceNode, TraceWorkflow

API_TOOL_US = (50_000, 500_000)  # uniform
HEAVY_TOOL = lognormal_by_median(300_000, 2_976, 0, 60_000_000)  # p50 0.3 s, p90 13.6 s, cut at 60 s
HEAVY_KINDS = ("agent", "brows", "code", "coding", "exec", "shell", "terminal", "web")  # parts of kinds' names


class Span(NamedTuple):
    source: str
    start: int
    end: int
    output_of: int = -1  # item whose output the source is; such a span is never cut


class Draft(NamedTuple):
    """A workflow whose prompts are not cut yet."""

    workflow: TraceWorkflow
    items: tuple[WorkItem, ...]  # without segments and caps
    prompts: tuple[tuple[Span, ...], ...]  # of each item


class TraceScript:
    """Collects the workflows of a file; items can be had once all are in, for cuts and caps hold for the whole."""

    def __init__(self, trace: str, seed: int, gap_limit_us: int) -> None:
        self._trace = trace
        self._seed = seed
        self._gap_limit_us = gap_limit_us  # -1 = none
        self._cuts: dict[str, set[int]] = {}
        self._largest: dict[str, int] = {}  # output by role
        self._drafts: list[Draft] = []

    def add(self, workflow: TraceWorkflow) -> None:
        """Takes in a workflow; BAD_TRACE unless each prompt can be what it says it extends."""
        prompts = self._prompts(workflow)
        rounds = _rounds(workflow.nodes)
        firsts: list[int] = []  # first item of each node
        count = 0
        for node in workflow.nodes:
            firsts.append(count)
            count += node.samples
        items: list[WorkItem] = []
        spans: list[tuple[Span, ...]] = []
        for node, prompt, repeat in zip(workflow.nodes, prompts, rounds, strict=True):
            self._largest[node.kind] = max(self._largest.get(node.kind, 0), node.output)
            deps = tuple(firsts[dep] + k for dep in node.deps for k in range(workflow.nodes[dep].samples))
            item = self._item(workflow, node, deps)._replace(round=repeat)
            items += [item._replace(index=len(items) + k) for k in range(node.samples)]
            held = tuple(s._replace(output_of=firsts[s.output_of]) if s.output_of >= 0 else s for s in prompt)
            spans += [held] * node.samples
        self._drafts.append(Draft(workflow, tuple(items), tuple(spans)))

    def _item(self, workflow: TraceWorkflow, node: TraceNode, deps: tuple[int, ...]) -> WorkItem:
        return WorkItem(
            index=0,
            deps=deps,
            role=node.kind,
            prompt_tokens=node.prompt,
            output_tokens=node.output,
            max_tokens=0,
            segments=(),
            tool_us=self._tool_us(workflow, node),
            gap_us=node.gap_us if self._gap_limit_us < 0 else min(node.gap_us, self._gap_limit_us),
            template=node.kind,
            target=node.target,
        )

    def scripts(self) -> list[tuple[TraceWorkflow, tuple[WorkItem, ...]]]:
        """Each workflow with its items, in the order they came."""
        cuts = {source: sorted(places) for source, places in self._cuts.items()}
        caps = {role: output_cap(largest) for role, largest in self._largest.items()}
        return [
            (
                draft.workflow,
                tuple(
                    item._replace(max_tokens=caps[item.role], segments=_segments(spans, cuts))
                    for item, spans in zip(draft.items, draft.prompts, strict=True)
                ),
            )
            for draft in self._drafts
        ]

    def _prompts(self, workflow: TraceWorkflow) -> list[tuple[Span, ...]]:
        """The spans of each node's prompt; `output_of` is the node's position."""
        prompts: list[tuple[Span, ...]] = []
        ended: list[int] = []  # bit j of entry i: node j ends before node i is due
        for node in workflow.nodes:
            before = 0
            for dep in node.deps:
                before |= ended[dep] | 1 << dep
            ended.append(before)
            _check_prefix(workflow, node, before)
            shared = self._blocks(node) if node.blocks else self._shared(workflow, node, prompts)
            fresh = node.prompt - sum(span.end - span.start for span in shared)
            source = f"{self._trace}/{workflow.workflow_id}/{node.node_id}"
            own = (Span(source, 0, fresh),) if fresh else ()
            prompts.append((*shared, *own))
        return prompts

    def _blocks(self, node: TraceNode) -> tuple[Span, ...]:
        """Blocks of one id are one text wherever they stand; the last one may end early."""
        spans = []
        for number, block in enumerate(node.blocks):
            source = f"{self._trace}/block/{block}"
            end = min(node.block_tokens, node.prompt - number * node.block_tokens)
            if end < node.block_tokens:
                self._cuts.setdefault(source, set()).add(end)
            spans.append(Span(source, 0, end))
        return tuple(spans)

    def _shared(self, workflow: TraceWorkflow, node: TraceNode, prompts: list[tuple[Span, ...]]) -> tuple[Span, ...]:
        """The spans `node` shares with the prompt it extends or with its kind's template."""
        if not node.prefix:
            return ()
        if node.prefix_of < 0:
            # Templates of one kind but of other lengths are other texts: a last step has its own prompt.
            return (Span(f"{self._trace}/template/{node.kind}/{node.prefix}", 0, node.prefix),)
        parent = workflow.nodes[node.prefix_of]
        output = f"{self._trace}/{workflow.workflow_id}/{parent.node_id}/output"
        shared: list[Span] = []
        left = node.prefix
        for span in (*prompts[node.prefix_of], Span(output, 0, parent.output, node.prefix_of)):
            if span.end - span.start > left:
                # An output stands in a prompt whole or not at all; the part of one counts as tokens of its own.
                if left and span.output_of < 0:
                    shared.append(span._replace(end=span.start + left))
                    self._cuts.setdefault(span.source, set()).add(span.start + left)
                break
            shared.append(span)
            left -= span.end - span.start
        return tuple(shared)

    def _tool_us(self, workflow: TraceWorkflow, node: TraceNode) -> int:
        """The recorded delay, or one drawn for the node where none is recorded and a tool may have run."""
        if node.tool_us >= 0:
            return node.tool_us
        if not node.deps or workflow.conversation:
            return 0  # nothing ran before the first call, and between turns of a conversation a person thinks
        rng = stream("tool", self._seed, workflow.workflow_id, node.node_id)
        kind = node.kind.lower()
        if any(part in kind for part in HEAVY_KINDS):
            return HEAVY_TOOL.draw(rng)
        return between(rng, *API_TOOL_US)


def _check_prefix(workflow: TraceWorkflow, node: TraceNode, before: int) -> None:
    place = workflow.place
    if node.prefix > node.prompt:
        place.bad(f"{node.at}.prefix", f"{node.prefix} tokens are more than the prompt's {node.prompt}")
    if node.prefix_of < 0:
        return
    parent = workflow.nodes[node.prefix_of]
    context = parent.prompt + parent.output
    if node.prefix > context:
        place.bad(f"{node.at}.prefix", f"{node.prefix} tokens are more than the {context} of node {parent.node_id}")
    if node.prefix > parent.prompt and not before >> node.prefix_of & 1:
        place.bad(f"{node.at}.prefix_of", f"shares the output of node {parent.node_id}, which need not have ended")


def _rounds(nodes: tuple[TraceNode, ...]) -> list[int]:
    """How many nodes of its own kind stand before each node on the path that has most of them."""
    counts: list[dict[str, int]] = []
    for node in nodes:
        before: dict[str, int] = {}
        for dep in node.deps:
            for kind, count in counts[dep].items():
                before[kind] = max(before.get(kind, 0), count)
        before[node.kind] = before.get(node.kind, 0) + 1
        counts.append(before)
    return [count[node.kind] - 1 for node, count in zip(nodes, counts, strict=True)]


def _segments(spans: tuple[Span, ...], cuts: dict[str, list[int]]) -> tuple[Segment, ...]:
    segments = []
    for span in spans:
        if span.output_of >= 0:
            segments.append(Segment(span.source, span.end, span.output_of))
            continue
        places = cuts.get(span.source, [])
        inner = places[bisect_right(places, span.start) : bisect_left(places, span.end)]
        edges = [span.start, *inner, span.end]
        segments += [Segment(f"{span.source}:{low}-{high}", high - low) for low, high in pairwise(edges)]
    return tuple(segments)
