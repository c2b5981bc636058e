"""An open-loop load generator, a process of its own: `python -m hexagent.cli.bench.generator`.

Calls arrive at a fixed rate whatever becomes of the ones before; each belongs to one of a few open workflows and is
streamed. Prints one JSON line with what the client saw.
"""

import asyncio
import contextlib
import json
import sys
from typing import Final, NamedTuple

import uvloop

import hexagent.client
from hexagent.client import Segment
from hexagent.core.errors import HexagentError

WORKFLOWS: Final = 20
DRAIN_S: Final = 30.0
BYTES_PER_TOKEN: Final = 4


class Load(NamedTuple):
    address: str
    rate: float  # calls a second of wall time
    seconds: float
    prompt_bytes: int
    output_tokens: int
    time_scale: float


class Seen(NamedTuple):
    calls: int
    completed: int
    errors: int
    wall_s: float  # from the first arrival to the last end
    added_ttft_ms: list[float]  # first piece after submission, less the engine's prefill


async def generate(load: Load) -> Seen:
    loop = asyncio.get_running_loop()
    ttft_ms: list[float] = []
    errors = 0
    last_s = 0.0

    async def one(wf: hexagent.client.Workflow, number: int) -> None:
        nonlocal errors, last_s
        # A prompt of its own, so that bodies are stored and read as for real traffic.
        text = f"call {number} ".ljust(load.prompt_bytes, "x")
        begin_s, first_s = loop.time(), 0.0
        try:
            stream = wf.stream(
                [Segment(text=text, role="user")],
                role="load",
                max_tokens=max(load.output_tokens, 16),
                engine_options={"emulated.output_tokens": str(load.output_tokens)},
            )
            async for _ in stream:
                first_s = first_s or loop.time()
            times = (await stream.result()).times
        except HexagentError:
            errors += 1
            return
        last_s = loop.time()
        engine_s = (times.prefill_end_us - times.prefill_start_us) / 1e6 / load.time_scale
        ttft_ms.append(1e3 * (first_s - begin_s - engine_s))

    async with hexagent.client.connect(load.address) as client:
        workflows = [client.workflow("load") for _ in range(WORKFLOWS)]
        for workflow in workflows:
            await workflow.__aenter__()
        begun_s = loop.time()
        tasks: list[asyncio.Task[None]] = []
        for number in range(round(load.rate * load.seconds)):
            await asyncio.sleep(max(0.0, begun_s + number / load.rate - loop.time()))
            tasks.append(asyncio.create_task(one(workflows[number % WORKFLOWS], number)))
        await asyncio.wait(tasks, timeout=DRAIN_S)
        for workflow in workflows:
            with contextlib.suppress(HexagentError):  # expired: an overload may leave it idle for hours of model time
                await workflow.__aexit__(None, None, None)
    return Seen(len(tasks), len(ttft_ms), errors, last_s - begun_s, ttft_ms)


def main() -> None:
    address, *numbers = sys.argv[1:]
    rate, seconds, prompt_bytes, output_tokens, time_scale = map(float, numbers)
    load = Load(address, rate, seconds, int(prompt_bytes), int(output_tokens), time_scale)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(generate(load))._asdict()))


if __name__ == "__main__":
    main()
