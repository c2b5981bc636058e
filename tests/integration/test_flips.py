"""Instances of a local stack get the other role, whoever is killed meanwhile."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

import grpc
import pytest
import pytest_asyncio

import hexagent.client
from hexagent.api.common.v1 import enums_pb2
from hexagent.api.scheduler.v1 import scheduler_service_pb2 as pb
from hexagent.api.scheduler.v1 import scheduler_service_pb2_grpc
from hexagent.cli.stack import SCHEDULER, LocalStack, StackOptions
from hexagent.client import Client
from hexagent.client.flip import flip_instance
from hexagent.core.errors import Aborted, FailedPrecondition
from hexagent.core.instance.spec import Role
from hexagent.runtime.grpc_client import open_channel

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

POOL: Final = """
[[pool]]
role = "{role}"
gpu = "h100"
model = "llama-3.1-8b"
name = "{role}"
count = {count}
flip_s = {flip_s}
"""
FLIP_S: Final = 20.0  # of model time: long enough to be killed in
LONG: Final = {"emulated.output_tokens": "1500"}
PATIENCE_S: Final = 20.0
HEARD_S: Final = 0.3  # for a command to reach its agent, who remembers it; the calls take longer


class Cluster(NamedTuple):
    stack: LocalStack
    client: Client
    scheduler: "scheduler_service_pb2_grpc.SchedulerServiceAsyncStub"

    async def view(self, name: str) -> pb.InstanceView:
        """Of an instance; without a description while the scheduler does not answer."""
        try:
            answer = await self.scheduler.GetCluster(pb.GetClusterRequest())
        except grpc.aio.AioRpcError:
            return pb.InstanceView()
        return next((v for v in answer.instances if v.instance.instance_id == name), pb.InstanceView())

    async def flip(self, name: str, role: Role) -> pb.FlipInstanceResponse:
        request = pb.FlipInstanceRequest(instance_id=name, role=enums_pb2.Role.ValueType(role))
        return await self.scheduler.FlipInstance(request)

    async def becomes(self, name: str, role: Role) -> None:
        async def there() -> bool:
            view = await self.view(name)
            return view.up and int(view.instance.role) == role and not view.wanted_role

        await until(there)

    def kill(self, service: str) -> None:
        os.kill(self.stack.pids[service], signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("flips")
    file = folder / "cluster.toml"
    pools = (("prefill", 1, 0), ("decode", 2, FLIP_S))
    text = "".join(POOL.format(role=role, count=count, flip_s=flip_s) for role, count, flip_s in pools)
    file.write_text(f'name = "flips"\npolicy = "hexagent"\ntime_scale = 10.0\nprefix_cache = true\n{text}')
    async with (
        LocalStack(StackOptions(str(file), data_dir=folder / "stack"), print) as stack,
        hexagent.client.connect(stack.address) as client,
        open_channel(stack.addresses[SCHEDULER]) as channel,
    ):
        yield Cluster(stack, client, scheduler_service_pb2_grpc.SchedulerServiceStub(channel))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.02)


async def test_a_flip_outlives_whoever_is_killed_meanwhile(cluster: Cluster) -> None:
    flip = (await cluster.view("decode-1")).instance.flip
    assert (flip.way, flip.cost_us) == (enums_pb2.FLIP_WAY_RESTART, FLIP_S * 1e6)
    async with cluster.client.workflow("flips", workflow_id="flips") as wf:
        calls = [
            asyncio.ensure_future(wf.call(f"Take your time, {i}.", max_tokens=1_500, engine_options=LONG))
            for i in range(4)
        ]

        async def decoding() -> bool:
            return (await cluster.view("decode-1")).load.decoding > 0

        await until(decoding)
        left = flip_instance("decode-1", Role.PREFILL, cluster.stack.addresses[SCHEDULER])
        assert (await anext(left)).held > 0
        await asyncio.sleep(HEARD_S)
        cluster.kill(SCHEDULER)  # while it drains

        async def knows() -> bool:
            return (await cluster.view("decode-1")).wanted_role == enums_pb2.ROLE_PREFILL

        await until(knows)
        results = [await call for call in calls]
        assert {(r.usage.output_tokens, r.attempt) for r in results} == {(1_500, 1)}
        assert {r.decode_instance for r in results} == {"decode-0", "decode-1"}

        async def changing() -> bool:
            return (await cluster.view("decode-1")).down_reason == "its role changes to prefill"

        await until(changing)
        cluster.kill("agent-decode")  # while it changes
        await cluster.becomes("decode-1", Role.PREFILL)
        cluster.kill("agent-decode")  # with the role that it has been given
        await cluster.becomes("decode-1", Role.PREFILL)
        await cluster.scheduler.CordonInstance(pb.CordonInstanceRequest(instance_id="prefill-0"))
        result = await wf.call("Where are you?", max_tokens=4)
        assert (result.prefill_instance, result.decode_instance) == ("decode-1", "decode-0")
        await cluster.scheduler.UncordonInstance(pb.UncordonInstanceRequest(instance_id="prefill-0"))


async def test_the_command_waits_until_it_is_done_and_says_why_not(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    address = cluster.stack.addresses[SCHEDULER]
    assert await hexagent_command("flip", "decode-0", "--role", "prefill", "--scheduler", address) == 2
    assert "is the last that serves llama-3.1-8b in its role" in capfd.readouterr().err
    assert await hexagent_command("flip", "decode-1", "--role", "decode", "--scheduler", address) == 0
    said = capfd.readouterr().out
    assert "decode-1 is down: its role changes to decode." in said
    assert said.endswith("decode-1 is a decode instance.\n")
    first = flip_instance("decode-1", Role.PREFILL, address)
    await anext(first)
    await cluster.flip("decode-1", Role.DECODE)
    with pytest.raises(Aborted, match="decode-1 be a decode instance"):
        [view async for view in first]
    with pytest.raises(FailedPrecondition):
        await anext(flip_instance("prefill-0", Role.DECODE, address))


async def hexagent_command(*arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "hexagent.cli.main", *arguments)
    return await process.wait()
