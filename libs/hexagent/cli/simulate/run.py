"""`hexagent sim run`: one policy on one workload, by class of workflows, with a picture of the instances."""

from pathlib import Path

from hexagent.cli.report import Row, console, error_console, say, table_of
from hexagent.cli.simulate.execute import outcome_of
from hexagent.cli.simulate.gantt import draw_gantt
from hexagent.cli.simulate.placements import draw_placements, placed_calls, placed_rows
from hexagent.cli.simulate.spans import spans_of
from hexagent.cli.simulate.tables import name_of
from hexagent.sim.experiment.run import Bound, Outcome, Run, bound_req95, row_of, world_of
from hexagent.sim.metrics import summary
from hexagent.sim.world import World


def run_one(run: Run, gantt: Path, placements: Path | None) -> Row:
    """Print the summary and draw the pictures; the run's row."""
    world = world_of(run)
    with error_console().status(f"simulating {name_of(run.cell)} under {run.policy}"):
        outcome = outcome_of(run, world)
    title = f"{name_of(run.cell)}: {run.policy}, seed {run.seed}"
    row = row_of(outcome, bound_req95(Bound(run.cell, run.seed)))
    row = {**row, **reuse_of(world)}
    console().print(table_of(title, class_rows(outcome)))
    figures: list[Row] = [{"figure": name, "value": value} for name, value in row.items() if not isinstance(value, str)]
    console().print(table_of("Summary: reqN is the SLO scale that N % of workflows meet", figures, right=("value",)))
    lanes = sorted((station.spec.role, name) for name, station in world.fleet.stations.items())
    draw_gantt(spans_of(world), [name for _, name in lanes], title, gantt)
    say(f"what the instances did is drawn in {gantt}")
    if placements is not None:
        placed = placed_calls(world)
        console().print(table_of("Tokens by phase, size of the call and GPU type", placed_rows(placed)))
        specs = [station.spec for station in world.fleet.stations.values()]
        draw_placements(placed, specs, title, placements)
        say(f"which GPU types got which calls is drawn in {placements}")
    return row


def reuse_of(world: World) -> Row:
    """Shares of all prompt tokens: those engines had cached, those predicted at dispatch, the sum of differences."""
    reuse = world.scheduler.ledger.reuse
    if not reuse.attempts:
        return {}
    return {
        "reused": reuse.reported_tokens / reuse.prompt_tokens,
        "reuse_predicted": reuse.predicted_tokens / reuse.prompt_tokens,
        "reuse_wrong": reuse.wrong_tokens / reuse.prompt_tokens,
    }


def class_rows(outcome: Outcome) -> list[Row]:
    """One row a class of workflows, as wide as a terminal."""
    columns = ("workflows", "completed", "calls", "req50", "req95", "req99", "mean_jct_s")
    rows: list[Row] = []
    for name in sorted({row.workflow_class for row in outcome.rows}):
        total = summary([row for row in outcome.rows if row.workflow_class == name])._asdict()
        rows.append({"class": name, **{column: total[column] for column in columns}})
    return rows
