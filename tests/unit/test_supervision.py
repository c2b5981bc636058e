"""When engines are started again, and when they are not, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from hexagent.core.errors import Unavailable
from hexagent.core.instance.spec import FlipWay, Role, RoleFlip
from hexagent_services.worker_agent.engine.port import Capabilities, Engine
from hexagent_services.worker_agent.engine.supervision import LOADING, Quarantine, Supervisor
from tests.contract.engines import spec
from tests.fakes.virtual_loop import run_virtually

RULE = Quarantine(failures=4, within_s=100.0, lasts_s=1_000.0)


class Scripted:
    """Starts as its script says, then by default; `starts` are the moments."""

    spec = spec("d", Role.DECODE)

    def __init__(self, *errors: Exception | None, default: Exception | None = None) -> None:
        self.starts: list[float] = []
        self.closed = 0
        flip = RoleFlip(FlipWay.RESTART, 95_000_000)
        self.found = Capabilities(block_reuse=True, local_prefill=True, pipelined_transfer=True, flip=flip)
        self._errors = list(errors)
        self._default = default
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> Capabilities:
        self._lost = asyncio.get_running_loop().create_future()
        self.starts.append(asyncio.get_running_loop().time())
        error = self._errors.pop(0) if self._errors else self._default
        if error is not None:
            raise error
        return self.found

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    async def change_role(self, role: Role) -> Capabilities:
        await asyncio.sleep(95)
        self.spec = self.spec._replace(role=role)
        return await self.start()

    def lose(self, cause: str) -> None:
        self._lost.set_result(cause)

    async def close(self) -> None:
        self.closed += 1


Scene = Callable[[Scripted, Supervisor, list[str]], Coroutine[Any, Any, None]]


def play(scene: Scene, *errors: Exception | None, default: Exception | None = None) -> None:
    """`told` are the causes of which its scheduler hears."""

    async def run() -> None:
        engine, told = Scripted(*errors, default=default), list[str]()
        supervisor = Supervisor(cast("Engine", engine), lambda _, cause: told.append(cause), RULE)
        assert supervisor.cause == LOADING
        running = asyncio.create_task(supervisor.run())
        await supervisor.tried.wait()
        await scene(engine, supervisor, told)
        assert not running.done()
        running.cancel()

    run_virtually(run())


@pytest.mark.parametrize("error", [Unavailable("no GPU", reason="ENGINE_HOST_FAILED"), OSError("no such program")])
def test_one_that_does_not_load_is_down_and_tried_again(error: Exception) -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        await asyncio.sleep(0.1)
        assert supervisor.cause
        assert str(error) in supervisor.cause
        assert supervisor.spec.flip is None
        await asyncio.sleep(3)
        assert engine.starts == pytest.approx([0.0, 0.5, 2.5])
        assert (supervisor.cause, supervisor.restarts, told[-1], len(told)) == ("", 2, "", 3)
        assert supervisor.spec.flip == engine.found.flip

    play(scene, error, error)


def test_one_that_fails_too_often_stays_down_for_a_time() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        await asyncio.sleep(900)
        assert engine.starts == pytest.approx([0.0, 0.5, 2.5, 12.5])
        assert supervisor.cause == (
            "quarantined after 4 failures within 100 s; the last: engine does not start: broken"
        )
        await asyncio.sleep(200)
        assert engine.starts[4:6] == pytest.approx([1012.5, 1013.0])  # and from the beginning
        assert supervisor.quarantines == 2

    play(scene, default=Unavailable("broken", reason="ENGINE_HOST_FAILED"))


def test_an_operator_ends_a_quarantine_and_nothing_else() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        supervisor.open()  # before there is one
        await asyncio.sleep(50)
        assert len(engine.starts) == 4
        assert supervisor.cause.startswith("quarantined")
        supervisor.open()
        await asyncio.sleep(0.1)
        assert len(engine.starts) == 5

    play(scene, default=Unavailable("broken", reason="ENGINE_HOST_FAILED"))


def test_losses_count_only_while_they_are_recent() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        for turn in range(12):
            await asyncio.sleep(60)
            engine.lose(f"cause {turn}")
            await asyncio.sleep(3)
            assert supervisor.cause == ""
        assert (supervisor.restarts, supervisor.quarantines) == (12, 0)
        assert told[1] == "engine lost: cause 0"
        for _ in range(2):  # with two that are recent, as many as are too many
            engine.lose("again")
            await asyncio.sleep(15)
        assert supervisor.cause == "quarantined after 4 failures within 100 s; the last: engine lost: again"

    play(scene)


def test_one_that_lacks_what_its_profile_promises_does_not_run() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        engine.lose("gone")
        engine.found = Capabilities(block_reuse=False, local_prefill=True, pipelined_transfer=True)
        await asyncio.sleep(1)
        assert "promises block_reuse, the engine cannot" in supervisor.cause
        assert engine.closed == 1

    play(scene)


def test_an_engine_that_has_to_be_started_again_for_another_role_is_down_meanwhile() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        supervisor.change_role(Role.PREFILL)
        await asyncio.sleep(90)
        assert (told, supervisor.spec.role) == (["", "its role changes to prefill"], Role.DECODE)
        supervisor.change_role(Role.PREFILL)  # said again: nothing more
        await asyncio.sleep(10)
        assert (supervisor.spec.role, supervisor.spec.flip) == (Role.PREFILL, engine.found.flip)
        assert (told[2:], supervisor.restarts, len(engine.starts)) == (["", ""], 0, 2)
        engine.lose("gone")
        await asyncio.sleep(1)
        assert (supervisor.spec.role, supervisor.restarts) == (Role.PREFILL, 1)

    play(scene)


def test_one_that_does_not_start_in_another_role_is_tried_again_in_it_and_can_go_back() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        supervisor.change_role(Role.PREFILL)
        await asyncio.sleep(95.2)
        assert (supervisor.cause, supervisor.spec.role) == ("engine does not start: broken", Role.PREFILL)
        supervisor.change_role(Role.DECODE)
        await asyncio.sleep(100)
        assert (supervisor.cause, supervisor.spec.role) == ("", Role.DECODE)

    play(scene, None, Unavailable("broken", reason="ENGINE_HOST_FAILED"))


def test_an_engine_that_mixes_changes_its_role_without_a_gap() -> None:
    async def scene(engine: Scripted, supervisor: Supervisor, told: list[str]) -> None:
        supervisor.spec = supervisor.spec._replace(flip=RoleFlip(FlipWay.MIX, 0))
        supervisor.change_role(Role.PREFILL)
        await asyncio.sleep(100)
        assert (told, supervisor.spec.role) == (["", ""], Role.PREFILL)

    play(scene)
