"""Runs a workload live: every workflow's client program at once, with a progress display and a summary."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

import hexagent.client
from hexagent.cli.program import Program, Tally, Trip
from hexagent.cli.report import Row
from hexagent.core.units import US_PER_MS, US_PER_S
from hexagent.core.workflow.attribution import Spent
from hexagent.runtime.clock import ModelClock
from hexagent.sim.metrics import WorkflowRow, summary
from hexagent.sim.workloads.model import Workload

LEAD_US: Final = 50_000  # wall microseconds between the start of a run and its first arrival
DISTORTS: Final = 0.05  # share of a workflow's time alone that overhead may add before a run says so

_REFRESH_S: Final = 0.2


class Live(NamedTuple):
    """Where a workload runs."""

    client: hexagent.client.Client
    clock: ModelClock
    same_origin: bool = True  # the clock is the stack's own; else only durations can be told from it


class Run(NamedTuple):
    """A workload that was run."""

    rows: tuple[WorkflowRow, ...]  # in order of arrival
    wall_s: float
    trips: tuple[Trip, ...]  # of the calls, where the clock is the engines' own
    time_scale: float
    paths: tuple[tuple[int, int], ...]  # of each completed workflow: calls on its critical path, horizon
    errors: tuple[str, ...]
    spent: Mapping[str, Spent] = {}  # by workflow, where its description could be read
    cpu_ms_per_call: Mapping[str, float] = {}  # by process, where the stack is this command's own

    @property
    def return_us(self) -> float | None:
        """Median model time from the engine's end of a call to its client's receipt."""
        return median(trip.received_us - trip.ended_us for trip in self.trips) if self.trips else None


async def run_workload(live: Live, workload: Workload, progress: "RunProgress", slo_scale: float | None = None) -> Run:
    """Run every workflow to its end; what happens to one does not stop the others."""
    tally = Tally()
    clock = live.clock
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    base_us = clock.now_us() + clock.from_wall_s(LEAD_US / US_PER_S)
    programs = [Program(live.client, script, clock, base_us, tally, slo_scale) for script in workload.workflows]
    calls = sum(len(script.items) for script in workload.workflows)
    with progress.shown(len(programs), calls):
        watch = asyncio.create_task(_refresh(progress, tally, clock, base_us))
        try:
            rows = await asyncio.gather(*(program.run() for program in programs))
        finally:
            watch.cancel()
            progress.update(tally, clock.now_us() - base_us)
    return Run(
        tuple(rows),
        loop.time() - began_s,
        tuple(tally.trips) if live.same_origin else (),
        clock.time_scale,
        tuple(tally.paths),
        tuple(tally.errors),
        tally.spent,
    )


class RunProgress:
    """Workflows and calls that have ended, and model time, on stderr."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._progress: Progress | None = None
        self._workflows = TaskID(0)
        self._calls = TaskID(0)

    @contextlib.contextmanager
    def shown(self, workflows: int, calls: int) -> Iterator[None]:
        """Display while inside; nothing where stderr is no terminal."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._workflows = self._progress.add_task(f"{self._title}: workflows", total=workflows, note="")
        self._calls = self._progress.add_task(f"{self._title}: calls", total=calls, note="")
        with self._progress:
            yield
        self._progress = None

    def update(self, tally: Tally, model_us: int) -> None:
        """Show the counts."""
        if self._progress is not None:
            running = tally.workflows_started - tally.workflows_ended
            note = f"model time {max(model_us, 0) / US_PER_S:.1f} s, {running} running"
            self._progress.update(self._workflows, completed=tally.workflows_ended, note=note)
            failed = f"{len(tally.errors)} failed" if tally.errors else ""
            self._progress.update(self._calls, completed=tally.calls_ended, note=failed)


async def _refresh(progress: RunProgress, tally: Tally, clock: ModelClock, base_us: int) -> None:
    while True:
        progress.update(tally, clock.now_us() - base_us)
        await asyncio.sleep(_REFRESH_S)


def summary_row(run: Run) -> Row:
    """The run in one row; times in seconds of model time."""
    s = summary(run.rows)
    return {
        "workflows": s.workflows,
        "completed": s.completed,
        "calls": s.calls,
        "req50": s.req50,
        "req95": s.req95,
        "req99": s.req99,
        "req95_notool": s.req95_notool,
        "req99_notool": s.req99_notool,
        "makespan_s": s.makespan_s,
        "calls_per_s": s.calls / s.makespan_s if s.makespan_s else 0.0,
    }


def overhead_share(run: Run) -> float:
    """What the control plane adds to a workflow's time alone: the way back of each call, and as much for its way in."""
    return_us = run.return_us or 0.0
    return median(2 * return_us * calls / horizon_us for calls, horizon_us in run.paths) if run.paths else 0.0


def overhead_note(run: Run) -> str:
    """What overhead costs in model time, and a warning where it distorts the result; empty where it is not known."""
    if run.return_us is None:
        return ""
    model_ms = run.return_us / US_PER_MS
    text = (
        f"Control plane: a result reaches its client {model_ms / run.time_scale:.1f} ms of wall time after the engine"
        f" ends, which at time scale {run.time_scale:g} counts as {model_ms:.1f} ms of model time."
    )
    share = overhead_share(run)
    if share > DISTORTS:
        text += (
            f" Warning: over both ways of each call that is about {share:.0%} of a workflow's time alone; a smaller"
            " --time-scale distorts less."
        )
    return text
