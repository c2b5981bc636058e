"""Every refusal of every RPC, on one local stack of real processes; what is refused changes nothing.

The tables are in `refusal_cases*.py`. `docs/errors.md` says the same for people.
"""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import hexagent.client
from hexagent.api.common.v1 import enums_pb2
from hexagent.api.estimator.v1 import estimator_service_pb2
from hexagent.api.scheduler.v1 import scheduler_service_pb2 as scheduler
from hexagent.api.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from hexagent.api.workflow.v1 import workflow_service_pb2 as api
from hexagent.api.workflow.v1 import workflow_service_pb2_grpc
from hexagent.cli.children import wait_healthy
from hexagent.cli.stack import ESTIMATOR, SCHEDULER, TRACKER, LocalStack, StackOptions
from hexagent.client.board import Stub
from hexagent.core.errors import HexagentError
from hexagent.runtime.grpc_client import typed_errors
from hexagent.runtime.streams import MESSAGE_BYTES_MAX
from hexagent.wire.status import from_rpc_error
from tests.integration import refusal_cases as rows
from tests.integration import refusal_cases_cluster as cluster
from tests.integration import refusal_cases_reveal as reveals
from tests.integration.refusal_cases import CANCELLED, FINISHED, OPEN, Case, call, node_of, tool

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

AGENT: Final = "agent-decode"
WATCHERS_MAX: Final = 8  # fewer than the streams that are abandoned
ABANDONED: Final = 50
ROW: Final = r"^\| (\w+) \| (.+) \| (\w+) \| (\w+) \|$"  # of docs/errors.md: RPC, cause, status, reason
PATIENCE_S: Final = 30.0
MOVING: Final = {"age", "below", "horizon", "remaining", "solo", "waiting"}  # change with time and learning
UNLIMITED: Final = (("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0))

SERVICES: Final = {
    TRACKER: api.DESCRIPTOR.services_by_name["WorkflowService"],
    SCHEDULER: scheduler.DESCRIPTOR.services_by_name["SchedulerService"],
    ESTIMATOR: estimator_service_pb2.DESCRIPTOR.services_by_name["EstimatorService"],
    AGENT: worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
}
METHODS: Final = {m.full_name: (where, m) for where, service in SERVICES.items() for m in service.methods}

CASES: Final[list[Case]] = [
    *rows.start_cases(),
    *rows.verb_cases(),
    *rows.verb_specific_cases(),
    *rows.read_cases(),
    *reveals.graph_cases(),
    *reveals.prompt_cases(),
    *reveals.request_cases(),
    *cluster.scheduler_cases(),
    *cluster.estimator_cases(),
    *cluster.worker_cases(),
]


# --- the stack --------------------------------------------------------------------------------------------
class Target(NamedTuple):
    """A stack with the workflows that the cases speak of, and a channel to each service."""

    stack: LocalStack
    channels: dict[str, grpc.aio.Channel]  # without a limit of what is sent, so that the server's own is met

    @property
    def tracker(self) -> Stub:
        return workflow_service_pb2_grpc.WorkflowServiceStub(self.channels[TRACKER])

    async def send(self, rpc: str, request: Message | bytes) -> Message:
        """The first answer to a request, whatever the RPC's shape."""
        where, method = METHODS[rpc]
        return await first_answer(self.channels[where], method, path_of(method), request)


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def first_answer(
    channel: grpc.aio.Channel, method: MethodDescriptor, path: str, request: Message | bytes
) -> Message:
    def to_bytes(message: Message | bytes) -> bytes:
        return message if isinstance(message, bytes) else message.SerializeToString()

    from_bytes: Any = GetMessageClass(method.output_type).FromString
    if method.client_streaming:
        both = channel.stream_stream(path, request_serializer=to_bytes, response_deserializer=from_bytes)
        stream: Any = both(iter([request]), timeout=PATIENCE_S)
    elif method.server_streaming:
        one = channel.unary_stream(path, request_serializer=to_bytes, response_deserializer=from_bytes)
        stream = one(request, timeout=PATIENCE_S)
    else:
        unary = channel.unary_unary(path, request_serializer=to_bytes, response_deserializer=from_bytes)
        answer: Message = await unary(request, timeout=PATIENCE_S)
        return answer
    try:
        return await anext(aiter(stream))
    except StopAsyncIteration:
        raise AssertionError(f"{path} ends without an answer or a refusal") from None
    finally:
        stream.cancel()


@pytest.fixture(scope="module")
def settings() -> Iterator[None]:
    """Bounds low enough to be met; the services inherit them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEXAGENT_WATCHERS_MAX", str(WATCHERS_MAX))
        patch.setenv("HEXAGENT_LIVE_WORKFLOWS_MAX", str(rows.LIVE_WORKFLOWS_MAX))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(settings: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    folder = tmp_path_factory.mktemp("refusals")
    demo = files("hexagent.runtime") / "clusters" / "demo.toml"
    (folder / "cluster.toml").write_text(demo.read_text(encoding="utf-8") + rows.TENANTS, encoding="utf-8")
    options = StackOptions(str(folder / "cluster.toml"), data_dir=folder / "data")
    async with LocalStack(options, print) as stack:
        await restart_scheduler(stack)
        channels = {where: grpc.aio.insecure_channel(stack.addresses[where], options=UNLIMITED) for where in SERVICES}
        target = Target(stack, channels)
        await set_up(target.tracker)
        await attached(target)
        yield target
        await asyncio.gather(*(channel.close() for channel in channels.values()))


async def restart_scheduler(stack: LocalStack) -> None:
    """The next scheduler has another epoch, so that the first one is an old one to the agents."""
    os.kill(stack.pids[SCHEDULER], signal.SIGKILL)
    await asyncio.sleep(0.2)
    async with asyncio.timeout(PATIENCE_S):
        await wait_healthy(stack.addresses[SCHEDULER])


async def set_up(tracker: Stub) -> None:
    """The workflows of the cases, each where it stays."""
    blocked = [rows.RUNNING_TOOL]
    nodes = [
        call(rows.ENDED_CALL),
        tool(rows.READY_TOOL),
        tool(rows.RUNNING_TOOL),
        tool(rows.ENDED_TOOL),
        tool(rows.BLOCKED_TOOL, after=blocked),
        call(rows.BLOCKED_CALL, node={"after": blocked}),
    ]
    await tracker.StartWorkflow(rows.start(rows.STARTED, workflow_id=OPEN))
    await tracker.RevealNodes(rows.reveal(*nodes))
    await tracker.RevealNodes(rows.reveal(tool("loop-0", template=rows.LOOP), request_id=rows.USED))
    await tracker.StartTool(api.StartToolRequest(node=node_of(OPEN, rows.RUNNING_TOOL)))
    await tracker.FinishTool(api.FinishToolRequest(node=node_of(OPEN, rows.ENDED_TOOL), status=rows.DONE))
    await tracker.StartWorkflow(rows.start(workflow_id=FINISHED, nodes=(tool(rows.READY_TOOL),)))
    finish = api.FinishWorkflowRequest(request_id=rows.FINISHED_BY, workflow_id=FINISHED, status=rows.COMPLETED)
    await tracker.FinishWorkflow(finish)
    await tracker.StartWorkflow(rows.start(workflow_id=CANCELLED, nodes=(tool(rows.READY_TOOL),)))
    await tracker.CancelWorkflow(api.CancelWorkflowRequest(request_id=rows.CANCELLED_BY, workflow_id=CANCELLED))
    ended = api.GetCallRequest(call=node_of(OPEN, rows.ENDED_CALL))
    async with asyncio.timeout(PATIENCE_S):
        while (await tracker.GetCall(ended)).status != rows.DONE:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)


async def attached(target: Target) -> None:
    """Return once every instance is up for the scheduler, as it stays from then on."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await target.send(f"{cluster.SCHEDULER}.GetCluster", scheduler.GetClusterRequest())
            assert isinstance(answer, scheduler.GetClusterResponse)
            if answer.epoch > cluster.OLD_EPOCH and all(i.up for i in answer.instances):
                return
            await asyncio.sleep(0.05)


# --- what must stay as it is ------------------------------------------------------------------------------
async def state(target: Target) -> dict[str, Any]:
    """What refusals could change, without what time and learning change."""
    seen: dict[str, Any] = {}
    for workflow_id in (OPEN, FINISHED, CANCELLED):
        answer = await target.tracker.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))
        parts: list[Message] = [answer, answer.workflow, *answer.nodes]
        for part in parts:
            for field in MOVING & set(part.DESCRIPTOR.fields_by_name):
                part.ClearField(field)
        seen[workflow_id] = str(answer)
    running = api.ListWorkflowsRequest(statuses=[enums_pb2.WORKFLOW_STATUS_RUNNING])
    seen["running"] = [row.workflow_id for row in (await target.tracker.ListWorkflows(running)).workflows]
    shown = await target.send(f"{cluster.SCHEDULER}.GetCluster", scheduler.GetClusterRequest())
    assert isinstance(shown, scheduler.GetClusterResponse)
    seen["epoch"] = shown.epoch
    seen["instances"] = [(i.instance.instance_id, i.up, i.cordoned) for i in shown.instances]
    agent = await target.send(f"{cluster.WORKER}.DescribeAgent", worker_service_pb2.DescribeAgentRequest())
    assert isinstance(agent, worker_service_pb2.DescribeAgentResponse)
    seen["agent"] = (agent.agent.epoch_seen, [str(held) for held in agent.held])
    return seen


async def refusal(target: Target, rpc: str, request: Message | bytes) -> tuple[grpc.StatusCode, HexagentError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await target.send(rpc, request)
    return caught.value.code(), from_rpc_error(caught.value)


# --- tests ------------------------------------------------------------------------------------------------
async def test_every_rpc_is_in_the_table_and_every_row_on_the_page() -> None:
    named = {case.rpc for case in CASES}
    assert named | set(cluster.CANNOT_REFUSE) == set(METHODS)
    assert not named & set(cluster.CANNOT_REFUSE)
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    told = {(method, status, reason) for method, _, status, reason in re.findall(ROW, page, re.MULTILINE)}
    refusals = {(case.rpc.rpartition(".")[2], case.code.name, case.reason) for case in CASES}
    assert refusals <= told, "docs/errors.md leaves these out"
    twice = [key for key, count in Counter((case.rpc, case.cause) for case in CASES).items() if count > 1]
    assert not twice


async def test_every_refusal_names_its_cause_and_changes_nothing(target: Target) -> None:
    wrong: list[str] = []
    before = await state(target)
    for case in CASES:
        for rpc, request in case.before:
            await target.send(rpc, request)
        try:
            code, error = await refusal(target, case.rpc, case.request)
        except pytest.fail.Exception:
            wrong.append(f"{case.rpc} ({case.cause}): not refused")
        else:
            got, expected = (code, error.reason, error.field), (case.code, case.reason, case.field)
            if got != expected:
                wrong.append(f"{case.rpc} ({case.cause}): {got} instead of {expected}: {error.message[:200]}")
            elif not error.message:
                wrong.append(f"{case.rpc} ({case.cause}): says nothing")
        for rpc, request in case.after:
            await target.send(rpc, request)
        after = await state(target)
        wrong += [f"{case.rpc} ({case.cause}) changes {key}" for key in before if before[key] != after[key]]
        before = after
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rpc", cluster.stream_answers())
async def test_a_wrong_request_between_agents_is_answered_on_a_stream_that_goes_on(target: Target, rpc: str) -> None:
    where, method = METHODS[rpc]
    wrong = cluster.stream_answers()[rpc]
    open_stream = getattr(worker_service_pb2_grpc.WorkerServiceStub(target.channels[where]), method.name)
    for number, (request, _) in enumerate(wrong, 1):
        request.number = number
    before = await state(target)
    answers = [answer async for answer in open_stream(iter([request for request, _ in wrong]), timeout=PATIENCE_S)]
    answers.sort(key=lambda answer: answer.number)
    assert [(answer.number, answer.reason) for answer in answers] == [
        (number, reason) for number, (_, reason) in enumerate(wrong, 1)
    ]
    assert await state(target) == before


@pytest.mark.parametrize("rpc", METHODS)
async def test_bytes_that_are_no_message_are_refused(target: Target, rpc: str) -> None:
    code, error = await refusal(target, rpc, b"\xff\xff\xff")
    assert (code, error.reason, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE", "request")


@pytest.mark.parametrize("where", SERVICES)
async def test_messages_above_the_limit_and_unknown_methods_are_refused(target: Target, where: str) -> None:
    method = next(m for m in SERVICES[where].methods if not m.client_streaming)
    code, error = await refusal(target, method.full_name, bytes(MESSAGE_BYTES_MAX + 1))
    assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    for path in (f"/{SERVICES[where].full_name}/Nothing", f"/hexagent.api.none.v1.Nobody/{method.name}"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first_answer(target.channels[where], method, path, b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_abandoned_by_their_client_leave_no_watcher(target: Target) -> None:
    watch = rows.watch()

    async def opened() -> Any:
        """A stream that has begun; one that its client has left makes room a moment later."""
        while True:
            stream = target.tracker.WatchWorkflow(watch)
            try:
                with typed_errors():
                    assert (await anext(aiter(stream))).updates
            except HexagentError as error:
                if error.reason != "TOO_MANY_WATCHERS":
                    raise
                await asyncio.sleep(0.02)
            else:
                return stream

    async with asyncio.timeout(PATIENCE_S):
        for _ in range(ABANDONED):
            (await opened()).cancel()
        # As many as may be open at all, at once: none of those before is left.
        streams = [await opened() for _ in range(WATCHERS_MAX)]
    code, error = await refusal(target, f"{rows.SERVICE}.WatchWorkflow", watch)
    assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
    for stream in streams:
        stream.cancel()
    async with asyncio.timeout(PATIENCE_S):
        (await opened()).cancel()


async def test_a_workflow_completes_after_all_that(target: Target, tmp_path: Path) -> None:
    before = await state(target)
    async with asyncio.timeout(PATIENCE_S), hexagent.client.connect(target.stack.address) as client:
        async with client.workflow("after") as wf:
            plan = await wf.call("Plan.", max_tokens=8)
            async with wf.tool("search", after=[plan]):
                pass
            final = await wf.call([plan, "Answer."], max_tokens=8)
        assert final.text
    assert await state(target) == before
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(wait_healthy(target.stack.addresses[where]) for where in SERVICES))
