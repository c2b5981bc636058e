"""`hexagent bench restart`: kill processes at random under load, and count what clients notice."""

import asyncio
import os
import random
import signal
from collections import Counter
from typing import Final, NamedTuple

import hexagent.client
from hexagent.cli.children import Say, wait_healthy
from hexagent.cli.report import Row
from hexagent.cli.stack import NATS, LocalStack, StackOptions
from hexagent.client import CallResult
from hexagent.core.errors import HexagentError
from hexagent.core.workflow.events import CallFinished, WorkflowFinished
from hexagent.core.workflow.model import NodeStatus
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus, BusOptions
from hexagent.wire.workflow import event_from_bytes

CALLS: Final = 6  # of each workflow, in turn; every other one is streamed
FANOUT: Final = 3
SETTLE_S: Final = 120.0  # wall time for the last workflows to end


class RestartOptions(NamedTuple):
    rounds: int = 30
    every_s: float = 2.0
    programs: int = 12  # that run workflows, one after the other, until the last kill
    seed: int = 1
    nats: bool = False  # nats-server may be killed too


class Tally:
    """What clients saw."""

    def __init__(self) -> None:
        self.started = 0
        self.completed = 0
        self.calls = 0
        self.streams = 0
        self.wrong_streams = 0
        self.errors: list[str] = []
        self.last_s = 0.0
        self.longest_gap_s = 0.0

    def call_ended(self, now_s: float) -> None:
        self.calls += 1
        self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s


class Kill(NamedTuple):
    process: str
    healthy_s: float  # from the kill until its successor is healthy
    served_s: float  # from the kill until the next call ended at a client


async def run_restart_on_stack(stack: StackOptions, options: RestartOptions, say: Say) -> list[Row]:
    """On a stack of its own; errors clients saw are said."""
    async with LocalStack(stack, say) as local:
        rows, tally = await run_restart(local, options)
    for error in tally.errors:
        say(error)
    return rows


def nothing_lost(rows: list[Row]) -> bool:
    """Whether every workflow completed, no end was written twice and every stream was whole."""
    every = rows[-1]
    return not any(every[k] for k in ("workflows_lost", "calls_not_succeeded", "duplicated_ends", "wrong_streams"))


async def run_restart(stack: LocalStack, options: RestartOptions) -> tuple[list[Row], Tally]:
    """Kill, wait, kill; then let everything end. Rows: one a process, and one for all."""
    loop = asyncio.get_running_loop()
    draw = random.Random(options.seed)
    tally = Tally()
    tally.last_s = loop.time()
    stop = asyncio.Event()
    async with hexagent.client.connect(stack.address, patience_s=SETTLE_S) as client:
        programs = [asyncio.create_task(_program(client, n, tally, stop)) for n in range(options.programs)]
        await asyncio.sleep(options.every_s)
        kills: list[asyncio.Task[Kill]] = []
        for _ in range(options.rounds):
            names = [name for name in sorted(stack.pids) if options.nats or name != NATS]
            name = draw.choice(names)
            os.kill(stack.pids[name], signal.SIGKILL)
            kills.append(asyncio.create_task(_recovered(stack, name, tally)))
            await asyncio.sleep(options.every_s)
        stop.set()
        async with asyncio.timeout(SETTLE_S):
            await asyncio.gather(*programs)
        done = await asyncio.gather(*kills)
    lost, repeated = await _ends(stack)
    return _rows(done, tally, lost, repeated), tally


async def _program(client: hexagent.client.Client, number: int, tally: Tally, stop: asyncio.Event) -> None:
    """An agent that never stops asking; every answer it streams is held against the call's result."""
    round_ = 0
    while not stop.is_set():
        round_ += 1
        tally.started += 1
        try:
            async with client.workflow("restart", workflow_id=f"restart-{number}-{round_}") as wf:
                last: CallResult | None = None
                for turn in range(CALLS):
                    prompt: list[str | CallResult] = [f"turn {turn} of {number}", *([last] if last else [])]
                    if turn % 2:
                        last = await _streamed(wf, prompt, tally)
                    else:
                        calls = (wf.call([*prompt, f"part {i}"], role="part", max_tokens=300) for i in range(FANOUT))
                        last = (await asyncio.gather(*calls))[0]
                    tally.call_ended(asyncio.get_running_loop().time())
            tally.completed += 1
        except HexagentError as error:
            tally.errors.append(f"{number}-{round_}: {error.reason}: {error}")


async def _streamed(wf: hexagent.client.Workflow, prompt: list[str | CallResult], tally: Tally) -> CallResult:
    tally.streams += 1
    stream = wf.stream(prompt, role="streamed", max_tokens=300)
    text = "".join([piece async for piece in stream])
    result = await stream.result()
    if text != result.text:
        tally.wrong_streams += 1
    return result


async def _recovered(stack: LocalStack, name: str, tally: Tally) -> Kill:
    loop = asyncio.get_running_loop()
    killed_s, calls = loop.time(), tally.calls
    served = asyncio.create_task(_next_call(tally, calls))
    await asyncio.sleep(0.05)  # its keeper has noticed
    if name != NATS:
        await wait_healthy(stack.addresses[name])
    healthy_s = loop.time() - killed_s
    await served
    return Kill(name, healthy_s, served.result() - killed_s)


async def _next_call(tally: Tally, calls: int) -> float:
    while tally.calls == calls:  # noqa: ASYNC110 - a look every 10 ms is as fine as the figure needs
        await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time()


async def _ends(stack: LocalStack) -> tuple[int, int]:
    """From the stream of events: calls without a successful end in workflows that ended, and ends beyond the first."""
    calls: Counter[str] = Counter()
    workflows: Counter[str] = Counter()
    failed = 0
    options = BusOptions(url=stack.addresses[NATS], name="bench")
    async with (
        await Bus.connect(options) as bus,
        await bus.follow(subjects.WORKFLOW, subjects.ALL_WORKFLOWS) as feed,
    ):
        async for batch in feed.backlog():
            for message in batch:
                match event_from_bytes(message.data).event:
                    case CallFinished(outcome=outcome):
                        calls[str(outcome.call)] += 1
                        failed += outcome.status is not NodeStatus.SUCCEEDED
                    case WorkflowFinished(workflow_id=workflow_id):
                        workflows[workflow_id] += 1
    return failed, sum((calls + workflows).values()) - len(calls) - len(workflows)


def _rows(kills: list[Kill], tally: Tally, lost: int, repeated: int) -> list[Row]:
    rows: list[Row] = []
    for name in [*sorted({k.process for k in kills}), "all"]:
        mine = [k for k in kills if name in (k.process, "all")]
        healthy, served = sorted(k.healthy_s for k in mine), sorted(k.served_s for k in mine)
        rows.append(
            {
                "process": name,
                "kills": len(mine),
                "recovery_p50_s": healthy[len(healthy) // 2],
                "recovery_max_s": healthy[-1],
                "next_call_p50_s": served[len(served) // 2],
                "next_call_max_s": served[-1],
            }
        )
    totals: Row = {
        "workflows": tally.started,
        "workflows_lost": tally.started - tally.completed,
        "calls": tally.calls,
        "calls_not_succeeded": lost,
        "duplicated_ends": repeated,
        "streams": tally.streams,
        "wrong_streams": tally.wrong_streams,
        "longest_gap_s": tally.longest_gap_s,
    }
    rows[-1] = {**rows[-1], **totals}
    return rows
