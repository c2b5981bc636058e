"""The stack's record of itself in the cluster bucket: written by whoever starts the stack, read by every service."""

import asyncio
from typing import Final

from hexagent.core.errors import Unavailable
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.wire.cluster import ClusterRecord, cluster_record_from_bytes, cluster_record_to_bytes

LOOK_S: Final = 0.1  # between two looks at a bucket that has no record yet


async def write_cluster_record(bus: Bus, record: ClusterRecord) -> None:
    """Make the record the stack's own; services that already read another one must be started again."""
    await bus.bucket(subjects.CLUSTER_BUCKET).put(subjects.CLUSTER_RECORD_KEY, cluster_record_to_bytes(record))


async def read_cluster_record(bus: Bus, wait_s: float) -> ClusterRecord:
    """The record; waits for it. `Unavailable` (NO_CLUSTER_RECORD) after `wait_s` of wall time."""
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + wait_s
    while True:
        entry = await bucket.get(subjects.CLUSTER_RECORD_KEY)
        if entry is not None and entry.value is not None:
            return cluster_record_from_bytes(entry.value)
        if loop.time() >= end_s:
            raise Unavailable(
                f"no cluster record within {wait_s:g} s: the stack's configuration has not been written",
                reason="NO_CLUSTER_RECORD",
            )
        await asyncio.sleep(LOOK_S)
