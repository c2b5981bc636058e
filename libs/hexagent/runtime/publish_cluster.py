"""Writes a cluster file into the stack's cluster bucket: `python -m hexagent.runtime.publish_cluster FILE`.

One shot, for stacks whose processes are started by something that knows no cluster files, as compose does. Safe to
run at every start: a stack that has a record keeps its clock. NATS and the streams' sizes come from the same
`HEXAGENT_` variables as for services.
"""

import asyncio
import sys
import time
from typing import ClassVar

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.runtime.app import EXIT_FAILED, EXIT_USAGE
from hexagent.runtime.bus import Bus
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.cluster_record import publish_record
from hexagent.runtime.settings import Settings


class PublishSettings(Settings):
    service: ClassVar[str] = "publish-cluster"


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
