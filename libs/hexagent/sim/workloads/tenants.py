"""Tenants of a simulated workload: their weights, and how much more one asks for than another."""

import re
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import checked_id
from hexagent.sim.workloads.model import ScriptedWorkflow, Segment, WorkItem, Workload

WEIGHT_MAX: Final = 1_000_000
FAN_OUT_MAX: Final = 64
_TENANT: Final = re.compile(r"(?P<name>[^:]+)(:(?P<weight>\d{1,7})(x(?P<fan_out>\d{1,2}))?)?")


class TenantLoad(NamedTuple):
    name: str
    weight: int = 1
    fan_out: int = 1  # how many times each workflow's graph runs, all of them side by side


def parse_tenants(text: str) -> tuple[TenantLoad, ...]:
    """`a:1,b:3x8`: tenant `a` of weight 1, and `b` of weight 3 whose workflows fan out eightfold. "" = one, `default`.

    `InvalidArgument` (BAD_OPTION) says what is allowed.
    """
    tenants = [_tenant(word.strip()) for word in text.split(",")] if text else [TenantLoad("default")]
    names = [tenant.name for tenant in tenants]
    for name in names:
        if names.count(name) > 1:
            raise _bad(f"names {name!r} twice")
    return tuple(tenants)


def fanned_out(workload: Workload, tenants: tuple[TenantLoad, ...]) -> Workload:
    """The workload with each tenant's fan-out. A workflow's horizon stays as it is, its calls become more."""
    times = {tenant.name: tenant.fan_out for tenant in tenants}
    workflows = [script._replace(items=_copies(script, times[script.tenant])) for script in workload.workflows]
    return workload._replace(workflows=tuple(workflows))


def _copies(script: ScriptedWorkflow, times: int) -> tuple[WorkItem, ...]:
    count = len(script.items)
    return tuple([_moved(item, copy, copy * count) for copy in range(times) for item in script.items])


def _moved(item: WorkItem, copy: int, by: int) -> WorkItem:
    """The item in another copy of its graph; what it generates there is a text of its own."""
    if not copy:
        return item
    segments = [
        Segment(f"{s.name}/{copy}", s.tokens, s.output_of + by) if s.output_of >= 0 else s for s in item.segments
    ]
    deps = tuple([dep + by for dep in item.deps])
    return item._replace(index=item.index + by, deps=deps, segments=tuple(segments))


def _tenant(word: str) -> TenantLoad:
    match = _TENANT.fullmatch(word)
    if match is None:
        raise _bad(f"{word!r} is not NAME, NAME:WEIGHT or NAME:WEIGHTxFAN_OUT")
    weight, fan_out = int(match["weight"] or 1), int(match["fan_out"] or 1)
    if not 1 <= weight <= WEIGHT_MAX:
        raise _bad(f"{word!r} has a weight that is not between 1 and {WEIGHT_MAX}")
    if not 1 <= fan_out <= FAN_OUT_MAX:
        raise _bad(f"{word!r} has a fan-out that is not between 1 and {FAN_OUT_MAX}")
    return TenantLoad(checked_id(match["name"], "tenants"), weight, fan_out)


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(what, reason="BAD_OPTION", field="tenants")
