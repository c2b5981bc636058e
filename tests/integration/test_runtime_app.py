"""The life of a service: a real process, real signals."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).parent / "runtime_service.py"


class Probe:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode().strip()

    async def end(self) -> tuple[int, list[str], str]:
        """Exit status, the rest of stdout, stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(), 20)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode().splitlines(), err.decode()


@pytest_asyncio.fixture
async def probes() -> AsyncIterator[list[Probe]]:
    """Started probes, killed in the end."""
    started: list[Probe] = []
    yield started
    for probe in started:
        if probe.process.returncode is None:
            probe.process.kill()
            await probe.process.wait()


async def _start(probes: list[Probe], **environ: str) -> Probe:
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    probes.append(Probe(process))
    return probes[-1]


async def _check(channel: grpc.aio.Channel) -> health_pb2.HealthCheckResponse:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return await check(health_pb2.HealthCheckRequest(), timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_a_service_in_order(probes: list[Probe], tmp_path: Path, number: signal.Signals) -> None:
    ready_file = tmp_path / "ready.json"
    probe = await _start(probes, HEXAGENT_READY_FILE=str(ready_file))
    ready = json.loads(await probe.line())
    assert ready == {"service": "probe", "port": ready["port"], "pid": probe.process.pid, "mode": ""}
    assert json.loads(ready_file.read_text()) == ready
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ready['port']}") as channel:
        answer = await _check(channel)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING

    probe.process.send_signal(number)
    status, lines, errors = await probe.end()

    assert status == 0, errors
    assert lines == ["intake", "drain", "flush", "close last", "close first"]
    assert not ready_file.exists()
    assert [json.loads(line)["message"] for line in errors.splitlines()] == ["ready", "stopping", "stopped"]


async def test_work_that_outlives_the_grace_is_cut_off(probes: list[Probe]) -> None:
    probe = await _start(probes, HEXAGENT_PROBE_MODE="hang", HEXAGENT_STOP_GRACE_S="0.2")
    await probe.line()
    probe.process.terminate()
    status, lines, errors = await probe.end()
    assert status == 0
    assert lines[-3:] == ["flush", "close last", "close first"]
    assert "not done in time" in errors


async def test_a_second_signal_ends_at_once(probes: list[Probe]) -> None:
    probe = await _start(probes, HEXAGENT_PROBE_MODE="hang", HEXAGENT_STOP_GRACE_S="60")
    await probe.line()
    probe.process.terminate()
    assert await probe.line() == "intake"
    assert await probe.line() == "drain"
    probe.process.terminate()
    status, _, _ = await probe.end()
    assert status == 128 + signal.SIGTERM


async def test_a_start_can_be_stopped(probes: list[Probe]) -> None:
    probe = await _start(probes, HEXAGENT_PROBE_MODE="slow-start")
    assert await probe.line() == "starting"
    probe.process.terminate()
    status, lines, _ = await probe.end()
    assert (status, lines) == (0, [])


async def test_a_failed_task_ends_the_process_with_its_traceback(probes: list[Probe]) -> None:
    probe = await _start(probes, HEXAGENT_PROBE_MODE="crash")
    status, _, errors = await probe.end()
    records = [json.loads(line) for line in errors.splitlines()]
    assert status == 1
    assert any(record.get("fields") == {"task": "beat"} for record in records)
    assert "RuntimeError: the probe's heart stops" in records[-1]["traceback"]


@pytest.mark.parametrize(
    "environ", [{"HEXAGENT_PROBE_MODE": "refuse"}, {"HEXAGENT_LISTEN_PORT": "70000"}], ids=["file", "settings"]
)
async def test_wrong_input_is_one_line_and_its_own_status(probes: list[Probe], environ: dict[str, str]) -> None:
    probe = await _start(probes, **environ)
    status, lines, errors = await probe.end()
    records = [json.loads(line) for line in errors.splitlines()]
    assert (status, lines) == (2, [])
    assert len(records) == 1
    assert records[0]["fields"]["reason"] in ("BAD_CLUSTER", "BAD_SETTINGS")
    assert "traceback" not in records[0]


async def test_a_taken_port_is_a_clear_failure(probes: list[Probe]) -> None:
    port = json.loads(await (await _start(probes)).line())["port"]
    status, _, errors = await (await _start(probes, HEXAGENT_LISTEN_PORT=str(port))).end()
    assert status == 1
    assert "PORT_TAKEN" in errors
    assert "Traceback" not in errors
