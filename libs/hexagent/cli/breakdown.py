"""Where the time of workflows went, in rows and as a table."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final

from hexagent.cli.report import Row, Value
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.attribution import Spent
from hexagent.sim.metrics import WorkflowRow

_PARTS: Final = ("queue", "prefill", "kv_wait", "kv_transfer", "decode", "tool", "other")  # as in `Spent`


def spent_columns(spent: Spent | None) -> dict[str, Value]:
    """The extra keys of a workflow's row, seconds of model time; None where nothing is known."""
    if spent is None:
        return {f"{part}_s": None for part in _PARTS}
    return {f"{part}_s": us / US_PER_S for part, us in zip(_PARTS, spent, strict=True)}


def breakdown_rows(rows: Sequence[WorkflowRow], spent: Mapping[str, Spent]) -> list[Row]:
    """One row a workflow with its completion time in parts."""
    known = [row for row in rows if row.workflow in spent]
    return [{"workflow": row.workflow, "jct_s": row.jct_us / US_PER_S, **_parts(spent[row.workflow])} for row in known]


def shares_text(spent: Mapping[str, Spent]) -> str:
    """What all workflows together spent their time on."""
    total = reduce(Spent.plus, spent.values(), Spent())
    all_us = max(sum(total), 1)
    shares = ", ".join(f"{part} {us / all_us:.1%}" for part, us in zip(_PARTS, total, strict=True))
    return f"Of the time of all {len(spent)} workflows: {shares}."


def _parts(spent: Spent) -> dict[str, Value]:
    return {part.removeprefix("kv_"): us / US_PER_S for part, us in zip(_PARTS, spent, strict=True)}
