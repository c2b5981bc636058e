"""Faulty engines and drained instances on one local stack: workflows complete, and nothing stays reserved."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import pytest
import pytest_asyncio

import hexagent.client
from hexagent.api.scheduler.v1 import scheduler_service_pb2 as pb
from hexagent.api.scheduler.v1 import scheduler_service_pb2_grpc
from hexagent.api.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from hexagent.cli.children import wait_healthy
from hexagent.cli.explain_workflow import workflow_lines
from hexagent.cli.stack import ESTIMATOR, SCHEDULER, TRACKER, LocalStack, StackOptions
from hexagent.cli.top import stack_addresses, view_of
from hexagent.client import CallResult, Client, NodeState, NodeStatus
from hexagent.client.drain import drain_instance, uncordon_instance
from hexagent.client.overview import observing
from hexagent.core.estimate.remaining import COMPLETED_MIN

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

AGENTS: Final = ("agent-prefill", "agent-decode")
STALL_S: Final = 3.0  # of model time; less than after which an attempt is given up
POOL: Final = """
[[pool]]
role = "{role}"
gpu = "h100"
model = "llama-3.1-8b"
name = "{name}"
"""
DECODE: Final = ("healthy", "hang", "slow", "drop", "lie")
PREFILL: Final = ("prompt", "stall")
FAULTS: Final = f"hang:hang-0,slow:slow-0=6,drop-hand-off:drop-0=1,lie:lie-0=6,stall-transfer:stall-0={STALL_S:g}"
PATIENCE_S: Final = 20.0
REPORTED_S: Final = 1.2  # agents have reported what was until then


class Cluster(NamedTuple):
    """The stack, a client of it, and its scheduler as operators see it."""

    stack: LocalStack
    client: Client
    scheduler: "scheduler_service_pb2_grpc.SchedulerServiceAsyncStub"

    async def open_only(self, *names: str) -> None:
        """Close every other instance to new calls."""
        for name in (*DECODE, *PREFILL):
            if name in names:
                await self.scheduler.UncordonInstance(pb.UncordonInstanceRequest(instance_id=f"{name}-0"))
            else:
                await self.scheduler.CordonInstance(pb.CordonInstanceRequest(instance_id=f"{name}-0"))

    async def views(self) -> dict[str, pb.InstanceView]:
        answer = await self.scheduler.GetCluster(pb.GetClusterRequest())
        return {view.instance.instance_id: view for view in answer.instances}

    async def nothing_held(self) -> None:
        """Neither the ledger nor an agent holds anything, soon."""
        for agent in AGENTS:
            async with grpc.aio.insecure_channel(self.stack.addresses[agent]) as channel:
                stub: worker_service_pb2_grpc.WorkerServiceAsyncStub = worker_service_pb2_grpc.WorkerServiceStub(
                    channel
                )

                async def empty(stub: "worker_service_pb2_grpc.WorkerServiceAsyncStub" = stub) -> bool:
                    return not (await stub.DescribeAgent(worker_service_pb2.DescribeAgentRequest())).held

                await until(empty)
        for view in (await self.views()).values():
            ledger = view.ledger
            assert (ledger.prefill_calls, ledger.decode_calls, ledger.reserved_tokens, ledger.pinned_tokens) == (0,) * 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("faults")
    file, profile = folder / "cluster.toml", folder / "profile.toml"
    pools = [("decode", name) for name in DECODE] + [("prefill", name) for name in PREFILL]
    text = "".join(POOL.format(role=role, name=name) for role, name in pools)
    file.write_text(f'name = "faults"\npolicy = "hexagent"\ntime_scale = 10.0\n{text}')
    profile.write_text("stuck_factor = 1\nstuck_us = 1_000_000\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEXAGENT_FAULTS", FAULTS)
        patch.setenv("HEXAGENT_PROFILE", str(profile))
        async with (
            LocalStack(StackOptions(str(file), data_dir=folder / "stack"), print) as stack,
            hexagent.client.connect(stack.address) as client,
            grpc.aio.insecure_channel(stack.addresses[SCHEDULER]) as channel,
        ):
            yield Cluster(stack, client, scheduler_service_pb2_grpc.SchedulerServiceStub(channel))


async def empty(agent: "worker_service_pb2_grpc.WorkerServiceAsyncStub") -> bool:
    return not (await agent.DescribeAgent(worker_service_pb2.DescribeAgentRequest())).held


async def until(condition: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(patience_s):
        while not await condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.02)


async def nodes_of(cluster: Cluster, workflow_id: str) -> list[NodeState]:
    return list((await cluster.client.describe(workflow_id)).nodes)


async def run(cluster: Cluster, name: str, meanwhile: Callable[[], Awaitable[None]] | None = None) -> list[CallResult]:
    """Three calls and one that joins them; `meanwhile` happens when the three are on their instances."""
    async with cluster.client.workflow("faults", workflow_id=name, max_tokens=40) as wf:
        parts = [asyncio.ensure_future(wf.call(f"Part {i} of {name}.")) for i in range(3)]
        if meanwhile is not None:

            async def running() -> bool:
                nodes = await nodes_of(cluster, name)
                return len(nodes) == 3 and all(node.status is NodeStatus.RUNNING for node in nodes)

            await until(running)
            await meanwhile()
        results = [await part for part in parts]
        results.append(await wf.call([*results, "Together."]))
    assert wf.outcome is not None
    await cluster.nothing_held()
    return results


@pytest.mark.parametrize("name", ["hang", "drop"])
async def test_calls_of_an_engine_that_never_answers_end_elsewhere(cluster: Cluster, name: str) -> None:
    await cluster.open_only(name, "prompt")
    results = await run(cluster, name, lambda: cluster.open_only(name, "healthy", "prompt"))
    assert {result.decode_instance for result in results} == {"healthy-0"}
    assert [result.attempt > 1 for result in results] == [True, True, True, False]


async def test_a_slow_engine_is_only_slow(cluster: Cluster) -> None:
    took_us = {}
    for name in ("healthy", "slow"):
        await cluster.open_only(name, "prompt")
        results = await run(cluster, f"{name}-one")
        assert {(result.decode_instance, result.attempt) for result in results} == {(f"{name}-0", 1)}
        took_us[name] = min(result.times.end_us - result.times.decode_start_us for result in results)
    assert took_us["slow"] > 3 * took_us["healthy"]


async def test_a_stalled_transfer_is_waited_for(cluster: Cluster) -> None:
    await cluster.open_only("healthy", "stall")
    for result in await run(cluster, "stalled"):
        assert (result.prefill_instance, result.attempt) == ("stall-0", 1)
        assert result.times.decode_start_us - result.times.prefill_end_us >= STALL_S * 1e6


async def test_an_engine_that_lies_is_believed_and_does_no_harm(cluster: Cluster) -> None:
    await cluster.open_only("lie", "prompt")
    for result in await run(cluster, "liar"):
        assert (result.decode_instance, result.attempt) == ("lie-0", 1)

    async def believed() -> bool:
        views = await cluster.views()
        liar, honest = (views[name].ledger.decode_ppm for name in ("lie-0", "healthy-0"))
        return liar > 2 * honest

    await until(believed)


async def test_top_shows_what_the_stack_does(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.open_only("healthy", "prompt")
    addresses = stack_addresses(*(cluster.stack.addresses[name] for name in (TRACKER, SCHEDULER, ESTIMATOR)))
    await asyncio.sleep(REPORTED_S)  # of what ran before
    async with observing(addresses) as observer:
        before = await observer.look()
        async with cluster.client.workflow("shown", workflow_id="shown", slo_scale=3.0) as wf:
            used = (await wf.call("Some words.", max_tokens=300)).usage
            await asyncio.sleep(REPORTED_S)
            view = view_of(before, await observer.look())
    instances = {row["instance"]: row for row in view.instances}
    assert set(instances) == {f"{name}-0" for name in (*DECODE, *PREFILL)}
    assert (instances["healthy-0"]["state"], instances["slow-0"]["state"]) == ("up", "closed")
    passed_s = float(view.cluster["at_s"] or 0) - before.cluster.at_us / 1e6
    for name, rate, tokens in (
        ("prompt-0", "prefilled_tokens_per_s", used.prompt_tokens),
        ("healthy-0", "generated_tokens_per_s", used.output_tokens - 1),  # the first comes with the prompt
    ):
        assert float(instances[name][rate] or 0) * passed_s == pytest.approx(tokens)
    assert float(view.cluster["decisions_per_s"] or 0) > 0
    assert view.cluster["estimator_answers"] is True
    (workflow,) = view.workflows
    assert (workflow["workflow"], workflow["calls"], workflow["calls_ended"]) == ("shown", 1, 1)
    age_s, horizon_s = float(workflow["age_s"] or 0), float(workflow["horizon_s"] or 0)
    assert workflow["laxity_s"] == pytest.approx(3 * horizon_s - age_s)
    assert [row["tenant"] for row in view.tenants] == ["default"]

    file = tmp_path / "top.json"
    given = ("--scheduler", addresses.scheduler, "--estimator", addresses.estimator, "--interval", "0.2")
    assert await hexagent_command("top", "--once", "--json", str(file), "--address", addresses.tracker, *given) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["command"] == "top"
    assert {row["instance"] for row in document["rows"] if row["table"] == "instance"} == set(instances)


async def test_a_workflow_says_when_it_ends_as_long_as_the_estimator_answers(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.open_only("healthy", "prompt")
    for number in range(COMPLETED_MIN):
        async with cluster.client.workflow("ends", workflow_id=f"past-{number}", max_tokens=40) as wf:
            await wf.call([await wf.call("First."), "Last."])
    file = tmp_path / "why.json"
    addresses = stack_addresses(*(cluster.stack.addresses[name] for name in (TRACKER, SCHEDULER, ESTIMATOR)))
    given = ("--address", addresses.tracker, "--scheduler", addresses.scheduler, "--estimator", addresses.estimator)
    async with cluster.client.workflow("ends", workflow_id="now") as wf, observing(addresses) as seen:
        asked = asyncio.ensure_future(wf.call("First.", max_tokens=4_000))

        async def foreseen() -> bool:
            return "now" in ((await seen.look()).residuals or {})

        await until(foreseen)
        assert await hexagent_command("explain", "now", "--json", str(file), *given) == 0
        (row,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
        (node,) = (await cluster.client.describe("now")).nodes
        assert (row["status"], row["foreseen_at_call"]) == ("running", node.node_id)
        assert 0 <= row["ends_in_s"] <= row["ends_in_90_percent_s"] <= row["ends_in_99_percent_s"]
        residual = ((await seen.look()).residuals or {})["now"]
        past = await cluster.client.describe("past-0")
        # A second call is to come, as it did in the others.
        assert past.nodes[0].solo_s < residual.q50_us / 1e6 < 2 * past.workflow.horizon_s
        os.kill(cluster.stack.pids[ESTIMATOR], signal.SIGSTOP)
        try:
            assert (await seen.look()).residuals is None
            assert "Ends in -" in workflow_lines(await seen.look_at("now"))[-1]
        finally:
            os.kill(cluster.stack.pids[ESTIMATOR], signal.SIGCONT)
        await asked


async def test_top_follows_in_a_terminal_until_it_is_told_to_end(cluster: Cluster) -> None:
    addresses = [cluster.stack.addresses[name] for name in (TRACKER, SCHEDULER, ESTIMATOR)]
    given = ("--address", addresses[0], "--scheduler", addresses[1], "--estimator", addresses[2], "--interval", "0.2")
    terminal, its_side = pty.openpty()
    command = (sys.executable, "-m", "hexagent.cli.main", "top", *given)
    environ = {**os.environ, "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(*command, stdin=its_side, stdout=its_side, env=environ)
    os.close(its_side)
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: shown.extend(os.read(terminal, 65_536)))

    async def looked_often() -> bool:
        return shown.count(b"policy hexagent") >= 3

    try:
        await until(looked_often)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    finally:
        loop.remove_reader(terminal)
        os.close(terminal)


async def test_an_agent_that_says_nothing_is_stale_within_two_seconds(cluster: Cluster) -> None:
    async def stale() -> set[str]:
        return {name for name, view in (await cluster.views()).items() if view.reported.stale}

    async def silent() -> bool:
        return await stale() == {f"{name}-0" for name in DECODE}

    async def all_heard() -> bool:
        return not await stale()

    await until(all_heard)
    agent = cluster.stack.pids["agent-decode"]
    os.kill(agent, signal.SIGSTOP)  # it keeps its connections
    try:
        await until(silent, patience_s=2.0)
    finally:
        os.kill(agent, signal.SIGCONT)
    await until(all_heard)


async def test_a_drained_instance_ends_its_calls_and_stays_closed(cluster: Cluster) -> None:
    address = cluster.stack.addresses[SCHEDULER]
    await cluster.open_only("healthy", "prompt")
    long = {"emulated.output_tokens": "1500"}
    async with cluster.client.workflow("drained", workflow_id="drained") as wf:
        last = asyncio.ensure_future(wf.call("Take your time.", max_tokens=1_500, engine_options=long))

        async def running() -> bool:
            return [node.status for node in await nodes_of(cluster, "drained")] == [NodeStatus.RUNNING]

        await until(running)
        await uncordon_instance("slow-0", address)
        left = drain_instance("healthy-0", address)
        assert await anext(left) == 1
        assert (await wf.call("Elsewhere.", max_tokens=4)).decode_instance == "slow-0"
        assert not last.done()
        assert [held async for held in left] == [0]
        result = await last
        assert (result.decode_instance, result.usage.output_tokens, result.attempt) == ("healthy-0", 1_500, 1)
    await cluster.nothing_held()

    os.kill(cluster.stack.pids[SCHEDULER], signal.SIGKILL)
    await asyncio.sleep(0.2)
    await wait_healthy(address)
    closed = {name for name, view in (await cluster.views()).items() if view.cordoned}
    assert closed == {"healthy-0", "hang-0", "drop-0", "lie-0", "stall-0"}
    await uncordon_instance("hang-0", address)
    assert await hexagent_command("drain", "healthy-0", "--scheduler", address) == 0  # again: nothing is left
    assert await hexagent_command("drain", "healthy-0", "--undo", "--scheduler", address) == 0
    assert not (await cluster.views())["healthy-0"].cordoned


async def hexagent_command(*arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "hexagent.cli.main", *arguments)
    return await process.wait()
