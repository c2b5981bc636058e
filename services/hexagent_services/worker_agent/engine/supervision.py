"""Engines are started, checked against what their profile promises, and started again when they are lost."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.core.instance.spec import PROFILES, FlipWay, InstanceSpec, Role
from hexagent.core.instance.telemetry import Incidents
from hexagent.runtime.logs import fields
from hexagent_services.worker_agent.engine.port import Capabilities, Engine

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.5, 2.0, 10.0, 60.0)  # wall time before a further start, by recent failures; the last for all more
LOADING: Final = "its engine loads"


class Quarantine(NamedTuple):
    """After how many failures an engine is not tried again, and for how long; wall time."""

    failures: int = 5
    within_s: float = 600.0
    lasts_s: float = 1800.0


async def bring_up(engine: Engine, role: Role | None = None) -> Capabilities:
    """Start an engine, or have it serve another role; what it can do.

    `InvalidArgument` (PROFILE_PROMISES_MORE) where the profile names more.
    """
    found = await (engine.start() if role is None else engine.change_role(role))
    profile = PROFILES[engine.spec.profile]
    promised = {
        "block_reuse": profile.block_reuse and engine.spec.prefix_cache,
        "local_prefill": profile.local_prefill,
        "pipelined_transfer": profile.pipelined_transfer,
    }
    lacking = [name for name, wanted in promised.items() if wanted and not getattr(found, name)]
    if lacking:
        await engine.close()
        raise InvalidArgument(
            f"{engine.spec.instance_id}: profile {profile.name} promises {', '.join(lacking)}, the engine cannot",
            reason="PROFILE_PROMISES_MORE",
            field="engine_profile",
        )
    return found


class Supervisor:
    """Keeps one engine running, in the role it shall have.

    A failure is the loss of an engine, or a start that does not succeed.

    `changed` is told why the engine is down, and "" once it runs.
    """

    def __init__(self, engine: Engine, changed: Callable[[InstanceSpec, str], None], quarantine: Quarantine) -> None:
        self.spec = engine.spec  # with what is known of the engine since it was last started
        self.cause = LOADING  # why it is down, "" = it runs
        self.restarts = 0  # starts behind the first one
        self.quarantines = 0
        self.tried = asyncio.Event()  # to start it once, with whatever success
        self.engine = engine
        self._changed = changed
        self._quarantine = quarantine
        self._failures: deque[float] = deque()  # when, on the loop's clock; those that count for a quarantine
        self._opened = asyncio.Event()
        self._role: Role | None = None  # that it shall have, until that is seen to
        self._turned = asyncio.Event()  # there is one

    async def run(self) -> None:
        """Until cancelled. What a lost engine held has been refused by the time that is known here."""
        while True:
            failure = await self._start()
            if not failure:
                self._tell("")
            self.tried.set()
            failure = failure or await self._until_lost()
            if failure:
                log.error(failure, extra=fields(instance_id=self.spec.instance_id))
                await self._pause(failure)
                self.restarts += 1

    def open(self) -> None:
        """An operator ends the quarantine, if there is one."""
        self._opened.set()

    def change_role(self, role: Role) -> None:
        """Serve `role`, holding nothing, as soon as may be. `changed` is told in any case what it then is."""
        self._role = role
        self._turned.set()
        self._opened.set()

    def incidents(self) -> Incidents:
        return self.engine.incidents()._replace(restarts=self.restarts, quarantines=self.quarantines)

    async def _start(self) -> str:
        """Have the engine run in the role it shall have; why it does not, "" when it does."""
        role, self._role = self._role, None
        self._turned.clear()
        if role is self.spec.role:
            role = None
        if role is None and not self.cause:
            return ""
        if role is not None and self.spec.flip is not None and self.spec.flip.way is FlipWay.RESTART:
            self._tell(f"its role changes to {role.name.lower()}")
        try:
            found = await bring_up(self.engine, role)
        except HexagentError as error:
            return f"engine does not start: {error.message}"
        except Exception as error:  # such as a program that cannot be executed; the agent and its other engines go on
            log.exception("an engine does not start", extra=fields(instance_id=self.spec.instance_id))
            return f"engine does not start: {error!r}"
        finally:
            self.spec = self.engine.spec._replace(flip=self.spec.flip)
        self.spec = self.spec._replace(flip=found.flip)
        return ""

    async def _until_lost(self) -> str:
        """Why the engine is lost; "" when its role shall change."""
        waits = asyncio.ensure_future(self.engine.lost()), asyncio.ensure_future(self._turned.wait())
        try:
            lost, _ = waits
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return f"engine lost: {lost.result()}" if lost.done() else ""
        finally:
            for wait in waits:
                wait.cancel()

    async def _pause(self, failure: str) -> None:
        rule, now_s = self._quarantine, asyncio.get_running_loop().time()
        while self._failures and self._failures[0] <= now_s - rule.within_s:
            self._failures.popleft()
        self._failures.append(now_s)
        recent = len(self._failures)
        if recent < rule.failures:
            self._tell(failure)
            await asyncio.sleep(BACKOFF_S[min(recent, len(BACKOFF_S)) - 1])
            return
        self.quarantines += 1
        self._opened.clear()
        self._tell(f"quarantined after {recent} failures within {rule.within_s:g} s; the last: {failure}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rule.lasts_s):
                await self._opened.wait()
        self._failures.clear()

    def _tell(self, cause: str) -> None:
        self.cause = cause
        self._changed(self.spec, cause)
