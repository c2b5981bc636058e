"""The SDK against a real dag-tracker: workflows as users write them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hexagent.client import (
    CallFailed,
    CallStream,
    Client,
    Join,
    JoinKind,
    NodeStatus,
    Segment,
    Workflow,
    WorkflowStatus,
)
from hexagent.core.errors import (
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from hexagent.core.ids import CallId
from hexagent.runtime.nats_server import NatsServer
from tests.integration.test_dag_tracker_stack import MODEL, Stack, refused, running_stack

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def stack(wiped_streams: NatsServer, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(wiped_streams, tmp_path) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Client:
    return stack.client


def options(**values: object) -> dict[str, str]:
    return {f"test.{name}": str(value) for name, value in values.items()}


async def test_workflow_with_fan_out_join_tool_and_loop(stack: Stack) -> None:
    async with stack.client.workflow("research", slo_scale=3, hints=(12.5, 9), metadata={"by": "test"}) as wf:
        plan = await wf.call("Plan the work", role="plan", max_tokens=64)
        assert plan.text == "output of plan-1"
        assert plan.usage.output_tokens == 3
        assert plan.instances == ("demo-p0", "demo-d0")
        async with wf.tool("search", after=[plan], timeout=600) as tool:
            assert tool.status is NodeStatus.RUNNING
        parts = await asyncio.gather(*(wf.call([plan, f"Do part {i}"], role="worker", after=[tool]) for i in range(4)))
        assert [part.node_id for part in parts] == [f"worker-{i}" for i in range(1, 5)]
        draft = await wf.call(["Merge:", *parts], role="draft")
        for _ in range(3):
            draft = await wf.call([draft, "Better!"], role="refine", template="refine")
        described = await wf.describe()
        assert [node.node_id for node in described.nodes][-1] == "refine-3"
        assert described.critical_path[-1] == "refine-3"
        assert described.workflow.calls == 9 == described.workflow.calls_ended
        assert described.workflow.metadata == {"by": "test"}
    assert wf.outcome is not None
    assert wf.outcome.status is WorkflowStatus.COMPLETED
    assert wf.outcome.horizon_s > 0
    assert wf.outcome.stretch == wf.outcome.completion_s / wf.outcome.horizon_s
    assert len(stack.double.started) == 9
    usage = await stack.client.usage(workflow_id=wf.workflow_id)
    assert (usage[0].calls, usage[0].prompt_tokens, usage[0].cached_tokens) == (9, 900, 90)
    rows = await stack.client.list_workflows(tenant="default", statuses=[WorkflowStatus.COMPLETED])
    assert [row.workflow_id for row in rows] == [wf.workflow_id]


async def test_calls_of_one_turn_travel_together_and_one_bad_one_harms_no_other(stack: Stack) -> None:
    async with stack.client.workflow() as wf:
        results = await asyncio.gather(
            wf.call("one"), wf.call("two", max_tokens=-1), wf.call("three"), return_exceptions=True
        )
    assert not isinstance(results[0], BaseException)
    assert isinstance(results[1], InvalidArgument)
    assert results[1].field.endswith("max_tokens")
    assert not isinstance(results[2], BaseException)


async def test_static_graph_in_one_request(stack: Stack) -> None:
    async with stack.client.workflow() as wf:
        plan = wf.node("plan", role="plan")
        workers = [wf.node([plan, f"part {i}"], role="worker") for i in range(3)]
        tool = wf.tool("merge", after=workers)
        final = wf.node("sum up", role="final", after=[tool], join=Join(JoinKind.ALL))
        await wf.reveal([final, tool, *workers, plan])
        assert plan.status is not None
        async with tool:
            assert all(worker.status is NodeStatus.SUCCEEDED for worker in workers)
        result = await final
        assert result.text == "output of final-1"
        assert [(await worker).node_id for worker in workers] == ["worker-1", "worker-2", "worker-3"]
    assert stack.double.prompts[CallId(wf.workflow_id, "worker-1")][0] == "of:plan-1"


async def test_joins(client: Client) -> None:
    async with client.workflow() as wf:
        slow = wf.node("slow", engine_options=options(hold=1))
        quick = wf.node("quick")
        either = wf.node("either", after=[slow, quick], join="any")
        await wf.reveal([slow, quick, either])
        assert (await either).text == "output of call-3"
        with refused(Cancelled, "JOIN_MET"):
            await slow


async def test_streaming(stack: Stack) -> None:
    text = "a stream of wörds that is long enough"
    async with stack.client.workflow() as wf:
        whole = await wf.call("first", engine_options=options(text=text))
        stream = wf.stream([whole, "go on"], engine_options=options(text=text, delay_s=0.02, drop=3))
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == text
        assert len(pieces) > 3
        assert (await stream.result()).text == text
        both = await asyncio.gather(*(_read(wf.stream(f"{i}", engine_options=options(text=text))) for i in range(3)))
        assert both == [text] * 3
        failing = wf.stream("bad", engine_options=options(text="some words", fail="ENGINE_BROKE"))
        with refused(CallFailed, "ENGINE_BROKE"):
            await _read(failing)


async def _read(stream: CallStream) -> str:
    return "".join([piece async for piece in stream])


async def test_outputs_too_large_to_ride_along_are_fetched(client: Client) -> None:
    text = "word " * 1_000
    async with client.workflow() as wf:
        result = await wf.call("long", max_tokens=2_000, engine_options=options(text=text, apart=1))
        assert result.text == text


async def test_large_prompts_are_stored_ahead(stack: Stack) -> None:
    big = "x" * 300_000
    async with stack.client.workflow() as wf:
        await wf.call([Segment(big, tokens=1_000), "y" * (2**20 + 5), "short"], max_tokens=8)
        await wf.call([Segment(big, tokens=1_000), "another"], max_tokens=8)
    assert len(stack.double.prompts[CallId(wf.workflow_id, "call-1")]) == 4


async def test_missing_segments_are_sent_again(stack: Stack) -> None:
    async with stack.client.workflow() as wf:
        await wf.call("seen before")
        wf._known.add(wf.node("never stored").pending.bodies)
        assert (await wf.call("never stored")).text == "output of call-3"


async def test_tool_calls_are_parsed(client: Client) -> None:
    text = '{"tool_calls":[{"name":"search","arguments":{"q":"kv"}},{"name":"stop","arguments":{}}]}'
    async with client.workflow() as wf:
        result = await wf.call("which", engine_options=options(text=text, tools=1))
        assert [(call.name, dict(call.arguments)) for call in result.tool_calls] == [
            ("search", {"q": "kv"}),
            ("stop", {}),
        ]


async def test_failures_and_refusals_raise_typed_errors(client: Client) -> None:
    async with client.workflow() as wf:
        bad = wf.node("bad", engine_options=options(fail="ENGINE_BROKE"))
        child = wf.node([bad, "child"])
        await wf.reveal([bad, child])
        with refused(CallFailed, "ENGINE_BROKE"):
            await bad
        with refused(CallFailed, "PARENT_FAILED"):
            await child
        with pytest.raises(ResourceExhausted) as caught:
            await wf.call("full", engine_options=options(refuse="QUEUE_FULL"))
        assert caught.value.details["retry_after_us"] == "2000000"
        with pytest.raises(ValueError, match="oops"):
            async with wf.tool("broken") as tool:
                raise ValueError("oops")
        with refused(CallFailed, "PARENT_FAILED"):
            await wf.call("after the tool", after=[tool])


async def test_bad_input_is_refused_with_its_field(client: Client) -> None:
    with refused(NotFound, "UNKNOWN_TENANT", "tenant"):
        async with client.workflow(tenant="nobody"):
            pass
    async with client.workflow() as wf:
        with refused(InvalidArgument, "UNKNOWN_PARENT"):
            await wf.call("x", after=["nobody"])
        with refused(NotFound, "UNKNOWN_MODEL"):
            await wf.call("x", model="gpt-17")
        with refused(InvalidArgument, "PROMPT_TOO_LARGE"):
            await wf.call(Segment("x", tokens=10_000_000))
        with refused(InvalidArgument, "NEGATIVE_TOKENS"):
            await wf.call(Segment("x", tokens=-1))
        first = wf.node("x", node_id="a", after=["b"])
        with refused(InvalidArgument, "CYCLE"):
            await wf.reveal([first, wf.node("x", node_id="b", after=["a"])])
        await wf.call("x", node_id="c", model=MODEL)
        with refused(AlreadyExists, "DUPLICATE_NODE"):
            await wf.call("something else", node_id="c")
        await wf.call("x", template="loop", round=1)
        with refused(FailedPrecondition, "BAD_ROUND"):
            await wf.call("x", template="loop", round=5)
    with refused(FailedPrecondition, "WORKFLOW_FINISHED"):
        await wf.call("too late")


async def test_cancelling_the_awaiting_task_cancels_the_call(stack: Stack) -> None:
    async with stack.client.workflow() as wf:
        task = asyncio.create_task(wf.call("hold", engine_options=options(hold=1)))
        await _started(stack)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _reaches(wf, "call-1", NodeStatus.CANCELLED)
        early = asyncio.create_task(wf.call("never sent"))
        await asyncio.sleep(0)
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
        assert (await wf.call("goes on")).text == "output of call-3"
    assert wf.outcome is not None
    assert wf.outcome.status is WorkflowStatus.COMPLETED


async def test_an_exception_cancels_the_workflow(client: Client) -> None:
    wf = client.workflow()

    async def program() -> None:
        async with wf:
            await wf.reveal([wf.node("hold", engine_options=options(hold=1))])
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError):
        await program()
    described = await client.describe(wf.workflow_id)
    assert described.workflow.status is WorkflowStatus.CANCELLED
    assert described.workflow.reason == "RuntimeError: changed my mind"
    assert described.nodes[0].status is NodeStatus.CANCELLED
    with refused(FailedPrecondition, "WORKFLOW_FINISHED"):
        await wf.call("on a cancelled one")


async def test_cancelling_a_workflow_from_outside(stack: Stack) -> None:
    async with stack.client.workflow() as wf:
        task = asyncio.create_task(wf.call("hold", engine_options=options(hold=1)))
        await _started(stack)
        await wf.cancel("enough")
        with pytest.raises(Cancelled):
            await task
    assert wf.outcome is not None
    assert wf.outcome.status is WorkflowStatus.CANCELLED


async def test_terms_change_while_it_runs(client: Client) -> None:
    async with client.workflow(budget_s=3600, priority=5) as wf:
        await wf.pause()
        assert (await wf.describe()).workflow.status is WorkflowStatus.PAUSED
        await wf.resume()
        await wf.set_priority(7)
        await wf.set_deadline(slo_scale=2.5, budget_s=0)
        row = (await wf.describe()).workflow
        assert (row.priority, row.slo_scale, row.deadline) == (7, 2.5, 0)


async def test_a_killed_tracker_is_not_seen(stack: Stack) -> None:
    """Calls, tools and a stream go on over two kill -9."""
    text = " ".join(str(i) for i in range(60))
    async with stack.client.workflow() as wf:
        plan = await wf.call("plan")
        stream = asyncio.create_task(_read(wf.stream([plan], engine_options=options(text=text, delay_s=0.05))))
        calls = [
            asyncio.create_task(wf.call([plan, str(i)], engine_options=options(text=f"{i} x", delay_s=0.3 * (i % 5))))
            for i in range(20)
        ]
        async with wf.tool("search", after=[plan]):
            for _ in range(2):
                await asyncio.sleep(0.4)
                await stack.tracker.kill()
                more = asyncio.create_task(wf.call([plan, "while it is down"]))
                await asyncio.sleep(0.2)
                await stack.tracker.start()
                assert (await more).text.startswith("output of")
        assert [result.text for result in await asyncio.gather(*calls)] == [f"{i} x" for i in range(20)]
        assert await stream == text
        final = await wf.call(["merge", *[await call for call in calls]])
        assert final.text
    assert wf.outcome is not None
    assert wf.outcome.status is WorkflowStatus.COMPLETED
    assert len(set(stack.double.started)) == len(stack.double.started)


async def _status(wf: Workflow, node_id: str) -> NodeStatus:
    described = await wf.describe()
    return next(node.status for node in described.nodes if node.node_id == node_id)


async def _started(stack: Stack, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while len(stack.double.started) < count:  # noqa: ASYNC110  # the double knows of no waiters
            await asyncio.sleep(0.01)


async def _reaches(wf: Workflow, node_id: str, status: NodeStatus) -> None:
    for _ in range(500):
        if await _status(wf, node_id) is status:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{node_id} is never {status.name}")
