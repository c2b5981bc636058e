"""How runs are judged: stretch of workflows, its percentiles, and rows to print or store.

A workflow is *timely* at scale alpha when its time from arrival to completion is at most alpha times its horizon.
Req_p is the smallest alpha at which p % of all workflows are timely. Of n workflows that is the ceil(p * n / 100)-th
smallest stretch, with one that did not complete counting as infinite.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hexagent.core.units import US_PER_S, ceil_div

PERCENTS = (50, 90, 95, 99, 100)


class WorkflowRow(NamedTuple):
    """One workflow of a run, live or simulated."""

    workflow: str
    tenant: str
    workflow_class: str
    calls: int
    status: str
    completed: bool
    arrival_us: int
    jct_us: int  # arrival to completion as the client sees it; of a conversation the sum of its turns
    horizon_us: int  # of the revealed graph at its end, with true lengths and tool times
    solo_us: int  # the same from the script, frozen: what stretch divides by under every policy
    tool_us: int  # part of `solo_us` that tools take

    @property
    def stretch(self) -> float:
        return self.jct_us / max(self.solo_us, 1) if self.completed else math.inf

    @property
    def stretch_notool(self) -> float:
        """Stretch with the tools' time taken out of both sides."""
        if not self.completed:
            return math.inf
        return max(self.jct_us - self.tool_us, 0) / max(self.solo_us - self.tool_us, 1)


class Summary(NamedTuple):
    """A run in one row."""

    workflows: int
    completed: int
    calls: int
    req50: float
    req90: float
    req95: float
    req99: float
    req100: float
    req95_notool: float
    req99_notool: float
    mean_jct_s: float
    makespan_s: float


def required_scale(stretches: Iterable[float], percent: int) -> float:
    """Req_p of these stretches; 0 of none."""
    ordered = sorted(stretches)
    if not ordered:
        return 0.0
    return ordered[max(ceil_div(percent * len(ordered), 100), 1) - 1]


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index (1984): 1 where all are equal, 1/n where one of n has everything or nobody anything."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1 / max(len(values), 1)


def makespan_us(rows: Sequence[WorkflowRow]) -> int:
    """From the first arrival to the last completion."""
    if not rows:
        return 0
    return max(row.arrival_us + row.jct_us for row in rows) - min(row.arrival_us for row in rows)


def summary(rows: Sequence[WorkflowRow]) -> Summary:
    stretches = [row.stretch for row in rows]
    notool = [row.stretch_notool for row in rows]
    done = [row.jct_us for row in rows if row.completed]
    req50, req90, req95, req99, req100 = (required_scale(stretches, percent) for percent in PERCENTS)
    return Summary(
        workflows=len(rows),
        completed=len(done),
        calls=sum(row.calls for row in rows),
        req50=req50,
        req90=req90,
        req95=req95,
        req99=req99,
        req100=req100,
        req95_notool=required_scale(notool, 95),
        req99_notool=required_scale(notool, 99),
        mean_jct_s=sum(done) / max(len(done), 1) / US_PER_S,
        makespan_s=makespan_us(rows) / US_PER_S,
    )


def flat(row: WorkflowRow) -> dict[str, str | int | float | bool | None]:
    """The row as printed and stored; the stretch of a workflow that did not complete is None."""
    return {
        "workflow": row.workflow,
        "tenant": row.tenant,
        "class": row.workflow_class,
        "calls": row.calls,
        "status": row.status,
        "completed": row.completed,
        "jct_s": row.jct_us / US_PER_S,
        "horizon_s": row.horizon_us / US_PER_S,
        "solo_s": row.solo_us / US_PER_S,
        "stretch": row.stretch if row.completed else None,
        "stretch_notool": row.stretch_notool if row.completed else None,
    }
