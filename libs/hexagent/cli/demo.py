"""`hexagent demo`: the same overloaded workload under each policy, and how much sooner workflows finish."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from rich.table import Table

from hexagent.cli.attainment import picture
from hexagent.cli.failures import usage
from hexagent.cli.report import Row, console, error_console, say, shown
from hexagent.cli.run import RunOptions, all_completed, on_own_stack
from hexagent.cli.runner import Run, RunProgress, overhead_note
from hexagent.cli.stack import LocalStack, StackOptions
from hexagent.core.errors import NotFound
from hexagent.sim.metrics import summary
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import ScriptedWorkflow, Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.statistics import summary as workload_summary

POLICIES: Final = ("fcfs", "hexagent", "hexagent-plus")
BASELINE: Final = "fcfs"
OURS: Final = "hexagent"

_PERCENTS: Final = ("req50", "req95", "req99")


class Part(NamedTuple):
    """One class of workflows in the demo's mix."""

    generator: str
    workflows: int
    rate_per_s: float


# Chains with tools and loops, and tree searches that burst into fan-out and join again. Together they ask for several
# times what the demo's cluster has: policies differ where calls queue.
FULL: Final = (Part("bfcl", 60, 10.0), Part("lats", 2, 1.0))
QUICK: Final = (Part("bfcl", 24, 10.0), Part("lats", 1, 1.0))
# Literal prompt text is multiplied by this: recorded function-calling agents send several thousand tokens of tool
# descriptions with each call. Fewer, heavier calls also keep what this machine does itself small beside the engines.
PROMPT_FACTOR: Final = 6
TIME_SCALE: Final = 2.5  # the engines keep ahead of what two cores can emulate without lag


class DemoOptions(NamedTuple):
    policies: tuple[str, ...] = POLICIES
    cluster: str = "demo"
    seed: int = 1
    quick: bool = False
    time_scale: float = TIME_SCALE
    prefix_cache: bool = False


def demo_workload(seed: int, quick: bool) -> Workload:
    """The demo's mix; equal seeds give equal workloads."""
    parts = [
        generate(part.generator, Options(workflows=part.workflows, rate_per_s=part.rate_per_s, seed=seed))
        for part in (QUICK if quick else FULL)
    ]
    workflows = sorted(
        (_with_longer_prompts(workflow) for part in parts for workflow in part.workflows),
        key=lambda workflow: (workflow.arrival_us, workflow.workflow_id),
    )
    return Workload("demo", " + ".join(part.source for part in parts), tuple(workflows))


def _with_longer_prompts(workflow: ScriptedWorkflow) -> ScriptedWorkflow:
    items = []
    for item in workflow.items:
        segments = tuple(s if s.output_of >= 0 else s._replace(tokens=s.tokens * PROMPT_FACTOR) for s in item.segments)
        items.append(item._replace(segments=segments, prompt_tokens=sum(s.tokens for s in segments)))
    return workflow._replace(items=tuple(items))


async def run_demo(options: DemoOptions) -> Mapping[str, Run]:
    """Each policy in turn, on a fresh stack of its own."""
    errors = error_console()
    stacks = {policy: _stack(options, policy) for policy in options.policies}
    workload = demo_workload(options.seed, options.quick)
    _introduce(options, workload)
    runs: dict[str, Run] = {}
    for number, (policy, stack) in enumerate(stacks.items(), 1):
        title = f"{policy} ({number}/{len(stacks)})"
        run = await on_own_stack(RunOptions(stack), workload, RunProgress(title, errors))
        runs[policy] = run
        s = summary(run.rows)
        errors.print(
            f"{title}: {s.completed} of {s.workflows} workflows and {s.calls} calls in {run.wall_s:.0f} s,"
            f" req95 {shown(s.req95)}"
        )
    return runs


def _stack(options: DemoOptions, policy: str) -> StackOptions:
    """Checked before anything runs: a name that is wrong must not cost the runs before it."""
    stack = StackOptions(
        cluster=options.cluster,
        policy=policy,
        time_scale=options.time_scale,
        seed=options.seed,
        prefix_cache=options.prefix_cache,
    )
    try:
        LocalStack(stack, say)
    except NotFound as error:
        raise usage("policies", error.message) from None
    return stack


def demo_rows(runs: Mapping[str, Run]) -> list[Row]:
    """One row a policy."""
    rows: list[Row] = []
    for policy, run in runs.items():
        s = summary(run.rows)
        rows.append(
            {
                "policy": policy,
                "req50": s.req50,
                "req95": s.req95,
                "req99": s.req99,
                "completed": s.completed,
                "workflows": s.workflows,
                "calls": s.calls,
                "makespan_s": s.makespan_s,
                "wall_s": run.wall_s,
            }
        )
    return rows


def gain(ours: float, theirs: float) -> float:
    """How much lower ours is, as a share of theirs; negative where it is higher."""
    return 1 - ours / theirs if theirs else 0.0


def show_demo(runs: Mapping[str, Run]) -> None:
    """Table, gain, picture."""
    out = console()
    out.print(_table(demo_rows(runs)))
    out.print(picture({policy: [row.stretch for row in run.rows] for policy, run in runs.items()}, out.width))
    out.print()
    longest = max(runs.values(), key=lambda run: run.return_us or 0.0)
    out.print(overhead_note(longest), style="dim")
    if gains := gain_text(demo_rows(runs)):
        out.print(gains, style="bold green" if not gains.startswith("No gain") else "bold yellow")


def gain_text(rows: Sequence[Row]) -> str:
    """Ours against the baseline in one sentence; empty unless both ran."""
    by_policy = {row["policy"]: row for row in rows}
    if OURS not in by_policy or BASELINE not in by_policy:
        return ""
    gains = {
        name: gain(_number(by_policy[OURS][name]), _number(by_policy[BASELINE][name])) for name in ("req95", "req99")
    }
    if min(gains.values()) <= 0:
        changes = ", ".join(f"{name} {-share:+.0%}" for name, share in gains.items())
        return f"No gain of {OURS} over {BASELINE} in every figure: {changes}."
    return (
        f"{OURS} over {BASELINE}: workflows need {gains['req95']:.0%} less slack at 95 %,"
        f" {gains['req99']:.0%} less at 99 %."
    )


def demo_completed(runs: Mapping[str, Run]) -> bool:
    return all(all_completed(run) for run in runs.values())


def _introduce(options: DemoOptions, workload: Workload) -> None:
    errors = error_console()
    calls = sum(len(workflow.items) for workflow in workload.workflows)
    errors.print(
        f"{len(workload.workflows)} agent workflows with {calls} LLM calls (seed {options.seed}) arrive faster than the"
        f" cluster {options.cluster!r} serves them."
    )
    for row in workload_summary(workload):
        if row.workflow_class != "all":
            errors.print(
                f"  {row.workflow_class}: {row.workflows} workflows, {row.mean_calls:.1f} calls each (at most"
                f" {row.max_calls}), {row.mean_prompt_tokens:.0f} prompt and {row.mean_output_tokens:.0f} output tokens"
                " a call",
                style="dim",
            )
    errors.print(
        f"The same workload runs under {', '.join(options.policies)}, each on a fresh stack: nats-server, dag-tracker,"
        " scheduler, estimator and worker-agents as processes of their own, engines emulated."
    )


def _table(rows: Sequence[Row]) -> Table:
    """The figures, with each policy's gain over the baseline beside them."""
    base = next((row for row in rows if row["policy"] == BASELINE), None)
    table = Table(
        title="SLO scale that 50, 95 and 99 % of workflows meet (lower is better), and the change from " + BASELINE,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("policy")
    for name in (*_PERCENTS, "completed"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [_with_gain(row, base, name) for name in _PERCENTS]
        style = "bold" if row["policy"] == OURS else ""
        table.add_row(str(row["policy"]), *cells, f"{row['completed']} of {row['workflows']}", style=style)
    return table


def _with_gain(row: Row, base: Row | None, name: str) -> str:
    text = shown(row[name])
    if base is None or base is row:
        return text
    return f"{text} ({-gain(_number(row[name]), _number(base[name])):+.0%})"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
