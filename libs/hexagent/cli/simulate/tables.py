"""What an experiment says, as rows: for the terminal, and as Markdown for documents."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

from hexagent.cli.report import Row, shown
from hexagent.sim.experiment import paper
from hexagent.sim.experiment.bootstrap import Interval
from hexagent.sim.experiment.cell import Cell
from hexagent.sim.experiment.policies import CLAIRVOYANT, THE_PAPERS, every, ours, published, strong, the_papers
from hexagent.sim.experiment.pooling import (
    JUDGED,
    PERCENTS,
    STATED,
    Pooled,
    Reduction,
    gap_closed,
    mean_share,
    reduction,
    underloaded,
)
from hexagent.sim.experiment.run import VARIANTS


class Section(NamedTuple):
    """A table with its title."""

    title: str
    rows: Sequence[Row]


BASELINES: Final = {
    "as published": published,
    "every dispatch": strong,
    "every baseline": every,
    THE_PAPERS: the_papers,
}


LEFT_OPEN: Final = (
    "link_gb_per_s",
    "tp",
    "tools",
    "spread",
    "hints",
    "lengths",
    "profile",
)  # what the paper does not say
COLUMNS_MAX: Final = 6  # of a matrix, beside the policy
RECORDED: Final = "recorded traces"
POLICY_ONLY: Final = Cell._field_defaults["world"]


def name_of(cell: Cell) -> str:
    return ", ".join(_words(cell))


def sections(pools: Sequence[Pooled]) -> list[Section]:
    """The tables that sum up an experiment."""
    usual = [pool for pool in pools if pool.cell.trace or set(_varied(pool.cell)) <= set(LEFT_OPEN)]
    calm: list[Row] = [{"cell": name_of(pool.cell)} for pool in pools if underloaded(pool)]
    parts = [
        *matrices(pools),
        *(
            Section(f"Change from the strongest baseline over heterogeneous cells: {setting}", headline_rows(here))
            for setting, here in _settings(usual).items()
        ),
        Section("Gap closed, from hexagent to the clairvoyant, over the loaded cells", gap_rows(usual)),
        Section("Beside the paper's table: Req95 / Req99 of one policy over another's, less 1", sign_rows(usual)),
        Section("Underloaded: each policy that predicts finishes is within 10 % of the clairvoyant", calm),
    ]
    return [part for part in parts if part.rows]


def share_sections(rows: Sequence[Row]) -> list[Section]:
    """What tenants got while all of them had calls waiting, one row a run with several."""
    names = ("workload", "policy", "seed", "contested_s", "jain")
    contested = [
        {name: row[name] for name in (*names, *(key for key in row if key.startswith("share_")))}
        for row in rows
        if row.get("contested_s") is not None
    ]
    return [Section("Shares of tenants by weight, while each had calls waiting", contested)] if contested else []


def matrices(pools: Sequence[Pooled]) -> list[Section]:
    """Req95 / Req99 / Req100, a row a policy and a column a cell: cells of one cluster that vary in the same axes."""
    groups: dict[tuple[object, ...], list[Pooled]] = {}
    for pool in pools:
        cell = pool.cell
        groups.setdefault((cell.model, cell.cluster, cell.world, cell.engine_profile, *_varied(cell)), []).append(pool)
    parts = []
    for group in groups.values():
        workloads = dict.fromkeys(pool.cell.workload for pool in group)
        wide = len(group) > COLUMNS_MAX
        for part in [[p for p in group if p.cell.workload == name] for name in workloads] if wide else [group]:
            words = [_words(pool.cell) for pool in part]
            shared = [word for word in words[0] if all(word in others for others in words)]
            names = [
                ", ".join(word for word in own if word not in shared) or pool.cell.workload
                for own, pool in zip(words, part, strict=True)
            ]
            parts.append(Section(f"Req95 / Req99 / Req100: {', '.join(shared)}", _matrix_rows(part, names)))
    return parts


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


def _matrix_rows(pools: Sequence[Pooled], names: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for policy in dict.fromkeys(name for pool in pools for name in pool.policies):
        row: dict[str, str | None] = {"policy": policy}
        for name, pool in zip(names, pools, strict=True):
            known = policy in pool.policies
            row[name] = " / ".join(f"{pool.req(policy, p).value:.2f}" for p in STATED) if known else None
        rows.append(row)
    return rows


def req_rows(pool: Pooled) -> list[Row]:
    """One row a policy, with 95 % intervals."""
    return [
        {"policy": policy, **{f"req{percent}": _text(pool.req(policy, percent)) for percent in PERCENTS}}
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
    """Means over the cells, and those that changed most and least for the better, beside the paper's figures."""
    rows: list[Row] = []
    for policy, which in product(_ours(pools), BASELINES):
        if reductions := [found for pool in pools if (found := _reductions(pool, policy, which))]:
            rows.append({"policy": policy, "from": which, "cells": len(reductions), **_mean_and_extremes(reductions)})
    if rows:
        figures = {f"mean{percent}": _change(paper.MEAN[percent]) for percent in JUDGED}
        figures |= {"most": _changes([paper.LARGEST[percent] for percent in JUDGED])}
        figures |= {"policy": "the paper's hexagent", "from": "its own"}
        rows.append({column: figures.get(column) for column in rows[0]})
    return rows


def gap_rows(pools: Sequence[Pooled]) -> list[Row]:
    """A row a setting and policy: what there is to gain in the mean of its loaded cells, and the share that it gets."""
    rows: list[Row] = []
    for setting, here in _settings(pools, split=False).items():
        loaded = [pool for pool in here if underloaded(pool) is False and THE_PAPERS in pool.policies]
        for policy in _ours(loaded):
            cells = [pool for pool in loaded if policy in pool.policies]
            if policy in (THE_PAPERS, CLAIRVOYANT):
                continue
            row: dict[str, str | int] = {"setting": setting, "policy": policy, "cells": len(cells)}
            for percent in JUDGED:
                whole = mean_share([reduction(pool, CLAIRVOYANT, [THE_PAPERS], percent) for pool in cells])
                closed = gap_closed(cells, policy, percent)
                row |= {f"gap{percent}": _interval_text(whole), f"closed{percent}": _share_text(closed)}
            rows.append(row)
    return rows


def _settings(pools: Sequence[Pooled], split: bool = True) -> dict[str, list[Pooled]]:
    """Traces, of whatever size, and cells with the paper's heterogeneous clusters, by what is not as in its burst; with
    `split` those that are loaded once more by themselves.
    """
    settings: dict[str, list[Pooled]] = {}
    for pool in pools:
        if pool.cell.trace or pool.cell.cluster in paper.HETEROGENEOUS:
            words = [RECORDED, *_setting(pool.cell._replace(workflows=0))] if pool.cell.trace else _setting(pool.cell)
            settings.setdefault(", ".join(words) or POLICY_ONLY, []).append(pool)
    for setting, here in list(settings.items()) if split else ():
        loaded = [pool for pool in here if not underloaded(pool)]
        if 0 < len(loaded) < len(here):
            settings[f"{setting}, loaded cells"] = loaded
    return settings


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
    return ours(tuple(dict.fromkeys(name for pool in pools for name in pool.policies)))


def _reductions(pool: Pooled, policy: str, which: str) -> Mapping[int, Reduction]:
    """By percent; empty where the cell has not run the policy or no such baseline."""
    others = [name for name in BASELINES[which](pool.policies) if name != policy]
    if policy not in pool.policies or not others:
        return {}
    return {percent: reduction(pool, policy, others, percent) for percent in STATED}


def _mean_and_extremes(reductions: Sequence[Mapping[int, Reduction]]) -> Row:
    """`most` and `least` are at JUDGED percents."""
    several = {percent: [reduced[percent] for reduced in reductions] for percent in STATED}
    means = {percent: mean_share(reduced) for percent, reduced in several.items()}
    row = {f"mean{percent}": _interval_text(means[percent]) for percent in JUDGED}
    row["mean100"] = _change(means[100].value)
    for word, extreme in (("most", max), ("least", min)):
        row[word] = _changes([extreme(one.share.value for one in several[percent]) for percent in JUDGED])
    return row


def _text(req: Interval) -> str:
    return f"{req.value:.2f} [{req.low:.2f}, {req.high:.2f}]"


def _interval_text(share: Interval) -> str:
    return f"{_change(share.value)} [{_change(share.high)}, {_change(share.low)}]"


def _changes(shares: Sequence[float]) -> str:
    return " / ".join(map(_change, shares))


def _share_text(share: Interval | None) -> str:
    if share is None or not math.isfinite(share.value):
        return "-"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _change(share: float) -> str:
    """A reduction of 0.2 as -20.0%; none where workflows did not complete."""
    return f"{round(-share, 3) + 0.0:+.1%}" if math.isfinite(share) else "-"


def _words(cell: Cell) -> list[str]:
    """The cell in words."""
    return [cell.model, cell.cluster, cell.workload, *_setting(cell)]


def _setting(cell: Cell) -> list[str]:
    """What of the cell is not as in the paper's burst."""
    usual = Cell._field_defaults
    words = [getattr(cell, name) for name in ("world", "engine_profile") if getattr(cell, name) != usual[name]]
    for name in _varied(cell):
        value = getattr(cell, name)
        words.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}".replace("\n", ", "))
    return words


def _varied(cell: Cell) -> list[str]:
    """Axes on which the cell is not as in the paper's burst."""
    return [name for name in ("load", *VARIANTS) if getattr(cell, name) != Cell._field_defaults[name]]


def _ranges(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    whole = len(seeds) > 2 and last - first + 1 == len(seeds)
    return f"{first}-{last}" if whole else ", ".join(map(str, seeds))
