"""When the calls of a workflow can run at the earliest, and must have run at the latest, whatever runs beside them."""

from typing import NamedTuple

from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem


class Timing(NamedTuple):
    """Lists have an entry an item; times in microseconds."""

    release_us: list[float]  # its prefill cannot start earlier
    anchor_us: list[float]  # the workflow needs scale alpha or more if the call ends after this + alpha * solo
    required: list[bool]  # False: a join may do without it
    path_us: float  # least completion time: of a conversation the sum of its turns


def timing_of(workflow: ScriptedWorkflow, prefill_us: list[float], after_us: list[float]) -> Timing:
    """From the least times of each call's prefill and of what follows it until the call has ended."""
    least_us = [prefill + after for prefill, after in zip(prefill_us, after_us, strict=True)]
    required = _required(workflow.items)
    release_us: list[float] = []
    for item in workflow.items:
        release_us.append(_release(workflow, item, release_us, least_us))
    if workflow.conversation:
        anchor_us, path_us = _conversation(workflow, required, least_us)
        return Timing(release_us, anchor_us, required, path_us)
    below_us = [0.0] * len(workflow.items)  # from the end of the call to that of the workflow
    for item in reversed(workflow.items):
        if required[item.index] and not _partial(item):
            for dep in item.deps:
                below_us[dep] = max(below_us[dep], item.tool_us + least_us[item.index] + below_us[item.index])
    anchor_us = [workflow.arrival_us - below for below in below_us]
    ends = zip(required, release_us, least_us, strict=True)
    path_us = max([release + least for needed, release, least in ends if needed], default=0.0) - workflow.arrival_us
    return Timing(release_us, anchor_us, required, path_us)


def _conversation(workflow: ScriptedWorkflow, required: list[bool], least_us: list[float]) -> tuple[list[float], float]:
    """Pauses count for nothing, so a call may end later by those before it, and turns not on its way must fit too.

    A call is due at most max(turn, gap) after its dep was due, or the tool's time after that dep's end.
    """
    total_us = sum([least for needed, least in zip(required, least_us, strict=True) if needed])
    reach_us: list[float] = []
    for item in workflow.items:
        before = max([reach_us[dep] for dep in item.deps], default=0.0)
        own_us = least_us[item.index] if required[item.index] else 0.0
        reach_us.append(before + item.gap_us + item.tool_us + own_us)
    return [workflow.arrival_us - total_us + reach for reach in reach_us], total_us


def _release(workflow: ScriptedWorkflow, item: WorkItem, release_us: list[float], least_us: list[float]) -> float:
    if not item.deps:
        return float(workflow.arrival_us + item.tool_us)
    ends = sorted([release_us[dep] + least_us[dep] for dep in item.deps])
    due_us = ends[(item.join_k or len(ends)) - 1] + item.tool_us
    return max(due_us, release_us[item.deps[0]] + item.gap_us) if item.gap_us else due_us


def _required(items: tuple[WorkItem, ...]) -> list[bool]:
    """Calls nobody waits for must end, and so must all deps of what must unless its join needs only some of them."""
    inner = {dep for item in items for dep in item.deps}
    required = [item.index not in inner for item in items]
    for item in reversed(items):
        if required[item.index] and not _partial(item):
            for dep in item.deps:
                required[dep] = True
    return required


def _partial(item: WorkItem) -> bool:
    return 0 < item.join_k < len(item.deps)
