"""`hexagent drain`: take an instance out of service, or give it back."""

import time

from hexagent.cli.report import Row, console
from hexagent.client.drain import drain_instance, uncordon_instance


async def run_drain(instance_id: str, scheduler_address: str, undo: bool) -> list[Row]:
    """Say how many calls are left until none is; one row for each number. Errors as the client's."""
    out = console()
    if undo:
        await uncordon_instance(instance_id, scheduler_address)
        out.print(f"{instance_id} takes calls again.")
        return []
    started_s = time.monotonic()
    rows: list[Row] = []
    async for held in drain_instance(instance_id, scheduler_address):
        rows.append({"instance": instance_id, "wall_s": round(time.monotonic() - started_s, 3), "calls_left": held})
        out.print(f"{instance_id} takes no new calls; {held} left.")
    return rows
