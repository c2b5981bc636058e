"""`hexagent bench control-plane`: CPU a call and added latency, with an engine that is all but instant."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from hexagent.cli.bench.generator import Seen
from hexagent.cli.report import Row
from hexagent.cli.stack import LocalStack, StackOptions
from hexagent.core.errors import InvalidArgument, Unavailable

TIME_SCALE: Final = 1_000.0  # a second of engine time takes a millisecond: what is left is the control plane
PROMPT_BYTES: Final = 4_096  # about 1,000 tokens
OUTPUT_TOKENS: Final = 64
SIZES: Final = (1_024, 20_480, 225_280)  # prompts of the latency rows, bytes
SIZE_RATE: Final = 10.0


class ControlPlaneOptions(NamedTuple):
    rates: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0, 400.0)  # calls a second
    seconds: float = 10.0  # of each rate
    cluster: str = "hetero-1"
    policy: str = "hexagent"


def parsed_rates(text: str) -> tuple[float, ...]:
    """Comma-separated rates; `InvalidArgument` for anything that is not a number from 0.1 to 100,000."""
    rates: list[float] = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0.1 <= rate <= 100_000:
            raise InvalidArgument(
                f"--rates: {part!r} is no rate; a rate is 0.1 to 100000 calls a second",
                reason="BAD_RATE",
                field="rates",
            )
        rates.append(rate)
    return tuple(rates)


async def run_control_plane(options: ControlPlaneOptions, say: Callable[[str], None]) -> list[Row]:
    """One row a rate and service, and one a prompt size; all on one stack."""
    rows: list[Row] = []
    stack_options = StackOptions(
        cluster=options.cluster, policy=options.policy, time_scale=TIME_SCALE, prefix_cache=False
    )
    async with LocalStack(stack_options, say) as stack:
        await _measure(stack, 20.0, 3.0, PROMPT_BYTES)  # connections, caches and imports
        for rate in options.rates:
            rows += await _measure(stack, rate, options.seconds, PROMPT_BYTES)
            say(f"{rate:g} calls/s offered, {rows[-1]['calls_per_s']} served")
        for size in SIZES:
            rows += [row for row in await _measure(stack, SIZE_RATE, options.seconds, size) if row["service"] == "all"]
            say(f"{size} byte prompts done")
    return rows


async def _measure(stack: LocalStack, rate: float, seconds: float, prompt_bytes: int) -> list[Row]:
    before = stack.cpu_s()
    seen = await _generate(stack.address, rate, seconds, prompt_bytes)
    after = stack.cpu_s()
    completed = max(seen.completed, 1)
    ttft_ms = sorted(seen.added_ttft_ms) or [0.0]
    cpu_ms = {name: 1e3 * (after[name] - before[name]) / completed for name in after if name in before}
    del cpu_ms["client"]  # this process only waits; the generator is another one
    cpu_ms["all"] = sum(cpu_ms.values())
    return [
        {
            "rate": rate,
            "calls_per_s": round(seen.completed / seen.wall_s, 1) if seen.wall_s else 0.0,
            "cpu_ms_per_call": ms,
            "service": name,
            "added_ttft_p50_ms": ttft_ms[len(ttft_ms) // 2],
            "added_ttft_p99_ms": ttft_ms[min(len(ttft_ms) - 1, len(ttft_ms) * 99 // 100)],
            "prompt_bytes": prompt_bytes,
            "calls": seen.calls,
            "errors": seen.errors,
        }
        for name, ms in cpu_ms.items()
    ]


async def _generate(address: str, rate: float, seconds: float, prompt_bytes: int) -> Seen:
    arguments = [address, *(str(n) for n in (rate, seconds, prompt_bytes, OUTPUT_TOKENS, TIME_SCALE))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hexagent.cli.bench.generator", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise Unavailable(f"the load generator ended with {process.returncode}", reason="GENERATOR_FAILED")
    return Seen(**json.loads(out))
