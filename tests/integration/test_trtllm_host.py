"""Workflows on a live stack whose engines are TensorRT-LLM in host processes, faked, under real agents."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

import hexagent.client
from hexagent.api.common.v1 import enums_pb2
from hexagent.api.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hexagent.api.worker.v1 import attempt_pb2, worker_service_pb2, worker_service_pb2_grpc
from hexagent.cli.stack import SCHEDULER, LocalStack, StackOptions
from hexagent.client import CallResult, Client, FinishReason, Segment
from hexagent.client.drain import drain_instance, uncordon_instance
from hexagent.core.errors import Cancelled
from tests.integration.test_faults import until
from tests.models import write_byte_model

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

FAKES = Path(__file__).parents[1] / "fakes"
AGENTS = ("agent-prefill", "agent-decode")
CLUSTER = """
name = "host-test"
agents = "role"
[[model]]
name = "llama-3.1-8b"
directory = "{model}"
[[pool]]
role = "prefill"
gpu = "h100"
model = "llama-3.1-8b"
[[pool]]
role = "decode"
gpu = "h100"
count = 3
model = "llama-3.1-8b"
"""
ENGINE = """
[{instance_id}]
kind = "trtllm"
python = "{python}"
environ = {{ PYTHONPATH = "{fakes}", INSTANCE = "{instance_id}", CUDA_VISIBLE_DEVICES = "{gpu}" }}
transfer_timeout_s = 3
"""
DECODE = ("d-h100-0", "d-h100-1")
BROKEN = "d-h100-2"  # its engine does not load until somebody puts that right


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "cluster.toml").write_text(CLUSTER.format(model=write_byte_model(folder / "model")))
    write_program(folder / "python", "exit 1")
    pythons = {"p-h100-0": sys.executable, **dict.fromkeys(DECODE, sys.executable), BROKEN: folder / "python"}
    engines = [
        ENGINE.format(instance_id=name, python=python, fakes=FAKES, gpu=gpu)
        for gpu, (name, python) in enumerate(pythons.items())
    ]
    (folder / "engines.toml").write_text("".join(engines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEXAGENT_ENGINES_FILE", str(folder / "engines.toml"))
        patch.setenv("HEXAGENT_QUARANTINE_FAILURES", "2")
        patch.setenv("PYTHONPATH", str(FAKES / "nvml"))
        patch.setenv("FAKE_GPUS", ",".join(["NVIDIA H100 80GB HBM3=80"] * 4))
        async with LocalStack(StackOptions(str(folder / "cluster.toml"), data_dir=folder / "stack"), print) as stack:
            yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[Client]:
    async with hexagent.client.connect(stack.address) as client:
        yield client


def host_of(instance_id: str) -> int:
    """Process id of an instance's engine host; 0 where there is none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environ, state = (entry / "environ").read_text(), (entry / "stat").read_text().rpartition(")")[2]
            except OSError:
                continue
            if f"INSTANCE={instance_id}\0" in environ and not state.startswith(" Z"):
                return int(entry.name)
    return 0


async def held(stack: LocalStack, agent: str) -> list[attempt_pb2.HeldTicket]:
    async with grpc.aio.insecure_channel(stack.addresses[agent]) as channel:
        stub: worker_service_pb2_grpc.WorkerServiceAsyncStub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        return list((await stub.DescribeAgent(worker_service_pb2.DescribeAgentRequest())).held)


def write_program(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


async def views(stack: LocalStack) -> list[scheduler_service_pb2.InstanceView]:
    """The instances as the scheduler sees them."""
    async with grpc.aio.insecure_channel(stack.addresses[SCHEDULER]) as channel:
        stub: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub
        stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        return list((await stub.GetCluster(scheduler_service_pb2.GetClusterRequest())).instances)


async def view_of(stack: LocalStack, instance_id: str) -> scheduler_service_pb2.InstanceView:
    return next(view for view in await views(stack) if view.instance.instance_id == instance_id)


async def nothing_held(stack: LocalStack) -> bool:
    """By the agents, and by the scheduler's ledger."""
    ledgers = [view.ledger for view in await views(stack)]
    counts = [n for ledger in ledgers for n in (ledger.prefill_calls, ledger.decode_calls, ledger.reserved_tokens)]
    return not any(counts) and not any([await held(stack, agent) for agent in AGENTS])


async def test_a_workflow_fans_out_streams_and_joins(stack: LocalStack, client: Client) -> None:
    async with client.workflow("host", max_tokens=400) as workflow:
        plan = await workflow.call("plan [[say:the plan]]")
        parts = await asyncio.gather(*(workflow.call([plan, f"do [[say:part {i}]]"]) for i in range(4)))
        assert [part.text for part in parts] == [f"part {i}" for i in range(4)]
        stream = workflow.stream([*parts, Segment("join [[say:" + "all of it " * 20 + "]]")])
        pieces = [piece async for piece in stream]
        joined: CallResult = await stream.result()
    assert (joined.text, joined.finish_reason) == ("all of it " * 20, FinishReason.STOP)
    assert len(pieces) > 2
    assert "".join(pieces) == joined.text
    assert joined.usage.prompt_tokens > 60
    assert joined.usage.output_tokens == len(joined.text)
    assert (joined.prefill_instance, joined.decode_instance in DECODE) == ("p-h100-0", True)
    assert joined.kv_bytes == joined.usage.prompt_tokens * 131_072
    times = joined.times
    assert times.prefill_end_us <= times.transfer_start_us < times.transfer_end_us <= times.decode_start_us
    await until(partial(nothing_held, stack))


async def test_each_engine_is_seen_with_its_gpu(stack: LocalStack) -> None:
    async def seen() -> bool:
        hot = [[device.temperature_celsius for device in view.reported.devices] for view in await views(stack)]
        return hot == [
            [41.0],
            [42.0],
            [43.0],
            [40.0],
        ]  # of the decode instances, whose ids come first, and the prefill one

    await until(seen)


async def test_the_links_of_a_prefill_engine_are_warm_before_calls_use_them(stack: LocalStack) -> None:
    async def warm() -> bool:
        links = (await view_of(stack, "p-h100-0")).reported.links
        return (links.warm, links.cold, len(links.failed)) == (len(DECODE), 0, 0)

    await until(warm)
    assert not (await view_of(stack, DECODE[0])).reported.HasField("links")


async def test_a_scheduler_can_read_what_a_change_of_role_costs(stack: LocalStack) -> None:
    prefill, decode = [(await view_of(stack, name)).instance.flip for name in ("p-h100-0", DECODE[0])]
    assert (prefill.way, prefill.cost_us) == (enums_pb2.FLIP_WAY_OVERLAP_OFF, 0)
    assert decode.way == enums_pb2.FLIP_WAY_RESTART
    assert 10_000 < decode.cost_us < 60_000_000


async def test_an_engine_that_does_not_load_is_down_until_an_operator_opens_it(stack: LocalStack) -> None:
    async def quarantined() -> bool:
        return "quarantined after 2 failures" in (await view_of(stack, BROKEN)).down_reason

    await until(quarantined)
    view = await view_of(stack, BROKEN)
    assert not view.up
    assert "the engine host ended with status 1" in view.down_reason

    async def told() -> bool:
        incidents = (await view_of(stack, BROKEN)).reported.incidents
        return (incidents.restarts, incidents.quarantines) == (1, 1)

    await until(told)
    write_program(stack.data_dir.parent / "python", f'exec {sys.executable} "$@"')
    await uncordon_instance(BROKEN, stack.addresses[SCHEDULER])

    async def up() -> bool:
        return (await view_of(stack, BROKEN)).up

    await until(up)
    assert (await view_of(stack, BROKEN)).down_reason == ""
    async for _ in drain_instance(BROKEN, stack.addresses[SCHEDULER]):  # the other tests know of two
        pass


async def test_calls_of_an_engine_that_is_killed_run_again(stack: LocalStack, client: Client) -> None:
    text = "word " * 400
    decoding: list[str] = []

    async def begun() -> bool:
        phase = enums_pb2.PHASE_DECODING
        decoding.extend(h.instance_id for h in await held(stack, "agent-decode") if h.phase == phase)
        return bool(decoding)

    async with client.workflow("host", max_tokens=4000) as workflow:
        calls = [asyncio.ensure_future(workflow.call(f"{i} [[say:{text}]]")) for i in range(6)]
        await until(begun)
        killed = host_of(decoding[0])
        os.kill(killed, signal.SIGKILL)
        results = await asyncio.gather(*calls)
    assert [result.text for result in results] == [text] * 6
    assert max(result.attempt for result in results) > 1

    async def back() -> bool:
        return host_of(decoding[0]) not in (0, killed)

    await until(back)
    await until(partial(nothing_held, stack))


async def test_a_cancelled_workflow_leaves_nothing_behind(stack: LocalStack, client: Client) -> None:
    async with client.workflow("host", max_tokens=4000) as workflow:
        call = asyncio.ensure_future(workflow.call("[[say:" + "on " * 1200 + "]]"))
        await asyncio.sleep(0.3)
        await workflow.cancel("enough")
        with pytest.raises(Cancelled):
            await call
    await until(partial(nothing_held, stack))
