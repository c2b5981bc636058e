"""`hexagent explain WORKFLOW`: how a workflow stands, what it waits for, and when it ends."""

from hexagent.cli.report import Row, console
from hexagent.cli.top_rows import residual_row
from hexagent.client.overview import Addresses, WorkflowView, observing
from hexagent.core.ids import checked_id
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.model import WorkflowStatus

_LIVE = (WorkflowStatus.RUNNING, WorkflowStatus.PAUSED)


async def run_explain_workflow(workflow_id: str, addresses: Addresses) -> Row:
    """Say it, and give it as a row. `NotFound`; `Unavailable` where no stack is found."""
    checked_id(workflow_id, "call")
    async with observing(addresses) as observer:
        view = await observer.look_at(workflow_id)
    out = console()
    for line in workflow_lines(view):
        out.print(line)
    return workflow_row(view)


def workflow_row(view: WorkflowView) -> Row:
    """Flat, times in seconds of model time."""
    described, workflow = view.described, view.described.workflow
    return {
        "workflow": workflow.workflow_id,
        "tenant": workflow.tenant,
        "class": workflow.workflow_class,
        "status": workflow.status.name.lower(),
        "reason": workflow.reason,
        "age_s": workflow.age_s,
        "horizon_s": workflow.horizon_s,
        "calls": workflow.calls,
        "calls_ended": workflow.calls_ended,
        "bottleneck": described.bottleneck,
        "bottleneck_reason": described.bottleneck_reason,
        "at_s": view.cluster.at_us / US_PER_S,
        "snapshot_revision": view.cluster.snapshot_revision,
        **residual_row(view.residuals, workflow.workflow_id, view.cluster.at_us),
    }


def workflow_lines(view: WorkflowView) -> list[str]:
    """The same for people."""
    described, workflow = view.described, view.described.workflow
    lines = [f"[bold]{workflow.workflow_id}[/bold]: {workflow.status.name.lower()} {workflow.reason}".rstrip() + "."]
    lines.append(
        f"Class {workflow.workflow_class or '-'} of tenant {workflow.tenant}, {workflow.age_s:.2f} s old with a horizon"
        f" of {workflow.horizon_s:.2f} s; {workflow.calls_ended} of {workflow.calls} calls have ended."
    )
    if workflow.status in _LIVE:
        if described.bottleneck:
            lines.append(f"It waits for {described.bottleneck}: {described.bottleneck_reason}.")
        lines.append(ends_text(view))
    return lines


def ends_text(view: WorkflowView) -> str:
    """When it ends, or why that is not known."""
    if view.residuals is None:
        return "Ends in -: the estimator does not answer, or the scheduler has no fresh snapshot of it."
    row = workflow_row(view)
    if row["ends_in_s"] is None:
        return "Ends in -: too little is known of its class, or none of its calls has been dispatched."
    return (
        f"Ends in {row['ends_in_s']:.1f} s (90 %: {row['ends_in_90_percent_s']:.1f} s,"
        f" 99 %: {row['ends_in_99_percent_s']:.1f} s) alone on the cluster,"
        f" as foreseen {row['foreseen_ago_s']:.1f} s ago when {row['foreseen_at_call']} was dispatched."
    )
