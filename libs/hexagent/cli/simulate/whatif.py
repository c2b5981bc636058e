"""`hexagent sim whatif`: a recorded history on a cluster, and on the cluster or under the load that changes make."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from hexagent.cli.attainment import picture
from hexagent.cli.failures import options_named
from hexagent.cli.report import Row, console, error_console, shown, table_of
from hexagent.core.scheduling.charges import Prices
from hexagent.core.units import MILLI, US_PER_S
from hexagent.sim.changes import Scenario, changed
from hexagent.sim.experiment.bootstrap import (
    FloatArray,
    Interval,
    interval,
    required_scales,
    resampled_means,
    resampled_scales,
)
from hexagent.sim.metrics import WorkflowRow, makespan_us
from hexagent.sim.world import World

BASE: Final = "base"
PERCENTS: Final = (50, 95, 99)
_US_PER_HOUR: Final = 3_600 * US_PER_S

Key = tuple[int, str]  # seed, workflow


class Question(NamedTuple):
    base: Scenario
    changes: tuple[str, ...]
    policy: str
    seeds: tuple[int, ...]
    alpha: float


class Answer(NamedTuple):
    """What a scenario makes of the history."""

    label: str
    rows: Mapping[Key, WorkflowRow]  # of all workflows, those of added tenants too
    gpu_hours: float  # of all instances from the first arrival to the last completion, priced; mean over seeds


def run_whatif(question: Question) -> list[Row]:
    """Simulate the base and each change, print how they compare; one row each.

    A workflow's stretch is its completion time over its horizon on the base cluster, also where a change would change
    the horizon. What is compared are the workflows of the history; those of tenants that a change adds are only load.
    """
    scenarios = {BASE: question.base}
    with options_named(dict.fromkeys(("precision", "rate", "tenants", "tp"), "--change")):
        scenarios |= {text: changed(question.base, text) for text in question.changes}
    base, *others = [_answer(label, scenario, question) for label, scenario in scenarios.items()]
    stretches = {answer.label: _stretches(answer, base) for answer in (base, *others)}
    rows = [_row(answer, stretches[answer.label], stretches[BASE], question) for answer in (base, *others)]
    cluster, workload = question.base
    title = f"{workload.name} on {cluster.name}: {len(workload.workflows)} workflows, {question.policy}"
    out = console()
    names = [BASE, *map(str, range(1, len(rows)))]
    out.print(table_of(title, [_short(name, row) for name, row in zip(names, rows, strict=True)]))
    for name, text in zip(names[1:], question.changes, strict=True):
        out.print(f"{name}: {text}", markup=False)
    out.print("Intervals hold 95 % of paired resamples of the workflows.", style="dim")
    out.print(picture(dict(zip(names, map(list, stretches.values()), strict=True)), out.width))
    return rows


def _answer(label: str, scenario: Scenario, question: Question) -> Answer:
    rows: dict[Key, WorkflowRow] = {}
    spans_us = []
    for seed in question.seeds:
        with error_console().status(f"simulating {label}, seed {seed}"):
            ended = World(scenario.cluster, scenario.workload, question.policy, seed).run().rows
        rows |= {(seed, row.workflow): row for row in ended}
        spans_us.append(makespan_us(ended))
    gpus = Prices(scenario.cluster).cluster_milli / MILLI
    return Answer(label, rows, gpus * sum(spans_us) / len(spans_us) / _US_PER_HOUR)


def _stretches(answer: Answer, base: Answer) -> FloatArray:
    """Of the history's workflows, in one order for all answers."""
    pairs = [(answer.rows[key], row) for key, row in base.rows.items()]
    return np.array([row._replace(solo_us=usual.solo_us).stretch for row, usual in pairs])


def _row(answer: Answer, stretches: FloatArray, base: FloatArray, question: Question) -> Row:
    alpha = question.alpha
    scales = required_scales(stretches, PERCENTS)
    row: dict[str, str | int | float | bool | None] = {
        "change": answer.label,
        "policy": question.policy,
        "workflows": len(stretches) // len(question.seeds),
        "gpu_hours": answer.gpu_hours,
        **{f"req{percent}": float(scale) for percent, scale in zip(PERCENTS, scales, strict=True)},
        "alpha": alpha,
        "within_alpha": float((stretches <= alpha).mean()),
    }
    later = answer.label != BASE
    row |= _interval_columns("req95_change", change_of_req(stretches, base, 95) if later else None)
    row |= _interval_columns("within_change", change_within(stretches, base, alpha) if later else None)
    return row


def change_of_req(stretches: FloatArray, base: FloatArray, percent: int) -> Interval:
    """Of Req, as a part of that of the base."""
    both = np.stack((base, stretches))
    scales, resampled = required_scales(both, (percent,)), resampled_scales(both, (percent,))
    with np.errstate(invalid="ignore"):  # infinite where workflows did not complete under either
        return interval(float(scales[1, 0] / scales[0, 0] - 1), resampled[:, 1, 0] / resampled[:, 0, 0] - 1)


def change_within(stretches: FloatArray, base: FloatArray, alpha: float) -> Interval:
    differences = (stretches <= alpha).astype(float) - (base <= alpha)
    return interval(float(differences.mean()), resampled_means(differences))


def _interval_columns(name: str, found: Interval | None) -> Row:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found or (None, None, None), strict=True))


def _short(name: str, row: Row) -> Row:
    """As wide as a terminal."""
    within = f"within {row['alpha']:g}"
    return {
        "": name,
        "GPU-h": row["gpu_hours"],
        **{f"req{percent}": row[f"req{percent}"] for percent in PERCENTS},
        within: f"{row['within_alpha']:.0%}",
        "req95 by": _text(row, "req95_change", "+.0%"),
        "within by": _text(row, "within_change", "+.0%"),
    }


def _text(row: Row, name: str, form: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return shown(None) if value is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"
