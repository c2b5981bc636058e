"""The life of a service process: start, ready, stop in stages, exit status.

SIGTERM and SIGINT end it in order: not ready, no new work, drain, flush, close, exit 0. A second signal ends it at
once. A task that fails ends the process with status 1: its supervisor starts it again, and what it had not finished
is delivered again, as after a crash.
"""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import uvloop

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.runtime.logs import fields, set_up_logs
from hexagent.runtime.settings import Settings

log = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2  # settings or files that can never be right: starting again does not help
COLLECTED_AFTER: Final = (10_000, 10, 10)  # new objects, and generations, before each search for unreachable cycles
LATE_ACTION_S: Final = 3.0  # a stop action gets this long even where those before it took all the grace

S = TypeVar("S", bound=Settings)
StopAction = Callable[[], Awaitable[object]]


class Stage(IntEnum):
    """When a stop action runs; of one stage, what was registered last runs first, as it builds on the others."""

    NOT_READY = 1  # health checks fail
    INTAKE = 2  # no new work: stop consuming and accepting
    DRAIN = 3  # let running work end
    FLUSH = 4  # what was published is stored
    CLOSE = 5  # connections and files


class App(Generic[S]):
    """What a service's `main` builds on."""

    def __init__(self, settings: S, tasks: asyncio.TaskGroup) -> None:
        self.settings: Final = settings
        self._tasks = tasks
        self._background: list[asyncio.Task[Any]] = []
        self._actions: list[tuple[Stage, str, StopAction]] = []
        self._stopping = asyncio.Event()
        self._ready_file: Path | None = None

    @property
    def stopping(self) -> bool:
        """Whether the process has been told to stop."""
        return self._stopping.is_set()

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[Any]:
        """Run `work` beside the others. If it fails, the process ends; at the end of a stop it is cancelled."""
        task = self._tasks.create_task(_reported(work, name), name=name)
        self._background.append(task)
        task.add_done_callback(self._background.remove)
        return task

    def at_stop(self, stage: Stage, name: str, action: StopAction) -> None:
        """Run `action` in that stage of a stop. Register as soon as there is something to undo."""
        self._actions.append((stage, name, action))

    def ready(self, port: int = 0, **facts: object) -> None:
        """Tell the supervisor: one JSON line on stdout, and in `ready_file` where that is set."""
        line = json.dumps({"service": self.settings.service, "port": port, "pid": os.getpid(), **facts})
        self._ready_file = self.settings.ready_file
        if self._ready_file is not None:
            unfinished = self._ready_file.with_name(self._ready_file.name + ".new")
            unfinished.write_text(line + "\n", encoding="utf-8")
            unfinished.replace(self._ready_file)
        try:
            print(line, flush=True)
        except BrokenPipeError:
            log.warning("nobody reads stdout")
        log.info("ready", extra=fields(port=port, **facts))

    def stop(self, why: str) -> None:
        """Begin an orderly stop; safe to call again."""
        if not self._stopping.is_set():
            log.info("stopping", extra=fields(why=why))
            self._stopping.set()

    async def _wait_stopping(self) -> None:
        await self._stopping.wait()

    async def _stop_in_stages(self) -> bool:
        """Run every stop action; whether none failed and everything published was stored.

        Work that outlives the grace is cut off, which is what the grace is for.
        """
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self.settings.stop_grace_s
        well = True
        last_first = self._actions[::-1]
        for stage, name, action in sorted(last_first, key=lambda item: item[0]):
            try:
                async with asyncio.timeout_at(max(end_s, loop.time() + LATE_ACTION_S)):
                    await action()
            except TimeoutError:
                well = well and stage != Stage.FLUSH
                log.warning("not done in time", extra=fields(stage=stage.name, action=name))
            except Exception:
                well = False
                log.exception("stop action failed", extra=fields(stage=stage.name, action=name))
        for task in list(self._background):
            task.cancel()
        return well


Main = Callable[[App[S]], Awaitable[None]]


def run_service(main: Main[S], settings: S | type[S]) -> int:
    """Run a service until it is told to stop; gives the exit status for `sys.exit`.

    `main` builds the service (connect, register stop actions, start tasks, `app.ready`) and returns; the process
    then lives until a signal or a failed task. Settings given as a class are read from the environment. Status 0
    after an orderly stop, 1 after a failure, 2 for wrong settings and files.
    """
    service = settings.service
    set_up_logs(service)
    try:
        resolved = settings.read() if isinstance(settings, type) else settings
        set_up_logs(service, level=resolved.log_level, form=resolved.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_live(main, resolved))
    except BaseException as error:
        return _exit_status(error)


async def _live(main: Main[S], settings: S) -> int:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        app = App(settings, tasks)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, app, number)
        starting = tasks.create_task(_started(main, app), name="start")
        waiting = tasks.create_task(app._wait_stopping(), name="stop")
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()  # told to stop while still starting
            await asyncio.wait((starting,))
        await waiting
        well = await app._stop_in_stages()
    log.info("stopped")
    return 0 if well else EXIT_FAILED


async def _started(main: Main[S], app: App[S]) -> None:
    await main(app)
    collect_rarely()


def collect_rarely() -> None:
    """Search seldom for unreachable cycles, and never again in what there is by now.

    What services make lives long and has next to no cycles, and a search through all of it stops everything else for
    some 60 ms per 150,000 objects, about what 1,000 waiting calls take.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


def _on_signal(app: App[Any], number: int) -> None:
    if app.stopping:
        log.warning("told to stop again; ending at once")
        sys.stderr.flush()
        os._exit(128 + number)
    app.stop(signal.Signals(number).name)


async def _reported(work: Coroutine[Any, Any, object], name: str) -> None:
    """Name the failing task: the group that it ends reports the error only."""
    try:
        await work
    except Exception:
        log.error("task failed", extra=fields(task=name))
        raise


def _exit_status(error: BaseException) -> int:
    """Log what ended the process, its own errors in one line and bugs with their traceback."""
    leaves = _leaves(error)
    for leaf in leaves:
        if isinstance(leaf, HexagentError):
            log.error(leaf.message, extra=fields(**{**leaf.details, "reason": leaf.reason, "field": leaf.field}))
            if leaf.__cause__ is not None:
                log.info("caused by %r", leaf.__cause__)
        else:
            log.critical("unexpected error", exc_info=leaf)
    wrong_input = all(isinstance(leaf, InvalidArgument) for leaf in leaves)
    return EXIT_USAGE if leaves and wrong_input else EXIT_FAILED


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
