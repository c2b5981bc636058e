"""What the user may set of a generated workload, checked."""

from typing import NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import checked_id
from hexagent.core.units import MILLI
from hexagent.sim.workloads.arrivals import RATE_RANGE_MILLI, milli
from hexagent.sim.workloads.draws import below, stream

WORKFLOWS_MAX = 1_000_000
SCALE_RANGE_MILLI = (1, 1_000_000)
SIGMA_MAX_MILLI = 2_000


class Options(NamedTuple):
    """Settings of `generate`; 0 leaves the workload's own value."""

    workflows: int = 0
    rate_per_s: float = 0.0
    seed: int = 1
    arrivals: str = "fixed"  # fixed, poisson, gamma, gamma:CV
    scale: float = 1.0  # multiplies workflows and rate: a burst of equal length and `scale` times the load
    tenants: tuple[str, ...] = ("default",)  # each workflow is of one of them, drawn evenly
    calls_sigma_milli: int = 0  # log standard deviation of calls per workflow, in thousandths


class Size(NamedTuple):
    workflows: int
    rate_milli: int  # workflows per 1,000 s


def checked_size(options: Options, workflows: int, rate_per_s: int) -> Size:
    """Count and rate in force, with the workload's own as given; `InvalidArgument` names a bad option."""
    scale = milli(options.scale, "scale", *SCALE_RANGE_MILLI)
    rate = milli(options.rate_per_s or rate_per_s, "rate_per_s", *RATE_RANGE_MILLI)
    if not 0 <= options.workflows <= WORKFLOWS_MAX:
        raise _bad("workflows", f"{options.workflows} is not between 0 and {WORKFLOWS_MAX}")
    if not 0 <= options.calls_sigma_milli <= SIGMA_MAX_MILLI:
        raise _bad("calls_sigma_milli", f"{options.calls_sigma_milli} is not between 0 and {SIGMA_MAX_MILLI}")
    check_tenants(options.tenants)
    count = max(1, (options.workflows or workflows) * scale // MILLI)
    if count > WORKFLOWS_MAX:
        raise _bad("scale", f"asks for {count} workflows, more than {WORKFLOWS_MAX}")
    return Size(count, max(1, rate * scale // MILLI))


def drawn_tenant(tenants: tuple[str, ...], workflow_id: str) -> str:
    """The tenant a workflow belongs to, whatever else is in the workload."""
    return tenants[below(stream("tenant", workflow_id), len(tenants))]


def check_tenants(tenants: tuple[str, ...]) -> None:
    if not tenants:
        raise _bad("tenants", "names no tenant")
    for tenant in tenants:
        checked_id(tenant, "tenants")


def _bad(field: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {what}", reason="BAD_OPTION", field=field)
