"""`hexagent bench capacity`: the largest steady rate that each policy serves in time."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hexagent.cli.report import Row, console, error_console, say, table_of
from hexagent.cli.simulate.execute import outcome_from
from hexagent.cli.simulate.pictures import draw_capacities
from hexagent.cli.simulate.store import Store
from hexagent.cli.simulate.sweep import run_all
from hexagent.sim.experiment.capacity import PERCENT, Search, capacity_rows
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.run import Outcome, Run


class CapacityOptions(NamedTuple):
    cells: tuple[Cell, ...]  # without a load
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    alpha: float
    processes: int


def run_capacity(options: CapacityOptions, out: Path) -> list[Row]:
    """A row a cell and policy, printed as a table and drawn into `out`, where finished runs are kept."""
    store = Store(out)
    searches = [Search(cell, policy, options.alpha) for cell in options.cells for policy in options.policies]
    while any(search.next_load for search in searches):
        searches = _tried(searches, options, store)
    rows: list[Row] = [*capacity_rows(searches, options.seeds)]
    shown = [
        {name: value for name, value in row.items() if name not in ("model", "world", "engine_profile")} for row in rows
    ]
    console().print(table_of(f"{PERCENT} % of workflows within alpha", shown))
    draw_capacities(searches, out / "capacity.png")
    say(f"Req{PERCENT} over load is drawn in {out / 'capacity.png'}")
    return rows


def _tried(searches: Sequence[Search], options: CapacityOptions, store: Store) -> list[Search]:
    """Every search one load further, the runs of all of them side by side."""
    loads = [search.next_load for search in searches]
    runs = [s.runs(load, options.seeds) if load else [] for s, load in zip(searches, loads, strict=True)]
    run_all([run for several in runs for run in several], store, options.processes, error_console())
    return [
        search.after(load, [_kept(run, store) for run in several]) if load else search
        for search, load, several in zip(searches, loads, runs, strict=True)
    ]


def _kept(run: Run, store: Store) -> Outcome:
    document = store.get(run)
    assert document is not None
    return outcome_from(run, document)
