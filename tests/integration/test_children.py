"""Children of a process that is busy with gRPC."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

CHILDREN = 10
PROGRAM = f"""
import hexagent_services
import asyncio, os, uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hexagent.api.worker.v1 import worker_service_pb2
from hexagent.runtime.grpc_client import open_channel
from hexagent.runtime.grpc_server import GrpcServer

async def main():
    server = GrpcServer("127.0.0.1", 0, [worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]])
    stub = health_pb2_grpc.HealthStub(open_channel("127.0.0.1:" + str(await server.start())))

    async def ask():
        while True:
            await stub.Check(health_pb2.HealthCheckRequest())

    busy = [asyncio.create_task(ask()) for _ in range(4)]
    statuses = set()
    for _ in range({CHILDREN}):
        child = await asyncio.create_subprocess_exec("/bin/true", start_new_session=True)
        statuses.add(await child.wait())
    print(statuses, flush=True)
    os._exit(0)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_they_start_without_handlers_of_forks() -> None:
    """With gRPC's own, which say so, one of some ten or hundred ends by a signal."""
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True, env=environ
    )
    assert done.stdout.strip() == "{0}", done.stdout
    assert "fork" not in done.stderr
