"""What an experiment says, as rows: for the terminal, and as Markdown for documents."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import mean
from typing import Final, NamedTuple

from hexagent.cli.report import Row, shown
from hexagent.sim.experiment import paper
from hexagent.sim.experiment.bootstrap import Interval
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.policies import every, published, strong
from hexagent.sim.experiment.pooling import JUDGED, Pooled, Reduction, reduction, underloaded
from hexagent.sim.experiment.run import VARIANTS


class Section(NamedTuple):
    """A table with its title."""

    title: str
    rows: Sequence[Row]


BASELINES: Final = {"as published": published, "every dispatch": strong, "every baseline": every}


def name_of(cell: Cell) -> str:
    """The cell in a few words; what is as in the paper's burst is left out."""
    return ", ".join([cell.model, cell.cluster, cell.workload, *_unusual(cell)])


def sections(pools: Sequence[Pooled]) -> list[Section]:
    """The tables that sum up an experiment."""
    groups: dict[str, list[Pooled]] = {}
    for pool in pools:
        groups.setdefault(_group(pool.cell), []).append(pool)
    calm: list[Row] = [{"cell": name_of(pool.cell)} for pool in pools if underloaded(pool)]
    parts = [
        *(Section(f"Req95 / Req99: {name}", matrix_rows(group)) for name, group in groups.items()),
        Section("Mean and largest change over heterogeneous cells from the strongest baseline", headline_rows(pools)),
        Section("Beside the paper's table: Req95 / Req99 of one policy over another's, less 1", sign_rows(pools)),
        Section("Underloaded: each policy that predicts finishes is within 10 % of the clairvoyant", calm),
    ]
    return [part for part in parts if part.rows]


def cell_sections(pools: Sequence[Pooled]) -> list[Section]:
    """Changes cell by cell, and each cell by itself; with intervals."""
    return [
        *(
            Section(f"Change of Req with {policy} from the strongest baseline, {which}", rows)
            for policy in _ours(pools)
            for which in BASELINES
            if (rows := change_rows(pools, policy, which))
        ),
        *(
            Section(f"{name_of(p.cell)}: {p.stretches.shape[1]} workflows, seeds {_ranges(p.seeds)}", req_rows(p))
            for p in pools
        ),
    ]


def matrix_rows(pools: Sequence[Pooled]) -> list[Row]:
    """One row a policy, one column a workload."""
    rows: list[Row] = []
    for policy in dict.fromkeys(name for pool in pools for name in pool.policies):
        cells = {
            pool.cell.workload: " / ".join(f"{pool.req(policy, percent).value:.2f}" for percent in JUDGED)
            for pool in pools
            if policy in pool.policies
        }
        rows.append({"policy": policy, **{pool.cell.workload: cells.get(pool.cell.workload) for pool in pools}})
    return rows


def req_rows(pool: Pooled) -> list[Row]:
    """One row a policy, with 95 % intervals."""
    return [
        {"policy": policy, **{f"req{percent}": _text(pool.req(policy, percent)) for percent in (50, 90, *JUDGED, 100)}}
        for policy in pool.policies
    ]


def change_rows(pools: Sequence[Pooled], policy: str, which: str) -> list[Row]:
    """One row a cell: the strongest baseline of this kind that it has run, and how far the policy is from it."""
    rows: list[Row] = []
    for pool in pools:
        row: dict[str, str] = {"cell": name_of(pool.cell)}
        for percent, reduced in _reductions(pool, policy, which).items():
            row |= {f"strongest at {percent}": reduced.baseline, f"req{percent}": _interval_text(reduced.share)}
        if len(row) > 1:
            rows.append(row)
    return rows


def headline_rows(pools: Sequence[Pooled]) -> list[Row]:
    """Means and maxima over the cells as in the paper's burst on heterogeneous clusters, beside the paper's."""
    usual = [pool for pool in pools if pool.cell == Cell(*pool.cell[:5]) and pool.cell.cluster in paper.HETEROGENEOUS]
    rows: list[Row] = []
    for world in dict.fromkeys(pool.cell.world for pool in usual):
        here = [pool for pool in usual if pool.cell.world == world]
        for policy, which in product(_ours(here), BASELINES):
            if reductions := [found for pool in here if (found := _reductions(pool, policy, which))]:
                head: Row = {"world": world, "policy": policy, "baselines": which, "cells": len(reductions)}
                rows.append({**head, **_mean_and_largest(reductions)})
    if rows:
        figures = {f"mean{percent}": _change(paper.MEAN[percent]) for percent in JUDGED}
        figures |= {f"largest{percent}": _change(paper.LARGEST[percent]) for percent in JUDGED}
        rows.append({"world": "paper", "policy": "hexagent", "baselines": "its own", "cells": None, **figures})
    return rows


def sign_rows(pools: Sequence[Pooled]) -> list[Row]:
    """Every pair of policies that the paper's table allows to compare, marked where the sign is another."""
    return [
        {
            "cell": name_of(pool.cell),
            "compared": f"{made.policy} over {made.other}",
            "paper": " / ".join(f"{value:+.0%}" for value in made.reported),
            "here": " / ".join(f"{value:+.0%}" for value in made.here),
            "sign differs at": ", ".join(map(str, made.differing)),
        }
        for pool in pools
        for made in paper.comparisons(pool)
    ]


def markdown(parts: Sequence[Section]) -> str:
    """The tables as GitHub renders them."""
    return "\n".join(f"### {part.title}\n\n{_markdown_table(part.rows)}\n" for part in parts)


def _markdown_table(rows: Sequence[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ours(pools: Sequence[Pooled]) -> list[str]:
    """Policies that are nobody's baseline."""
    return [name for name in dict.fromkeys(n for pool in pools for n in pool.policies) if not every([name])]


def _reductions(pool: Pooled, policy: str, which: str) -> Mapping[int, Reduction]:
    """By percent; empty where the cell has not run the policy or no such baseline."""
    others = BASELINES[which](pool.policies)
    if policy not in pool.policies or not others:
        return {}
    return {percent: reduction(pool, policy, others, percent) for percent in JUDGED}


def _mean_and_largest(reductions: Sequence[Mapping[int, Reduction]]) -> Row:
    shares = {percent: [reduced[percent].share.value for reduced in reductions] for percent in JUDGED}
    row = {f"mean{percent}": _change(mean(values)) for percent, values in shares.items()}
    return row | {f"largest{percent}": _change(max(values)) for percent, values in shares.items()}


def _text(req: Interval) -> str:
    return f"{req.value:.2f} [{req.low:.2f}, {req.high:.2f}]"


def _interval_text(share: Interval) -> str:
    return f"{_change(share.value)} [{_change(share.high)}, {_change(share.low)}]"


def _change(share: float) -> str:
    """A reduction of 0.2 as -20.0%."""
    return f"{round(-share, 3) + 0.0:+.1%}"


def _group(cell: Cell) -> str:
    return ", ".join([cell.model, cell.cluster, *_unusual(cell)])


def _unusual(cell: Cell) -> list[str]:
    usual = Cell._field_defaults
    named = [cell.world] if cell.world != usual["world"] else []
    named += [cell.engine_profile] if cell.engine_profile != usual["engine_profile"] else []
    return named + [f"{key} {getattr(cell, key)}" for key in ("load", *VARIANTS) if getattr(cell, key) != usual[key]]


def _ranges(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    whole = len(seeds) > 2 and last - first + 1 == len(seeds)
    return f"{first}-{last}" if whole else ", ".join(map(str, seeds))
