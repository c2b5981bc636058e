"""A local stack of engines that push: decode is reserved while prefill runs."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import pytest
import pytest_asyncio

import hexagent.client
from hexagent.api.common.v1 import enums_pb2
from hexagent.api.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from hexagent.cli.stack import LocalStack, StackOptions
from hexagent.client import Client
from hexagent.core.errors import Cancelled
from tests.integration.test_faults import POOL, until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

PROMPT: Final = "word " * 12_000  # 15,000 tokens, which take about a second
Agents = dict[str, "worker_service_pb2_grpc.WorkerServiceAsyncStub"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Client, Agents]]:
    folder: Path = tmp_path_factory.mktemp("push")
    pools = "".join(POOL.format(role=role, name=role) for role in ("prefill", "decode"))
    (folder / "cluster.toml").write_text(f'name = "push"\nengine_profile = "push"\ntime_scale = 1.0\n{pools}')
    options = StackOptions(str(folder / "cluster.toml"), data_dir=folder / "stack")
    async with (
        LocalStack(options, print) as local,
        hexagent.client.connect(local.address) as client,
        grpc.aio.insecure_channel(local.addresses["agent-prefill"]) as prefill,
        grpc.aio.insecure_channel(local.addresses["agent-decode"]) as decode,
    ):
        channels = {"prefill": prefill, "decode": decode}
        yield client, {side: worker_service_pb2_grpc.WorkerServiceStub(channels[side]) for side in channels}


async def phases(agents: Agents, side: str) -> list[enums_pb2.Phase.ValueType]:
    described = await agents[side].DescribeAgent(worker_service_pb2.DescribeAgentRequest())
    return [held.phase for held in described.held]


async def holds(agents: Agents, *wanted: enums_pb2.Phase.ValueType) -> bool:
    return await phases(agents, "decode") == list(wanted)


async def nothing_held(agents: Agents) -> bool:
    return not await phases(agents, "prefill") and not await phases(agents, "decode")


async def test_decode_is_reserved_while_prefill_runs(stack: tuple[Client, Agents]) -> None:
    client, agents = stack
    async with client.workflow("push", max_tokens=20) as wf:
        call = asyncio.ensure_future(wf.call(PROMPT))
        await until(partial(holds, agents, enums_pb2.PHASE_ACCEPTED))
        assert await phases(agents, "prefill") == [enums_pb2.PHASE_ACCEPTED]
        result = await call
        assert (result.prefill_instance, result.decode_instance, result.attempt) == ("prefill-0", "decode-0", 1)
        times = result.times
        assert times.prefill_end_us <= times.transfer_start_us < times.transfer_end_us <= times.decode_start_us
        await wf.call([result, "And on."])
    assert await nothing_held(agents)


async def test_what_was_reserved_is_given_back_where_no_kv_comes(stack: tuple[Client, Agents]) -> None:
    client, agents = stack
    async with client.workflow("push", max_tokens=20) as wf:
        one = {"emulated.output_tokens": "1"}
        assert (await wf.call(PROMPT + "1", engine_options=one)).usage.output_tokens == 1
        await until(partial(nothing_held, agents))
        call = asyncio.ensure_future(wf.call(PROMPT + "2"))
        await until(partial(holds, agents, enums_pb2.PHASE_ACCEPTED))
        await wf.cancel("enough")
        with pytest.raises(Cancelled):
            await call
    await until(partial(nothing_held, agents))
