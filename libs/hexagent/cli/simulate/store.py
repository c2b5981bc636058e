"""Finished runs as files, so that an experiment that was broken off goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from hexagent import __version__
from hexagent.cli.report import made_folder
from hexagent.sim.experiment.run import Run, Task

_DECIDING: Final = ("hexagent.core", "hexagent.sim")  # packages whose code and data make outcomes
_JUDGING: Final = tuple(
    [f"hexagent.sim/experiment/{name}.py" for name in ("bootstrap", "paper", "policies", "pooling")]
)  # of them what only reads outcomes


class Store:
    """A folder with a file for each finished run, named by all that determines its outcome.

    That is the run itself, the content of its trace, the package's version and its code: after a change of the core
    or the simulator nothing old is taken for a result. Code that only judges outcomes may change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = made_folder(folder / "runs", "out")

    def get(self, task: Task) -> dict[str, Any] | None:
        """What an earlier run left, or None; a file that cannot be read counts as absent."""
        try:
            document: dict[str, Any] = json.loads(self._path(task).read_text(encoding="utf-8"))
            return document
        except (FileNotFoundError, ValueError):
            return None

    def put(self, task: Task, document: dict[str, Any]) -> None:
        path = self._path(task)
        unfinished = path.with_name(path.name + ".new")
        unfinished.write_text(json.dumps({**determinants(task), **document}, separators=(",", ":")), encoding="utf-8")
        unfinished.replace(path)

    def _path(self, task: Task) -> Path:
        key = hashlib.sha256(json.dumps(determinants(task), sort_keys=True).encode()).hexdigest()
        cell = task.cell
        what = task.policy.replace(":", "-") if isinstance(task, Run) else "lower-bound"
        return self._folder / f"{cell.model}.{cell.cluster}.{cell.workload}.{what}.s{task.seed}.{key[:16]}.json"


def determinants(task: Task) -> dict[str, Any]:
    """All that the outcome depends on."""
    trace = task.cell.trace
    return {
        **task._asdict(),
        "cell": {**task.cell._asdict(), "trace": hashlib.sha256(Path(trace).read_bytes()).hexdigest() if trace else ""},
        "version": __version__,
        "code": code_digest(),
    }


@cache
def code_digest() -> str:
    """SHA-256 over the code and data that make outcomes."""
    state = hashlib.sha256()
    for package in _DECIDING:
        for name, content in _files(files(package), package):
            if name not in _JUDGING:
                state.update(f"{name}\0".encode() + hashlib.sha256(content).digest())
    return state.hexdigest()


def _files(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        inner = f"{name}/{entry.name}"
        if not entry.is_dir():
            yield inner, entry.read_bytes()
        elif entry.name != "__pycache__":
            yield from _files(entry, inner)
