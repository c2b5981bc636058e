"""`hexagent run`: a workload live, on a stack of its own or on one that runs."""

import asyncio
import time
import uuid
from typing import Final, NamedTuple

import hexagent.client
from hexagent.cli.breakdown import breakdown_rows, shares_text, spent_columns
from hexagent.cli.report import Row, console, error_console, say, table_of
from hexagent.cli.runner import Live, Run, RunProgress, overhead_note, run_workload, summary_row
from hexagent.cli.stack import LocalStack, StackOptions, until_failed
from hexagent.runtime.clock import ModelClock
from hexagent.sim.metrics import WorkflowRow, flat
from hexagent.sim.workloads.model import Workload

SLOWEST: Final = 5  # workflows in the table

_PROBE_S: Final = 0.5  # wall time over which a running stack's time scale is measured


class RunOptions(NamedTuple):
    """Where and how a workload runs."""

    stack: StackOptions
    address: str = ""  # of a running stack's dag-tracker; "" = a stack of its own
    slo_scale: float | None = None


async def run_on_stack(options: RunOptions, workload: Workload, title: str) -> Run:
    """Run the workload where the options say."""
    progress = RunProgress(title, error_console())
    if options.address:
        return await _on_running(options, workload, progress)
    return await on_own_stack(options, workload, progress)


async def on_own_stack(options: RunOptions, workload: Workload, progress: RunProgress) -> Run:
    """Start a stack, run, stop the stack."""
    errors = error_console()
    stack = LocalStack(options.stack, say)
    with errors.status(f"starting the stack: cluster {stack.config.spec.name}, policy {stack.policy}"):
        await stack.start()
    try:
        async with hexagent.client.connect(stack.address) as client:
            live, before_s = Live(client, stack.clock), stack.cpu_s()
            run = await until_failed(stack, run_workload(live, workload, progress, options.slo_scale))
        calls = max(sum(row.calls for row in run.rows), 1)
        used_ms = {name: (end_s - before_s.get(name, 0.0)) * 1_000 for name, end_s in stack.cpu_s().items()}
        return run._replace(cpu_ms_per_call={name: ms / calls for name, ms in used_ms.items()})
    finally:
        with errors.status("stopping the stack"):
            await stack.stop()


async def _on_running(options: RunOptions, workload: Workload, progress: RunProgress) -> Run:
    """Ids get a suffix of their own, because the stack may have run the workload before."""
    async with hexagent.client.connect(options.address) as client:
        clock = ModelClock(time.time_ns(), options.stack.time_scale or await time_scale_of(client))
        suffix = f".{uuid.uuid4().hex[:6]}"
        own = tuple(w._replace(workflow_id=w.workflow_id + suffix) for w in workload.workflows)
        live = Live(client, clock, same_origin=False)
        return await run_workload(live, workload._replace(workflows=own), progress, options.slo_scale)


async def time_scale_of(client: hexagent.client.Client) -> float:
    """Model seconds a wall second of a running stack: how fast a workflow without calls gets older there."""
    async with client.workflow("time-scale-probe") as wf:
        instants: list[tuple[float, float]] = []  # wall seconds, age in model seconds
        for pause_s in (0.0, 0.0, _PROBE_S):  # the first answer only opens the connection
            await asyncio.sleep(pause_s)
            asked_s = time.monotonic()
            age_s = (await wf.describe()).workflow.age_s
            instants.append(((asked_s + time.monotonic()) / 2, age_s))
    (_, (from_s, from_age_s), (to_s, to_age_s)) = instants
    return float(f"{(to_age_s - from_age_s) / (to_s - from_s):.3g}")


def show(run: Run, workload: Workload) -> None:
    """The tables a run ends with."""
    out, errors = console(), error_console()
    out.print(f"{workload.source}; {run.wall_s:.1f} s of wall time, time scale {run.time_scale:g}", style="dim")
    figures: list[Row] = [{"figure": name, "value": value} for name, value in summary_row(run).items()]
    out.print(table_of("Summary: reqN is the SLO scale that N % of workflows meet", figures, right=("value",)))
    slowest = sorted(run.rows, key=lambda row: (-row.stretch, row.workflow))[:SLOWEST]
    several = len({row.tenant for row in run.rows}) > 1
    out.print(table_of("Largest stretch", [_short(row, several) for row in slowest], right=("stretch",)))
    if parts := breakdown_rows(slowest, run.spent):
        out.print(table_of("Where their time went, seconds along the chain of nodes that made it", parts))
        out.print(shares_text(run.spent), style="dim")
    if note := overhead_note(run):
        out.print(note, style="dim")
    if run.cpu_ms_per_call:
        shares = ", ".join(f"{name} {ms:.1f}" for name, ms in run.cpu_ms_per_call.items())
        out.print(f"Processor ms a call: {shares}; {sum(run.cpu_ms_per_call.values()):.1f} in all.", style="dim")
    for error in run.errors[:SLOWEST]:
        errors.print(error, style="red", markup=False)
    if len(run.errors) > SLOWEST:
        errors.print(f"and {len(run.errors) - SLOWEST} more errors", style="red")


def run_rows(run: Run) -> list[Row]:
    """Every workflow in one row, with where its time went."""
    return [{**flat(row), **spent_columns(run.spent.get(row.workflow))} for row in run.rows]


def all_completed(run: Run) -> bool:
    return all(row.completed for row in run.rows)


def _short(row: WorkflowRow, with_tenant: bool) -> Row:
    """What fits into a terminal's width; the JSON has the rest."""
    columns = ("workflow", "tenant", "calls", "status", "jct_s", "horizon_s", "stretch")
    full = flat(row)
    return {name: full[name] for name in columns if name != "tenant" or with_tenant}
