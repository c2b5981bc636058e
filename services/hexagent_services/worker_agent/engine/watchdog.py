"""Tells an engine that hangs from one that is slow: it has work, and nothing of it moves."""

import asyncio
from collections.abc import Callable
from typing import Final

LOOKS: Final = 20  # in the time without progress that is allowed
LOOK_MAX_S: Final = 1.0  # wall time between two looks


class Watchdog:
    """Of one engine. `working` counts what it should advance, `hung` is told how it was found out."""

    def __init__(self, stall_s: float, working: Callable[[], int], hung: Callable[[str], None]) -> None:
        self._stall_s = stall_s
        self._working = working
        self._hung = hung
        self._progress_s = 0.0
        self._watching: asyncio.Task[None] | None = None

    def progressed(self) -> None:
        """A token, an end or an iteration."""
        self._progress_s = asyncio.get_running_loop().time()

    def start(self) -> None:
        self.stop()
        self._watching = asyncio.create_task(self._watch())

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _watch(self) -> None:
        self.progressed()
        while True:
            await asyncio.sleep(min(LOOK_MAX_S, self._stall_s / LOOKS))
            working = self._working()
            if not working:
                self.progressed()
            elif asyncio.get_running_loop().time() - self._progress_s > self._stall_s:
                self._hung(f"no progress within {self._stall_s:g} s on {working} requests")
                return
