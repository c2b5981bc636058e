"""What a workload consists of, in one row a class of workflows."""

from typing import NamedTuple

from hexagent.core.units import US_PER_S
from hexagent.sim.workloads.model import ScriptedWorkflow, Workload


class SummaryRow(NamedTuple):
    workflow_class: str  # "all" for the last row of a workload with several classes
    workflows: int
    calls: int
    mean_calls: float
    max_calls: int
    mean_prompt_tokens: float  # a call, cached or not
    mean_output_tokens: float  # a call
    mean_tool_ms: float  # a call
    span_s: float  # from the first arrival to the last


def summary(workload: Workload) -> tuple[SummaryRow, ...]:
    """A row for each class, by name, and one for all where there are several."""
    classes = sorted({workflow.workflow_class for workflow in workload.workflows})
    rows = [_row(name, [w for w in workload.workflows if w.workflow_class == name]) for name in classes]
    if len(classes) != 1:
        rows.append(_row("all", list(workload.workflows)))
    return tuple(rows)


def _row(name: str, workflows: list[ScriptedWorkflow]) -> SummaryRow:
    items = [item for workflow in workflows for item in workflow.items]
    arrivals = [workflow.arrival_us for workflow in workflows]
    calls = max(len(items), 1)
    return SummaryRow(
        workflow_class=name,
        workflows=len(workflows),
        calls=len(items),
        mean_calls=len(items) / max(len(workflows), 1),
        max_calls=max((len(workflow.items) for workflow in workflows), default=0),
        mean_prompt_tokens=sum(item.prompt_tokens for item in items) / calls,
        mean_output_tokens=sum(item.output_tokens for item in items) / calls,
        mean_tool_ms=sum(item.tool_us for item in items) / calls / 1_000,
        span_s=(max(arrivals, default=0) - min(arrivals, default=0)) / US_PER_S,
    )
