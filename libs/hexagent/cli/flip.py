"""`hexagent flip`: give an instance the other role."""

import time
from typing import Final

from hexagent.cli.failures import usage
from hexagent.cli.report import Row, console
from hexagent.client.cluster_views import InstanceView
from hexagent.client.flip import flip_instance
from hexagent.core.instance.spec import Role

ROLES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE}


async def run_flip(instance_id: str, role: str, scheduler_address: str) -> list[Row]:
    """Say how far the change is until it is done; one row for each step. Errors as the client's."""
    if role not in ROLES:
        raise usage("--role", f"must be {' or '.join(ROLES)}; got {role!r}")
    out = console()
    started_s = time.monotonic()
    rows: list[Row] = []
    async for view in flip_instance(instance_id, ROLES[role], scheduler_address):
        rows.append({
            "instance": instance_id,
            "wall_s": round(time.monotonic() - started_s, 3),
            "role": view.spec.role.name.lower(),
            "up": view.up,
            "calls_left": view.held,
        })  # fmt: skip
        out.print(f"{instance_id} {_state(view, role)}.")
    return rows


def _state(view: InstanceView, role: str) -> str:
    if not view.up:
        return f"is down: {view.down_reason}"
    return f"is a {role} instance" if view.wanted_role is None else f"takes no new calls; {view.held} left"
