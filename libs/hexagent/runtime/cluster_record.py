"""The stack's record of itself in the cluster bucket: written by whoever starts the stack, read by every service."""

import asyncio
from typing import Final

from hexagent.core.errors import FailedPrecondition, Unavailable
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.wire.cluster import ClusterRecord, cluster_record_from_bytes, cluster_record_to_bytes

WRITTEN: Final = "written"
KEPT: Final = "kept"
CHANGED: Final = "changed"
LOOK_S: Final = 0.1  # between two looks at a bucket that has no record yet


async def publish_record(bus: Bus, record: ClusterRecord) -> tuple[str, ClusterRecord]:
    """Make `record` the stack's own; what was done (WRITTEN, KEPT, CHANGED) and the record the stack has now.

    A stack that has a record goes on with its clock, because stored events are dated by it: only the cluster may
    change, and services read it when they start. FailedPrecondition (OTHER_STACK) where the name or the time scale
    differ; Aborted or AlreadyExists where another one writes at the same time.
    """
    bucket = bus.bucket(subjects.CLUSTER_BUCKET)
    entry = await bucket.get(subjects.CLUSTER_RECORD_KEY)
    if entry is None or entry.value is None:
        await bucket.create(subjects.CLUSTER_RECORD_KEY, cluster_record_to_bytes(record))
        return WRITTEN, record
    stored = cluster_record_from_bytes(entry.value)
    for field, now, before in (
        ("name", record.name, stored.name),
        ("time_scale", record.time_scale, stored.time_scale),
    ):
        if now != before:
            raise FailedPrecondition(
                f"the stack has {field} {before}, not {now}: use the same again, or begin with empty NATS data",
                reason="OTHER_STACK",
                field=field,
            )
    resumed = record._replace(origin_wall_ns=stored.origin_wall_ns)
    if resumed == stored:
        return KEPT, stored
    await bucket.update(subjects.CLUSTER_RECORD_KEY, cluster_record_to_bytes(resumed), entry.revision)
    return CHANGED, resumed


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
