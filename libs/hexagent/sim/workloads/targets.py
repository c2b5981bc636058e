"""What the calls of a workload run on, where that is more than a cluster's only model."""

import re
from typing import Final

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import checked_id
from hexagent.sim.workloads.draws import below, stream
from hexagent.sim.workloads.model import Target, Workload

_TARGET: Final = re.compile(r"(?P<model>[^:@]+)(:(?P<lora>[^@]+))?(@(?P<precision>[^@]+))?")


def parse_target(text: str, field: str) -> Target:
    """`MODEL` or `MODEL:ADAPTER`, with `@PRECISION` where weights need one at least. `InvalidArgument` (BAD_OPTION)."""
    match = _TARGET.fullmatch(text)
    if match is None:
        message = f"{field}: {text[:80]!r} is not MODEL, MODEL:ADAPTER or one of these with @PRECISION"
        raise InvalidArgument(message, reason="BAD_OPTION", field=field)
    parts = [checked_id(part, field) if part else "" for part in match.group("model", "lora", "precision")]
    return Target(*parts)


def parse_targets(text: str) -> tuple[Target, ...]:
    """Several, with commas between; of "" none."""
    return tuple([parse_target(word.strip(), "models") for word in text.split(",")]) if text else ()


def aimed(workload: Workload, targets: tuple[Target, ...]) -> Workload:
    """The workload with each call on one of the targets, drawn evenly whatever else is in the workload; as it is where
    there are none."""
    if not targets:
        return workload
    workflows = []
    for script in workload.workflows:
        draws = stream("target", script.workflow_id)
        items = tuple([item._replace(target=targets[below(draws, len(targets))]) for item in script.items])
        workflows.append(script._replace(items=items))
    return workload._replace(workflows=tuple(workflows))
