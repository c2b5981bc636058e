"""How much a workflow's age counts by its terms: priority, SLO scale and deadline.

A weight is bounded either way, so that what has the least of it still becomes first by waiting. Times are compared
with a workflow that asks for nothing as if that asked for `USUAL_SCALE_MILLI`: one that must be done in half as many
horizons counts twice as old.
"""

from typing import Final

from hexagent.core.scheduling.projection import Workflow
from hexagent.core.units import MILLI
from hexagent.core.workflow.terms import PRIORITY_MAX

USUAL_SCALE_MILLI: Final = 3_000
STRONGEST: Final = 4  # a priority of 100, or little time, lets an age count up to so many times; the opposite a 4th
EXPIRED_MILLI: Final = 500  # a deadline that has passed: less than none at all


def terms_milli(workflow: Workflow, now_us: int) -> int:
    """The weight of its terms in thousandths; 1,000 if it has none."""
    return priority_milli(workflow.graph.spec.priority) * time_milli(workflow, now_us) // MILLI


def priority_milli(priority: int) -> int:
    """From 1/STRONGEST at -100 over 1 at 0 to STRONGEST at 100."""
    if priority >= 0:
        return MILLI + MILLI * (STRONGEST - 1) * priority // PRIORITY_MAX
    return MILLI * PRIORITY_MAX // (PRIORITY_MAX - (STRONGEST - 1) * priority)


def time_milli(workflow: Workflow, now_us: int) -> int:
    """By the tighter of SLO scale and deadline, the latter as a multiple of the horizon, too."""
    spec = workflow.graph.spec
    if 0 < spec.deadline_us <= now_us:
        return EXPIRED_MILLI
    scales_milli = [spec.slo_scale_milli] if spec.slo_scale_milli else []
    if spec.deadline_us:
        scales_milli.append((spec.deadline_us - workflow.arrival_us) * MILLI // max(workflow.horizon_us, 1))
    if not scales_milli:
        return MILLI
    milli = USUAL_SCALE_MILLI * MILLI // max(min(scales_milli), 1)
    return min(max(milli, MILLI // STRONGEST), MILLI * STRONGEST)
