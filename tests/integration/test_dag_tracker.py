"""The dag-tracker's API as a client in any language sees it, on a real nats-server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hexagent.api.common.v1 import call_pb2, enums_pb2, ids_pb2
from hexagent.api.workflow.v1 import workflow_pb2, workflow_service_pb2, workflow_service_pb2_grpc
from hexagent.client.board import Stub
from hexagent.core.errors import HexagentError, InvalidArgument, NotFound
from hexagent.core.ids import CallId
from hexagent.core.workflow.model import CallOutcome, NodeStatus
from hexagent.runtime import subjects
from hexagent.runtime.grpc_client import open_channel, typed_errors
from hexagent.runtime.nats_server import NatsServer
from hexagent.wire.segments import Segment, SegmentKind, SegmentRole, segment_to_proto
from hexagent.wire.workflow import event_from_bytes, outcome_to_bytes
from tests.integration.test_dag_tracker_stack import Stack, TrackerProcess, running_stack

pytestmark = pytest.mark.integration

api = workflow_service_pb2


@pytest_asyncio.fixture
async def stack(wiped_streams: NatsServer, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(wiped_streams, tmp_path) as stack:
        yield stack


@pytest_asyncio.fixture
async def stub(stack: Stack) -> AsyncIterator[Stub]:
    async with open_channel(stack.tracker.address, api.DESCRIPTOR.services_by_name["WorkflowService"]) as channel:
        yield workflow_service_pb2_grpc.WorkflowServiceStub(channel)


def call_node(
    node_id: str, prompt: str = "hello", after: tuple[str, ...] = (), **options: str
) -> workflow_pb2.NodeSpec:
    body = segment_to_proto(Segment(SegmentRole.USER, SegmentKind.TEXT, prompt.encode()))
    part = call_pb2.PromptSegment(role=body.role, kind=body.kind, body=body)
    request = call_pb2.CallRequest(
        segments=[part],
        sampling=call_pb2.SamplingParams(max_tokens=64),
        engine_options={f"test.{name}": value for name, value in options.items()},
    )
    return workflow_pb2.NodeSpec(
        node_id=node_id, kind=enums_pb2.NODE_KIND_CALL, after=after, call=workflow_pb2.CallNode(request=request)
    )


def tool_node(node_id: str, after: tuple[str, ...] = (), timeout_s: int = 0) -> workflow_pb2.NodeSpec:
    tool = workflow_pb2.ToolNode(name="search")
    if timeout_s:
        tool.timeout.CopyFrom(Duration(seconds=timeout_s))
    return workflow_pb2.NodeSpec(node_id=node_id, kind=enums_pb2.NODE_KIND_TOOL, after=after, tool=tool)


async def started(stub: Stub, *nodes: workflow_pb2.NodeSpec, request_id: str = "r0") -> str:
    request = api.StartWorkflowRequest(request_id=request_id, nodes=nodes)
    return (await stub.StartWorkflow(request)).workflow_id


async def watched(stub: Stub, workflow_id: str, **request: int) -> list[workflow_pb2.WorkflowUpdate]:
    """All updates until the workflow ends."""
    updates: list[workflow_pb2.WorkflowUpdate] = []
    async for response in stub.WatchWorkflow(api.WatchWorkflowRequest(workflow_id=workflow_id, **request)):  # type: ignore[arg-type]
        updates += response.updates
    return updates


async def ended(stub: Stub, workflow_id: str, node_id: str) -> workflow_pb2.CallResult:
    """The result of a call, waited for."""
    call = ids_pb2.CallId(workflow_id=workflow_id, node_id=node_id)
    for _ in range(500):
        answer = await stub.GetCall(api.GetCallRequest(call=call))
        if answer.HasField("result"):
            return answer.result
        await asyncio.sleep(0.01)
    raise AssertionError(f"{node_id} does not end")


async def test_health_says_serving(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.tracker.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_equal_requests_are_done_once(stack: Stack, stub: Stub) -> None:
    spec = workflow_pb2.WorkflowSpec(workflow_class="c", budget=Duration(seconds=500))
    start = api.StartWorkflowRequest(request_id="s1", spec=spec, nodes=[call_node("a")])
    first = await stub.StartWorkflow(start)
    again = await stub.StartWorkflow(start)
    assert (again.workflow_id, again.started_at) == (first.workflow_id, first.started_at)
    workflow_id = first.workflow_id
    reveal = api.RevealNodesRequest(
        request_id="r1", workflow_id=workflow_id, nodes=[call_node("b", after=("a",)), tool_node("t")]
    )
    await stub.RevealNodes(reveal)
    await ended(stub, workflow_id, "b")
    repeated = await stub.RevealNodes(reveal)
    assert [node.status for node in repeated.nodes] == [enums_pb2.NODE_STATUS_SUCCEEDED, enums_pb2.NODE_STATUS_READY]
    late = api.CancelNodeRequest(node=ids_pb2.CallId(workflow_id=workflow_id, node_id="b"))
    assert (await stub.CancelNode(late)).status == enums_pb2.NODE_STATUS_SUCCEEDED
    node = ids_pb2.CallId(workflow_id=workflow_id, node_id="t")
    for _ in range(2):
        await stub.StartTool(api.StartToolRequest(request_id="t1", node=node))
    for _ in range(2):
        await stub.FinishTool(api.FinishToolRequest(request_id="t2", node=node, status=enums_pb2.NODE_STATUS_SUCCEEDED))
    for _ in range(2):
        await stub.SetDeadline(
            api.SetDeadlineRequest(request_id="d1", workflow_id=workflow_id, budget=Duration(seconds=900))
        )
    finish = api.FinishWorkflowRequest(
        request_id="f1", workflow_id=workflow_id, status=enums_pb2.WORKFLOW_STATUS_COMPLETED
    )
    assert await stub.FinishWorkflow(finish) == await stub.FinishWorkflow(finish)
    assert sorted(call.node_id for call in stack.double.started) == ["a", "b"]
    async with await stack.bus.follow(subjects.WORKFLOW, subjects.workflow(workflow_id)) as feed:
        envelopes = [event_from_bytes(m.data) async for batch in feed.backlog() for m in batch]
    assert [envelope.sequence for envelope in envelopes] == list(range(1, len(envelopes) + 1))
    assert len({envelope.event_id for envelope in envelopes}) == len(envelopes) == 9


async def test_a_watch_resumes_behind_any_update(stub: Stub) -> None:
    workflow_id = await started(stub, call_node("a"), call_node("b", after=("a",)), tool_node("t", after=("b",)))
    await ended(stub, workflow_id, "b")
    tool = ids_pb2.CallId(workflow_id=workflow_id, node_id="t")
    answer = await stub.FinishTool(api.FinishToolRequest(node=tool, status=enums_pb2.NODE_STATUS_CANCELLED))
    assert answer.status == enums_pb2.NODE_STATUS_CANCELLED
    await stub.CancelWorkflow(api.CancelWorkflowRequest(workflow_id=workflow_id, reason="enough"))
    updates = await watched(stub, workflow_id)
    assert [update.node.node_id for update in updates[:-1]] == ["a", "b", "t"]
    assert updates[-1].ended.status == enums_pb2.WORKFLOW_STATUS_CANCELLED
    sequences = [update.sequence for update in updates]
    assert sequences == sorted(sequences)
    for i, update in enumerate(updates[:-1]):
        assert await watched(stub, workflow_id, after_sequence=update.sequence) == updates[i + 1 :]


async def test_tokens_resume_by_offset(stack: Stack, stub: Stub) -> None:
    node = call_node("a", text="0 1 2 3 4 5 6 7 8 9")
    node.call.request.stream = True
    workflow_id = await started(stub, node)
    await ended(stub, workflow_id, "a")
    await stub.CancelWorkflow(api.CancelWorkflowRequest(workflow_id=workflow_id))
    request = api.WatchWorkflowRequest(workflow_id=workflow_id)
    request.offsets.add(call=ids_pb2.CallId(workflow_id=workflow_id, node_id="a"), offset=6)
    text = b""
    async for response in stub.WatchWorkflow(request):
        text += b"".join(update.tokens.text for update in response.updates if update.HasField("tokens"))
    assert text == b"6 7 8 9"


async def test_tools_time_out_and_the_first_outcome_counts(stack: Stack, stub: Stub) -> None:
    workflow_id = await started(stub, tool_node("t", timeout_s=1), call_node("a"))
    result = await ended(stub, workflow_id, "a")
    assert (result.prompt_tokens, result.attempt) == (100, 1)
    late = CallOutcome(CallId(workflow_id, "a"), 2, NodeStatus.FAILED, reason="LATE")
    data = outcome_to_bytes(late, publisher="test", sequence=1)
    await stack.bus.publish(subjects.outcome(workflow_id), data, msg_id="late")
    await stack.bus.publish(subjects.outcome("nobody"), data.replace(workflow_id.encode(), b"x" * len(workflow_id)))
    await stack.bus.publish(subjects.outcome("nobody"), b"\xff\xff no outcome")
    node = ids_pb2.CallId(workflow_id=workflow_id, node_id="t")
    await stub.StartTool(api.StartToolRequest(node=node))
    rows = (await stub.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))).nodes
    for _ in range(300):
        if rows[0].status == enums_pb2.NODE_STATUS_FAILED:
            break
        await asyncio.sleep(0.02)
        rows = (await stub.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))).nodes
    assert rows[0].reason == "TOOL_TIMEOUT"
    assert rows[1].status == enums_pb2.NODE_STATUS_SUCCEEDED


async def test_describe_names_path_and_bottleneck(stub: Stub) -> None:
    workflow_id = await started(
        stub, call_node("short"), call_node("long", hold="1"), call_node("end", after=("long", "short"))
    )
    await ended(stub, workflow_id, "short")
    answer = await stub.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))
    assert list(answer.critical_path) == ["long", "end"]
    assert answer.bottleneck in ("long", "end")
    assert answer.bottleneck_reason
    rows = {row.node_id: row for row in answer.nodes}
    assert rows["long"].critical
    assert rows["long"].HasField("waiting")
    assert rows["short"].result.decode_instance == "demo-d0"
    assert rows["end"].horizon == answer.workflow.horizon


async def test_lists_come_in_pages(stub: Stub) -> None:
    ids = [await started(stub, request_id=f"r{i}") for i in range(5)]
    request = api.ListWorkflowsRequest(page_size=2, statuses=[enums_pb2.WORKFLOW_STATUS_RUNNING])
    seen: list[str] = []
    while True:
        page = await stub.ListWorkflows(request)
        seen += [row.workflow_id for row in page.workflows]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == ids[::-1]
    with pytest.raises(InvalidArgument, match="page_token"), typed_errors():
        await stub.ListWorkflows(api.ListWorkflowsRequest(tenant="other", page_token=request.page_token))


async def test_the_state_survives_a_kill(stack: Stack, stub: Stub) -> None:
    nodes = [call_node("a"), call_node("b", after=("a",), hold="1"), tool_node("t", after=("a",))]
    workflow_id = await started(stub, *nodes)
    await ended(stub, workflow_id, "a")
    await stub.StartTool(
        api.StartToolRequest(request_id="t1", node=ids_pb2.CallId(workflow_id=workflow_id, node_id="t"))
    )
    before = await stub.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))
    usage = await stub.GetUsage(api.GetUsageRequest(tenant="default"))
    await stack.tracker.kill()
    await stack.tracker.start()
    after = await stub.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))
    statuses = [(row.node_id, row.status) for row in after.nodes]
    # A dispatch is no event: the call is shown as ready until its next sign of life.
    expected = [(row.node_id, row.status) for row in before.nodes]
    expected[1] = ("b", enums_pb2.NODE_STATUS_READY)
    assert statuses == expected
    assert await stub.GetUsage(api.GetUsageRequest(tenant="default")) == usage
    assert await started(stub, *nodes) == workflow_id


async def test_bodies_go_once_no_open_workflow_names_them(wiped_streams: NatsServer, tmp_path: Path) -> None:
    service = api.DESCRIPTOR.services_by_name["WorkflowService"]
    shared, own = (
        Segment(SegmentRole.USER, SegmentKind.TEXT, text.encode()).digest for text in ("everybody's", "its own")
    )
    async with (
        running_stack(wiped_streams, tmp_path, segment_grace_s=1.0) as stack,
        open_channel(stack.tracker.address, service) as channel,
    ):
        stub: Stub = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
        nodes = [call_node("a", "everybody's"), call_node("b", "its own", text="long", apart="1")]
        first = await started(stub, *nodes, request_id="r1")
        second = await started(stub, nodes[0], request_id="r2")
        await ended(stub, first, "a")
        output = (await ended(stub, first, "b")).output.digest
        await stub.CancelWorkflow(api.CancelWorkflowRequest(workflow_id=first))
        assert all(await stack.bus.get_bodies([shared, own, output]))
        await stack.tracker.kill()  # its successor knows what to delete, and when
        await stack.tracker.start()
        await deleted(stack, own, output)
        assert all(await stack.bus.get_bodies([shared]))
        # Who reads late is told, unless the output was small enough for its event.
        call = ids_pb2.CallId(workflow_id=first, node_id="a")
        assert (await stub.GetCall(api.GetCallRequest(call=call))).output.text == b"output of a"
        call.node_id = "b"
        with pytest.raises(NotFound) as late, typed_errors():
            await stub.GetCall(api.GetCallRequest(call=call))
        assert late.value.reason == "OUTPUT_EXPIRED"
        # What comes again is stored again, and not deleted again by the next start.
        third = await started(stub, nodes[1], request_id="r3")
        await ended(stub, third, "b")
        await stub.CancelWorkflow(api.CancelWorkflowRequest(workflow_id=second))
        await stack.tracker.kill()
        await stack.tracker.start()
        await deleted(stack, shared)
        assert all(await stack.bus.get_bodies([own, output]))


async def deleted(stack: Stack, *digests: str) -> None:
    async with asyncio.timeout(10):
        while any(await stack.bus.get_bodies(digests)):  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)


async def test_a_second_writer_ends_both_rather_than_diverge(
    stack: Stack, stub: Stub, wiped_streams: NatsServer, tmp_path: Path
) -> None:
    workflow_id = await started(stub)
    folder = tmp_path / "second"
    folder.mkdir()
    second = TrackerProcess(wiped_streams.url, folder)
    await second.start()
    await stub.RevealNodes(api.RevealNodesRequest(workflow_id=workflow_id, nodes=[call_node("a", hold="1")]))
    service = api.DESCRIPTOR.services_by_name["WorkflowService"]
    async with open_channel(second.address, service, no_retry=["PauseWorkflow"]) as channel:
        other: Stub = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
        with pytest.raises(HexagentError), typed_errors():
            await other.PauseWorkflow(api.PauseWorkflowRequest(workflow_id=workflow_id))
    assert await second.wait() == 1
    answer = await stub.DescribeWorkflow(api.DescribeWorkflowRequest(workflow_id=workflow_id))
    assert answer.workflow.status == enums_pb2.WORKFLOW_STATUS_RUNNING


async def test_a_stop_is_orderly(stack: Stack, stub: Stub) -> None:
    workflow_id = await started(stub, call_node("a", hold="1"))
    watch = asyncio.create_task(watched(stub, workflow_id))
    await asyncio.sleep(0.2)
    status, ending = await asyncio.gather(stack.tracker.stop(), watch, return_exceptions=True)
    assert status == 0
    assert isinstance(ending, grpc.aio.AioRpcError)
    assert ending.code() is grpc.StatusCode.UNAVAILABLE
