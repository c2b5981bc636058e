"""Many simulated runs over several processes: longest first, a bar of what is done, and nothing run twice."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hexagent.cli.simulate.execute import execute
from hexagent.cli.simulate.store import Store
from hexagent.core.errors import Internal
from hexagent.sim.experiment.cell import Cell, workload_of
from hexagent.sim.experiment.run import Bound, Run, Task

_LINES: Final = 20  # of progress, where there is no terminal
# In runs with predicted finishes, about.
_LEAST_LOADED_COST: Final = 0.6
_BOUND_COST: Final = 0.3


def run_all(tasks: Sequence[Task], store: Store, processes: int, console: Console) -> None:
    """Every task is in the store afterwards; what it has already is not run again, what ends is in it at once.

    `KeyboardInterrupt` stops the tasks in progress. `Internal` (WORKER_DIED) if a process was killed.
    """
    missing = sorted([task for task in tasks if store.get(task) is None], key=_cost, reverse=True)
    if len(missing) < len(tasks):
        console.print(f"{len(tasks) - len(missing)} of {len(tasks)} runs are there already", style="dim")
    with _progress(console) as progress:
        bar = progress.add_task("runs", total=len(missing))
        for number, task in enumerate(_ended(missing, store, processes), 1):
            progress.update(bar, advance=1, description=_title(task))
            if progress.disable and number * _LINES // len(missing) > (number - 1) * _LINES // len(missing):
                console.print(f"{number} of {len(missing)} runs have ended")


def _work(task: Task, store: Store) -> Task:
    store.put(task, execute(task))
    return task


def _ended(tasks: Sequence[Task], store: Store, processes: int) -> Iterator[Task]:
    """Tasks as they end. One process is this one."""
    if processes == 1 or len(tasks) <= 1:
        for task in tasks:
            yield _work(task, store)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(processes, len(tasks)), context, signal.signal, (signal.SIGINT, signal.SIG_DFL))
    try:
        for future in as_completed([executor.submit(_work, task, store) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise Internal("a process of the experiment was killed; what is done is kept", reason="WORKER_DIED") from None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _cost(task: Task) -> float:
    """Longer tasks have more, in calls by what each costs."""
    if isinstance(task, Bound):
        return _calls(task.cell) * _BOUND_COST
    return _calls(task.cell) * (_LEAST_LOADED_COST if task.dispatch == "least-loaded" else 1.0)


@cache
def _calls(cell: Cell) -> int:
    """LLM calls of the cell's workload, whose number hardly depends on the seed."""
    return sum(len(script.items) for script in workload_of(cell, 1).workflows)


def _title(task: Task) -> str:
    what = task.policy if isinstance(task, Run) else "lower bound"
    return f"{task.cell.workload} {task.cell.cluster} {what} seed {task.seed}"


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
