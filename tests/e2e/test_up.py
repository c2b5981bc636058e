"""`hexagent up`: real processes that are restarted, stopped and resumed."""

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import grpc
import pytest

import hexagent.client
from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.core.workflow.model import WorkflowStatus
from tests.e2e.local_stack import STOP_S, Up, alive, children, command, listens, wait_until

pytestmark = pytest.mark.e2e

PROCESSES = 7  # nats-server, tracker, scheduler, estimator, two agents, gateway


def run_on(stack: Up, rows: Path, *arguments: str) -> str:
    """Run three workflows on the stack; gives the id of the first."""
    done = command(
        "run", "bfcl", "--workflows", "3", "--address", stack.address(), "--json", str(rows), *arguments
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    workflow_id: str = json.loads(rows.read_text())["rows"][0]["workflow"]
    return workflow_id


def test_dead_children_come_back_and_the_stack_resumes(tmp_path: Path) -> None:
    with Up(tmp_path / "stack", "--time-scale", "5") as stack:
        stack.wait_said("HexAGenT is up")
        first_ports, first_pids = stack.ports, children(stack.process.pid)
        assert len(first_pids) == PROCESSES
        killed = {}
        for name, what in (
            ("dag-tracker", "hexagent_services.dag_tracker"),
            ("scheduler", "hexagent_services.scheduler"),
            ("nats-server", "nats-server"),
        ):
            killed[name] = stack.child(what)
            os.kill(killed[name], signal.SIGKILL)
            stack.wait_said(f"{name} (process {killed[name]}) ended with SIGKILL")
            stack.wait_said(f"{name} is back")
        assert stack.ports == first_ports
        assert all(listens(port) for port in first_ports.values())
        assert not set(children(stack.process.pid)) & set(killed.values())
        workflow_id = run_on(stack, tmp_path / "rows.json")
        explained = command(
            "explain", f"{workflow_id}/c0", "--address", stack.address(), "--scheduler", stack.address("scheduler")
        )
        assert explained.returncode == 0, explained.stderr
        assert "prefill on p-" in explained.stdout
        assert "Predicted and happened" in explained.stdout
        pids = children(stack.process.pid)
        assert stack.terminate() == 0
        assert not [pid for pid in pids if alive(pid)]
        assert not any(listens(port) for port in first_ports.values())

    with Up(tmp_path / "stack", "--time-scale", "5") as stack:
        stack.wait_said("HexAGenT is up", times=2)
        stack.wait_said("resuming the stack")
        assert stack.ports == first_ports
        assert asyncio.run(status_of(stack.address(), workflow_id)) is WorkflowStatus.COMPLETED
        run_on(stack, tmp_path / "rows.json", "--seed", "2")
        assert stack.terminate() == 0

    refused = command("up", "--data", str(tmp_path / "stack"), "--port", "0", "--time-scale", "7")
    assert refused.returncode == 2
    assert "--time-scale" in refused.stderr


def test_without_its_estimator_a_scheduler_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profile.toml").write_text("snapshot_stale_us = 4_000_000")
    monkeypatch.setenv("HEXAGENT_PROFILE", str(tmp_path / "profile.toml"))
    monkeypatch.setenv("HEXAGENT_SHADOW_POLICIES", "fcfs:least-loaded")
    monkeypatch.setenv("HEXAGENT_SHADOW_EVERY", "1")
    with Up(tmp_path / "stack", "--time-scale", "5") as stack:
        stack.wait_said("HexAGenT is up")
        wait_until(lambda: revision_of(stack) > 0, STOP_S)
        estimator = stack.child("hexagent_services.estimator")
        os.kill(estimator, signal.SIGSTOP)  # a dead one would come back
        wait_until(lambda: revision_of(stack) == 0, STOP_S)
        workflow_id = run_on(stack, tmp_path / "rows.json")
        explained = command(
            "explain", f"{workflow_id}/c0", "--address", stack.address(), "--scheduler", stack.address("scheduler")
        )
        said = " ".join(explained.stdout.split())
        assert "no fresh snapshot, so tables alone" in said
        assert "when it was started, fcfs:least-loaded would have started it, prefill on p-" in said
        os.kill(estimator, signal.SIGCONT)
        wait_until(lambda: revision_of(stack) > 0, STOP_S)


def revision_of(stack: Up) -> int:
    """Of the estimates the scheduler works with."""
    with grpc.insecure_channel(stack.address("scheduler")) as channel:
        stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        return stub.GetCluster(scheduler_service_pb2.GetClusterRequest()).snapshot_revision


async def status_of(address: str, workflow_id: str) -> WorkflowStatus:
    async with hexagent.client.connect(address) as client:
        return (await client.describe(workflow_id)).workflow.status


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    with Up(tmp_path / "stack") as stack:
        stack.wait_said("HexAGenT is up")
        pids = children(stack.process.pid)
        assert len(pids) == PROCESSES
        stack.process.kill()
        stack.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), STOP_S)


def test_stopping_while_starting_leaves_nothing(tmp_path: Path) -> None:
    with Up(tmp_path / "stack") as stack:
        wait_until(lambda: len(children(stack.process.pid)) == PROCESSES, STOP_S)
        pids = children(stack.process.pid)
        assert stack.terminate() == 0
        assert not [pid for pid in pids if alive(pid)]


def test_a_service_that_cannot_start_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("up", "--data", str(tmp_path / "stack"), "--port", str(port))
    assert done.returncode == 1
    assert "dag-tracker" in done.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
