"""Scripted workflows: what the client programs of a workload will do, call by call.

The script is the hidden truth of a run. A client or the simulator's world walks it and reveals an item only once it is
due, so no scheduler sees a later item, an output length or the number of calls before they happen.
"""

import hashlib
import json
from typing import NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.needs import Needs

OUTPUT_CAPS = (512, 1_024, 2_048, 4_096)  # tokens; longer outputs take the next power of two


class Segment(NamedTuple):
    """A piece of a prompt. Equal names mean equal content, within a workload and across its workflows."""

    name: str
    tokens: int
    output_of: int = -1  # index of the item whose whole output stands here; -1 = literal text


class Target(NamedTuple):
    """What a call asks to run on."""

    model: str = ""  # "" = the cluster's first one
    lora: str = ""
    min_precision: str = ""

    @property
    def needs(self) -> Needs:
        return Needs(self.lora, self.min_precision)


class WorkItem(NamedTuple):
    """One LLM call of a scripted workflow.

    It is due `tool_us` after its last needed dep has ended, and with `gap_us` not before its dep was due plus the gap.
    """

    index: int  # type: ignore[assignment]  # position in the workflow; hides `tuple.index`, which nothing needs
    deps: tuple[int, ...]  # indices of earlier items, ascending
    role: str
    prompt_tokens: int  # sum over `segments`
    output_tokens: int  # what the model will generate: hidden from everything but the engine
    max_tokens: int  # the same for all calls of a role in a workload, so that it tells nothing about this output
    segments: tuple[Segment, ...]
    tool_us: int = 0  # run by the client as a tool
    gap_us: int = 0  # between the due times of the only dep and of this item; 0 = none
    template: str = ""  # node template of a loop, "" = none
    round: int = 0  # which repetition of the template
    join_k: int = 0  # how many deps must end; 0 = all
    target: Target = Target()


class ScriptedWorkflow(NamedTuple):
    workflow_id: str
    workflow_class: str
    tenant: str
    arrival_us: int
    items: tuple[WorkItem, ...]  # topological: every dep stands before what waits for it
    conversation: bool = False  # its gaps are a person's time: stretch = sum of turn times / sum of solo times


class Workload(NamedTuple):
    name: str
    source: str  # where it comes from, for people: generator with its settings, or file
    workflows: tuple[ScriptedWorkflow, ...]  # by arrival


def output_cap(largest_output: int) -> int:
    """The `max_tokens` of a role whose longest output in the workload has `largest_output` tokens."""
    for cap in OUTPUT_CAPS:
        if largest_output <= cap:
            return cap
    return 1 << (largest_output - 1).bit_length()


def digest(workload: Workload) -> str:
    """SHA-256 over every value of the workload: equal digests are equal workloads."""
    state = hashlib.sha256(json.dumps([workload.name, workload.source]).encode())
    for workflow in workload.workflows:
        state.update(json.dumps(workflow, separators=(",", ":")).encode())
    return state.hexdigest()


def check_workflow(workflow: ScriptedWorkflow) -> None:
    """`InvalidArgument` naming the item and field unless the script can be run as written."""
    if not workflow.items:
        raise _bad(workflow, "items", "is empty")
    if workflow.arrival_us < 0:
        raise _bad(workflow, "arrival_us", "is negative")
    ancestors: list[int] = []  # bit j of entry i: item j ends before item i starts
    for position, item in enumerate(workflow.items):
        if item.index != position:
            raise _bad(workflow, f"items[{position}].index", f"is {item.index}")
        ancestors.append(_checked_deps(workflow, item, ancestors))
        _check_numbers(workflow, item)
        _check_prompt(workflow, item, ancestors[position])


def _checked_deps(workflow: ScriptedWorkflow, item: WorkItem, ancestors: list[int]) -> int:
    """The set of items sure to have ended before `item` is due, as bits."""
    if list(item.deps) != sorted(set(item.deps)):
        raise _bad(workflow, f"items[{item.index}].deps", "are not ascending and unique")
    if item.deps and not 0 <= item.deps[0] <= item.deps[-1] < item.index:
        raise _bad(workflow, f"items[{item.index}].deps", "name an item that does not stand before it")
    if not 0 <= item.join_k <= len(item.deps):
        raise _bad(workflow, f"items[{item.index}].join_k", f"is {item.join_k} of {len(item.deps)} deps")
    if 0 < item.join_k < len(item.deps):
        return 0  # which deps end in time is known only at run time
    ended = 0
    for dep in item.deps:
        ended |= ancestors[dep] | 1 << dep
    return ended


def _check_numbers(workflow: ScriptedWorkflow, item: WorkItem) -> None:
    lows = (("prompt_tokens", 1), ("output_tokens", 1), ("tool_us", 0), ("gap_us", 0), ("round", 0))
    for field, low in lows:
        if getattr(item, field) < low:
            raise _bad(workflow, f"items[{item.index}].{field}", f"is {getattr(item, field)}, less than {low}")
    if item.max_tokens < item.output_tokens:
        raise _bad(workflow, f"items[{item.index}].max_tokens", "is less than the output")
    if item.gap_us and len(item.deps) != 1:
        raise _bad(workflow, f"items[{item.index}].gap_us", f"needs exactly one dep, not {len(item.deps)}")


def _check_prompt(workflow: ScriptedWorkflow, item: WorkItem, ended: int) -> None:
    field = f"items[{item.index}].segments"
    if sum(segment.tokens for segment in item.segments) != item.prompt_tokens:
        raise _bad(workflow, field, f"do not sum to the prompt's {item.prompt_tokens} tokens")
    for segment in item.segments:
        if segment.tokens < 1:
            raise _bad(workflow, field, f"hold {segment.name!r} with {segment.tokens} tokens")
        if segment.output_of < 0:
            continue
        if not ended >> segment.output_of & 1:
            raise _bad(workflow, field, f"hold the output of item {segment.output_of}, which may not have ended")
        if segment.tokens != workflow.items[segment.output_of].output_tokens:
            raise _bad(workflow, field, f"hold {segment.tokens} tokens of the output of item {segment.output_of}")


def _bad(workflow: ScriptedWorkflow, field: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"workflow {workflow.workflow_id}: {field} {what}", reason="BAD_WORKFLOW", field=field)
