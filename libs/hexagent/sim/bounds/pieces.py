"""Prompt tokens that somebody must compute: whole prompts, or with prefix reuse what a workflow has to itself."""

from typing import NamedTuple

from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem, Workload


class Piece(NamedTuple):
    """Prompt tokens behind a prefix, computed at least once by one of the calls that hold them."""

    workflow: int  # position in the workload
    holders: tuple[int, ...]  # items, ascending
    tokens: int
    pairs: int  # twice their (query, key) pairs, n * (2 * prefix + n)
    first: bool  # no holder can start before the first ones, which wait for the same deps, so those compute it


def pieces_of(workload: Workload, reuse: bool) -> list[Piece]:
    """Without reuse a piece a call. With it a piece for each stretch of a prompt that only one workflow holds.

    Outputs that stand in prompts are left out: where they were generated their KV may have been kept.
    """
    if not reuse:
        return [
            Piece(position, (item.index,), item.prompt_tokens, item.prompt_tokens**2, True)
            for position, workflow in enumerate(workload.workflows)
            for item in workflow.items
        ]
    return _private(workload)


class _Stretch:
    """A segment behind one path of segments, anywhere in the workload."""

    __slots__ = ("holders", "output", "prefix", "tokens", "workflow")

    def __init__(self, workflow: int, prefix: int, tokens: int, output: bool) -> None:
        self.workflow = workflow  # -1 = several
        self.holders: list[int] = []
        self.prefix = prefix
        self.tokens = tokens
        self.output = output


def _private(workload: Workload) -> list[Piece]:
    numbers: dict[tuple[int, str, int], int] = {}  # by (stretch before, name, tokens)
    stretches: list[_Stretch] = []
    for position, workflow in enumerate(workload.workflows):
        for item in workflow.items:
            before, prefix = -1, 0
            for segment in item.segments:
                key = (before, segment.name, segment.tokens)
                before = numbers.setdefault(key, len(stretches))
                if before == len(stretches):
                    stretches.append(_Stretch(position, prefix, segment.tokens, segment.output_of >= 0))
                stretch = stretches[before]
                if stretch.workflow == position:
                    stretch.holders.append(item.index)
                else:
                    stretch.workflow = -1
                prefix += segment.tokens
    ancestors = [_ancestors(workflow) for workflow in workload.workflows]
    return [
        Piece(
            stretch.workflow,
            tuple(stretch.holders),
            stretch.tokens,
            stretch.tokens * (2 * stretch.prefix + stretch.tokens),
            _starts_here(workload.workflows[stretch.workflow].items, stretch.holders, ancestors[stretch.workflow]),
        )
        for stretch in stretches
        if stretch.workflow >= 0 and not stretch.output
    ]


def twins(one: WorkItem, other: WorkItem) -> bool:
    """Whether they are due at the same time."""
    return (one.deps, one.tool_us, one.gap_us, one.join_k) == (other.deps, other.tool_us, other.gap_us, other.join_k)


def _starts_here(items: tuple[WorkItem, ...], holders: list[int], ancestors: list[int]) -> bool:
    first = holders[0]
    return all(ancestors[other] >> first & 1 or twins(items[first], items[other]) for other in holders)


def _ancestors(workflow: ScriptedWorkflow) -> list[int]:
    """For each item the items sure to have ended before it is due, as bits."""
    ancestors: list[int] = []
    for item in workflow.items:
        before = 0
        if not 0 < item.join_k < len(item.deps):
            for dep in item.deps:
                before |= ancestors[dep] | 1 << dep
        ancestors.append(before)
    return ancestors
