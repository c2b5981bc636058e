"""`hexagent bench kills`: workflows on eight agent processes, one killed after the other, and what that adds."""

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

import hexagent.client
from hexagent.cli.report import Row, error_console
from hexagent.cli.runner import Live, Run, RunProgress, run_workload
from hexagent.cli.stack import LocalStack, StackOptions, until_failed
from hexagent.core.units import US_PER_S
from hexagent.sim.metrics import required_scale
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import Options

PATIENCE_S: Final = 300.0  # wall time for the last workflows to end
CLUSTER: Final = """
name = "kills"
agents = "instance"
[[pool]]
role = "prefill"
gpu = "h100"
model = "llama-3.1-70b"
tp = 4
count = 4
[[pool]]
role = "decode"
gpu = "h100"
model = "llama-3.1-70b"
tp = 4
count = 4
"""


class KillsOptions(NamedTuple):
    workload: str = "bfcl"
    workflows: int = 200
    rate_per_s: float = 2.0  # arrivals, model time
    every_s: float = 2.0  # wall time between two kills
    time_scale: float | None = 1.0
    seed: int = 1


async def run_kills(options: KillsOptions) -> list[Row]:
    """The workload without kills, then with; the last row is what each workflow took longer, seconds of model time."""
    workload = generate(
        options.workload, Options(workflows=options.workflows, rate_per_s=options.rate_per_s, seed=options.seed)
    )
    quiet, _ = await _run(workload, options, every_s=0)
    killed, kills = await _run(workload, options, every_s=options.every_s)
    return kill_rows(quiet, killed, kills)


async def _run(workload: Workload, options: KillsOptions, every_s: float) -> tuple[Run, int]:
    """On a stack of its own; also how many agents were killed, none with `every_s` 0."""
    title = f"{workload.name}, {'an agent killed every ' + format(every_s, 'g') + ' s' if every_s else 'no kills'}"
    with tempfile.TemporaryDirectory(prefix="hexagent-") as folder:
        cluster = Path(folder) / "cluster.toml"
        cluster.write_text(CLUSTER, encoding="utf-8")
        stack = StackOptions(str(cluster), time_scale=options.time_scale, seed=options.seed)
        async with (
            LocalStack(stack, lambda _: None) as local,
            hexagent.client.connect(local.address, patience_s=PATIENCE_S) as client,
        ):
            kills: list[str] = []
            killing = asyncio.create_task(_kill(local, options.seed, every_s, kills)) if every_s else None
            progress = RunProgress(title, error_console())
            run = await until_failed(local, run_workload(Live(client, local.clock), workload, progress))
            if killing is not None:
                killing.cancel()
            return run, len(kills)


async def _kill(stack: LocalStack, seed: int, every_s: float, killed: list[str]) -> None:
    """One agent every `every_s`, drawn from all; one that has not come back since its last end is not hit again."""
    draw = random.Random(seed)
    while True:
        await asyncio.sleep(every_s)
        pids = stack.pids
        name = draw.choice(sorted({spec.agent_id for spec in stack.record.cluster.instances}))
        if name in pids:
            os.kill(pids[name], signal.SIGKILL)
            killed.append(name)


def kill_rows(quiet: Run, killed: Run, kills: int) -> list[Row]:
    """A row a run, and one of the differences; a workflow that did not complete is in none of the times."""
    before = {row.workflow: row.jct_us for row in quiet.rows if row.completed}
    added = [row.jct_us - before[row.workflow] for row in killed.rows if row.completed and row.workflow in before]
    runs = [_row(name, count, run) for name, count, run in (("no kills", 0, quiet), ("kills", kills, killed))]
    return [*runs, {**dict.fromkeys(runs[0]), "run": "added to each", **_times(added)}]


def _row(name: str, kills: int, run: Run) -> Row:
    return {
        "run": name,
        "kills": kills,
        "workflows": len(run.rows),
        "completed": sum(row.completed for row in run.rows),
        "calls": sum(row.calls for row in run.rows),
        "wall_s": run.wall_s,
        **_times([row.jct_us for row in run.rows if row.completed]),
    }


def _times(times_us: Sequence[int]) -> Row:
    percentiles = {f"p{percent}_s": required_scale(times_us, percent) / US_PER_S for percent in (50, 95, 99, 100)}
    return {"mean_s": mean(times_us) / US_PER_S if times_us else 0.0, **percentiles}


def all_done(rows: Sequence[Row]) -> bool:
    """Whether every workflow of both runs completed."""
    return all(row["completed"] == row["workflows"] for row in rows)
