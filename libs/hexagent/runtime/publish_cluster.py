"""Writes a cluster file into the stack's cluster bucket: `python -m hexagent.runtime.publish_cluster FILE`.

One shot, for stacks whose processes are started by something that knows no cluster files, as compose does. Safe to
run at every start: a stack that has a record keeps its clock. NATS and the streams' sizes come from the same
`HEXAGENT_` variables as for services.
"""

import asyncio
import sys
import time
from typing import ClassVar, Final

from hexagent.core.errors import FailedPrecondition, HexagentError, InvalidArgument
from hexagent.runtime import subjects
from hexagent.runtime.app import EXIT_FAILED, EXIT_USAGE
from hexagent.runtime.bus import Bus
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.settings import Settings
from hexagent.wire.cluster import ClusterRecord, cluster_record_from_bytes, cluster_record_to_bytes

WRITTEN: Final = "written"
KEPT: Final = "kept"
CHANGED: Final = "changed"


class PublishSettings(Settings):
    service: ClassVar[str] = "publish-cluster"


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


async def publish_file(path: str, settings: PublishSettings) -> str:
    """Publish the cluster file (or shipped cluster) of that name; says in one line what was done."""
    config = load_cluster(path)
    bus = await Bus.connect(settings.bus_options())
    try:
        await bus.ensure_streams(settings.stream_limits())
        done, record = await publish_record(bus, config.record(time.time_ns()))
    finally:
        await bus.close()
    agents = ", ".join(agent.agent_id for agent in config.agents)
    return f"cluster {record.name} {done}: {len(record.cluster.instances)} instances; agents: {agents}"


def main(arguments: list[str]) -> int:
    """Exit status 0 when done, 1 after a failure that trying again may mend, 2 for a wrong file or settings."""
    if len(arguments) != 1:
        print("usage: python -m hexagent.runtime.publish_cluster FILE", file=sys.stderr)
        return EXIT_USAGE
    try:
        print(asyncio.run(publish_file(arguments[0], PublishSettings.read())))
    except HexagentError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, InvalidArgument) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
