"""Reader of traces: JSON lines in one of several formats, recognised by the first line.

A delay that is not recorded (`tool_ms` null) is drawn, the same for all samples of a node and keyed by (seed, workflow,
node). By `kind`: log-normal with p50 0.3 s and p90 13.6 s, cut at 60 s, where its name holds one of `HEAVY_KINDS`
(agents that run code or browse); else 50 to 500 ms, uniform. It is 0 before first calls and in conversations.

A prompt that extends the output of a node with several samples extends that of the first.
"""

import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.sim.workloads.arrivals import RATE_RANGE_MILLI, arrival_times, milli, parse_arrivals
from hexagent.sim.workloads.model import ScriptedWorkflow, Workload, check_workflow
from hexagent.sim.workloads.options import check_tenants, drawn_tenant
from hexagent.sim.workloads.trace_fields import Place
from hexagent.sim.workloads.trace_formats import workflows_in
from hexagent.sim.workloads.trace_script import TraceScript

RATE_DEFAULT_PER_S = 10  # the arrival rate most of the benchmark's workloads have


class TraceOptions(NamedTuple):
    limit: int = 0  # workflows read, the first of the file; 0 = all
    rate_per_s: float = 0.0  # replaces recorded arrivals; 0 = as recorded, or RATE_DEFAULT_PER_S
    arrivals: str = "fixed"  # fixed, poisson, gamma, gamma:CV: where arrivals are not recorded or replaced
    seed: int = 1
    tenants: tuple[str, ...] = ("default",)
    format: str = ""  # a key of FORMATS; "" = recognised
    gap_limit_us: int = -1  # longer gaps of conversations are cut to it, 0 = back to back; -1 = as recorded


class TraceFacts(NamedTuple):
    """What of a trace was recorded and what is assumed."""

    arrivals: bool  # whether they are recorded
    calls: int
    drawn: int  # calls whose delay after their deps is drawn
    jct_us: dict[str, int]  # how long workflows really took, where that is recorded


def read_trace(path: Path, options: TraceOptions = TraceOptions()) -> Workload:
    """The workload recorded in `path`.

    `NotFound` where there is no such file or format; `InvalidArgument` with reason BAD_TRACE, naming file, line and
    field, where its content is not a trace.
    """
    check_tenants(options.tenants)
    if options.limit < 0:
        raise InvalidArgument("limit: must be 0 or more", reason="BAD_OPTION", field="limit")
    if options.gap_limit_us < -1:
        raise InvalidArgument("gap_limit_us: must be -1 or more", reason="BAD_OPTION", field="gap_limit_us")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "trace"
    script = TraceScript(name, options.seed, options.gap_limit_us)
    recorded = _collected(path, options, script)
    scripts = script.scripts()
    times = _arrivals([workflow.arrival_us for workflow, _ in scripts], recorded, options)
    workflows = [
        ScriptedWorkflow(
            workflow.workflow_id,
            name,
            drawn_tenant(options.tenants, workflow.workflow_id),
            arrival_us,
            items,
            workflow.conversation,
        )
        for (workflow, items), arrival_us in zip(scripts, times, strict=True)
    ]
    for workflow in workflows:
        check_workflow(workflow)
    workflows.sort(key=lambda workflow: workflow.arrival_us)  # stable: workflows that arrive together as in the file
    return Workload(name, f"trace {path.name}: {len(workflows)} workflows, seed {options.seed}", tuple(workflows))


def read_facts(path: Path, options: TraceOptions = TraceOptions()) -> TraceFacts:
    """What the file says of the workflows that `read_trace` reads; it raises the same."""
    workflows = list(islice(workflows_in(path, options.format), options.limit or None))
    nodes = [node for workflow in workflows for node in workflow.nodes if not workflow.conversation]
    return TraceFacts(
        arrivals=all(workflow.arrival_us >= 0 for workflow in workflows),
        calls=sum(node.samples for workflow in workflows for node in workflow.nodes),
        drawn=sum(node.samples for node in nodes if node.deps and node.tool_us < 0),
        jct_us={workflow.workflow_id: workflow.jct_us for workflow in workflows if workflow.jct_us >= 0},
    )


def _collected(path: Path, options: TraceOptions, script: TraceScript) -> bool:
    """Adds the file's workflows to `script`; whether their arrivals are recorded."""
    lines: dict[str, int] = {}
    recorded = False
    for workflow in workflows_in(path, options.format):
        place = workflow.place
        if workflow.workflow_id in lines:
            place.bad("id", f"repeats {workflow.workflow_id!r} of line {lines[workflow.workflow_id]}")
        if lines and (workflow.arrival_us >= 0) != recorded:
            place.bad("arrival_ms", "must be on every line or on none")
        recorded = workflow.arrival_us >= 0
        lines[workflow.workflow_id] = place.line
        script.add(workflow)
        if len(lines) == options.limit:
            break
    if not lines:
        Place(path.name, 0).bad("line", "the file holds no workflow")
    return recorded


def _arrivals(recorded_us: list[int], recorded: bool, options: TraceOptions) -> list[int]:
    """Arrival times in the order of the file, the earliest at 0."""
    rate_milli = milli(options.rate_per_s or RATE_DEFAULT_PER_S, "rate_per_s", *RATE_RANGE_MILLI)
    arrivals = parse_arrivals(options.arrivals)
    if recorded and not options.rate_per_s:
        if options.arrivals != TraceOptions().arrivals:
            raise InvalidArgument(
                f"{options.arrivals!r} is for arrivals at a rate, but those of the trace are recorded",
                reason="BAD_OPTION",
                field="arrivals",
            )
        return [arrival_us - min(recorded_us) for arrival_us in recorded_us]
    return arrival_times(len(recorded_us), rate_milli, arrivals, options.seed)
