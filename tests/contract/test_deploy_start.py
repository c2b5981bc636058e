"""What compose runs around the services: the cluster record's publisher and the health check."""

import asyncio
import http.server
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from hexagent.api.worker.v1 import worker_service_pb2
from hexagent.core.errors import FailedPrecondition
from hexagent.runtime import check_health
from hexagent.runtime.bus import Bus, BusOptions
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.cluster_record import CHANGED, KEPT, WRITTEN, publish_record, read_cluster_record
from hexagent.runtime.grpc_server import GrpcServer
from hexagent.runtime.nats_server import NatsServer
from hexagent.runtime.streams import StreamLimits

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = load_cluster(ROOT / "deploy/compose/cluster.toml")
SMALL = StreamLimits(2**26, 0, 2**26, 0, 2**25, 900, 2**25, 0, 2**26, 0)


@pytest_asyncio.fixture
async def bus(tmp_path: pathlib.Path) -> AsyncIterator[Bus]:
    async with NatsServer(tmp_path / "nats", limits=SMALL) as server:
        bus = await Bus.connect(BusOptions(url=server.url, name="test"))
        try:
            await bus.ensure_streams(SMALL)
            yield bus
        finally:
            await bus.close()


async def test_a_stack_keeps_its_clock(bus: Bus) -> None:
    assert await publish_record(bus, CONFIG.record(1_000)) == (WRITTEN, CONFIG.record(1_000))
    assert await publish_record(bus, CONFIG.record(2_000)) == (KEPT, CONFIG.record(1_000))
    assert await read_cluster_record(bus, 1.0) == CONFIG.record(1_000)


async def test_pools_may_change_and_the_clock_goes_on(bus: Bus) -> None:
    await publish_record(bus, CONFIG.record(1_000))
    fewer = CONFIG._replace(spec=CONFIG.spec._replace(instances=CONFIG.spec.instances[:-1]))
    assert await publish_record(bus, fewer.record(2_000)) == (CHANGED, fewer.record(1_000))
    assert await read_cluster_record(bus, 1.0) == fewer.record(1_000)


async def test_another_stack_is_refused(bus: Bus) -> None:
    await publish_record(bus, CONFIG.record(1_000))
    faster = CONFIG._replace(time_scale=20.0).record(2_000)
    other = CONFIG.record(2_000)._replace(name="other")
    for record, field in ((faster, "time_scale"), (other, "name")):
        with pytest.raises(FailedPrecondition) as caught:
            await publish_record(bus, record)
        assert (caught.value.reason, caught.value.field) == ("OTHER_STACK", field)
    assert await read_cluster_record(bus, 1.0) == CONFIG.record(1_000)


def run_module(module: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environ, timeout=60)


def test_a_wrong_file_or_setting_is_status_2() -> None:
    done = run_module("hexagent.runtime.publish_cluster", "/nonexistent.toml")
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "NO_CLUSTER_FILE")
    done = run_module("hexagent.runtime.publish_cluster", "demo", HEXAGENT_NATS_CONNECT_S="soon")
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "BAD_SETTINGS")


@pytest_asyncio.fixture
async def grpc_server() -> AsyncIterator[GrpcServer]:
    server = GrpcServer("127.0.0.1", 0, [worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]])
    await server.start()
    yield server
    await server.stop(0)


async def test_a_server_is_healthy_once_it_is_ready(grpc_server: GrpcServer) -> None:
    address = f"127.0.0.1:{grpc_server.port}"
    assert await asyncio.to_thread(check_health.problem_of, address) == "NOT_SERVING"
    waiting = asyncio.create_task(asyncio.to_thread(check_health.problems_of, [address], 30.0))
    await grpc_server.set_ready(True)
    assert await waiting == {}


@pytest.fixture
def http_server() -> Iterator[str]:
    """Answers 200 to /healthz and 503 to everything else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_health(http_server: str) -> None:
    assert check_health.problems_of([f"{http_server}/healthz"]) == {}
    assert "503" in check_health.problem_of(f"{http_server}/other")


def test_the_program_names_who_is_not_ready(http_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_health.main([f"{http_server}/healthz"]) == 0
    assert check_health.main([f"{http_server}/healthz", "127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("127.0.0.1:1: not ready: UNAVAILABLE")
