"""`hexagent sim compare` and `hexagent bench paper`: run an experiment, judge it, show and keep what came out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hexagent.cli.report import Row, console, error_console, say, table_of
from hexagent.cli.simulate.execute import outcome_from
from hexagent.cli.simulate.pictures import draw_attainment, draw_loads, draw_stretches
from hexagent.cli.simulate.store import Store
from hexagent.cli.simulate.sweep import run_all
from hexagent.cli.simulate.tables import cell_sections, markdown, sections, share_sections
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.paper import Experiment
from hexagent.sim.experiment.pooling import Pooled, pooled
from hexagent.sim.experiment.run import Bound, Outcome, Run, Task, row_of


class Plan(NamedTuple):
    """An experiment with the policies it compares."""

    experiment: Experiment
    policies: tuple[str, ...]

    @property
    def tasks(self) -> list[Task]:
        cell, seeds = self.experiment
        runs = [Run(cell, policy, seed) for seed in seeds for policy in self.policies]
        return [*runs, *(Bound(cell, seed) for seed in seeds)]


def run_plans(plans: Sequence[Plan], out: Path, processes: int) -> list[Row]:
    """Rows of all runs; tables on stdout, with more of them in `out`/tables.md, and pictures beside it."""
    store = Store(out)
    try:
        run_all([task for plan in plans for task in plan.tasks], store, processes, error_console())
    except KeyboardInterrupt:
        say(f"stopped; finished runs are in {out}, and the same command goes on from there")
        raise
    rows: list[Row] = []
    pools: list[Pooled] = []
    for plan in plans:
        outcomes, bounds = _kept(plan, store)
        rows += [row_of(outcome, bounds[outcome.run.seed]) for outcome in outcomes]
        by_policy = {policy: [o for o in outcomes if o.run.policy == policy] for policy in plan.policies}
        pools.append(pooled(plan.experiment.cell, by_policy))
    parts = [*sections(pools), *share_sections(rows)]
    for part in parts:
        console().print(table_of(part.title, part.rows))
    (out / "tables.md").write_text(markdown([*parts, *cell_sections(pools)]), encoding="utf-8")
    _draw(pools, out)
    say(f"tables, those with intervals too, and pictures are in {out}")
    return rows


def _kept(plan: Plan, store: Store) -> tuple[list[Outcome], dict[int, float | None]]:
    """The plan's outcomes, and the lower bound of each seed."""
    outcomes: list[Outcome] = []
    bounds: dict[int, float | None] = {}
    for task in plan.tasks:
        kept = store.get(task)
        assert kept is not None
        if isinstance(task, Run):
            outcomes.append(outcome_from(task, kept))
        else:
            bounds[task.seed] = kept["req95"]
    return outcomes, bounds


def _draw(pools: Sequence[Pooled], out: Path) -> None:
    """The cells as in the paper's burst, or all if there are none, by world; and what has a load over the load."""
    bursts = [pool for pool in pools if pool.cell == Cell(*pool.cell[:5], trace=pool.cell.trace)] or pools
    for world in dict.fromkeys(pool.cell.world for pool in bursts):
        here = [pool for pool in bursts if pool.cell.world == world]
        draw_attainment(here, out / f"attainment-{world}.png")
        draw_stretches(here, out / f"stretch-{world}.png")
    if any(pool.cell.load for pool in pools):
        draw_loads(pools, out / "load.png")
