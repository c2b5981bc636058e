"""What an engine says that it can do, held against what the fake one then does."""

import asyncio

import pytest

from hexagent.core.instance.spec import FlipWay, Role, RoleFlip
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.host_process import Connection
from hexagent_services.worker_agent.engine.port import EngineRefused, Finished
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from tests.contract.engines import request_of, spec
from tests.contract.trtllm.session import OPTIONS
from tests.fakes.byte_text import ByteText
from tests.fakes.local_host import LocalHost, fake_library
from tests.fakes.virtual_loop import LoopClock, run_virtually

LIBRARY = fake_library()


@pytest.mark.parametrize(
    ("name", "overlap_off", "profile", "way"),
    [
        ("d", None, "trtllm-1.2.1", FlipWay.RESTART),
        ("d", True, "trtllm-1.2.1", FlipWay.MIX),
        ("d", None, "trtllm-1.3", FlipWay.MIX),
        ("p", None, "trtllm-1.2.1", FlipWay.OVERLAP_OFF),
        ("p", False, "trtllm-1.3", FlipWay.MIX),
    ],
)
def test_a_flip_of_roles_takes_what_is_said_of_it(
    name: str, overlap_off: bool | None, profile: str, way: FlipWay, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {} if overlap_off is None else {"disable_overlap_scheduler": overlap_off}
    start = LocalHost.start

    async def loads_long(host: LocalHost) -> Connection:
        await asyncio.sleep(90)
        return await start(host)

    async def run() -> None:
        instance = spec(name, Role.PREFILL if name == "p" else Role.DECODE, 40)._replace(profile=profile)
        options = OPTIONS._replace(arguments=arguments)
        engine = TrtllmEngine(instance, LocalHost(LIBRARY), ByteText(), LoopClock(), 131_072, options)
        found = await engine.start()
        assert found.flip == RoleFlip(way, 90_000_000 if way is FlipWay.RESTART else 0)
        if profile != "trtllm-1.2.1":  # which the fake is
            return
        if name == "p":
            assert isinstance([event async for event in engine.local(request_of("a"))][-1], Finished)
        elif way is FlipWay.RESTART:
            with pytest.raises(EngineRefused, match="ENGINE_REFUSED"):
                await engine.prefill(request_of("a"))
        else:
            assert (await engine.prefill(request_of("a"))).finish is FinishReason.NONE

    monkeypatch.setattr(LocalHost, "start", loads_long)
    run_virtually(run())


@pytest.mark.parametrize(("name", "loads"), [("d", 2), ("p", 1)])
def test_an_engine_is_started_again_for_another_role_only_where_it_has_to_be(
    name: str, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[LocalHost] = []
    start = LocalHost.start

    async def counted(host: LocalHost) -> Connection:
        begun.append(host)
        return await start(host)

    async def run() -> None:
        role, other = (Role.PREFILL, Role.DECODE) if name == "p" else (Role.DECODE, Role.PREFILL)
        engine = TrtllmEngine(spec(name, role, 40), LocalHost(LIBRARY), ByteText(), LoopClock(), 131_072, OPTIONS)
        before = (await engine.start()).flip
        after = (await engine.change_role(other)).flip
        assert (engine.spec.role, len(begun)) == (other, loads)
        assert before is not None
        assert after is not None
        ways = {"d": (FlipWay.RESTART, FlipWay.OVERLAP_OFF), "p": (FlipWay.OVERLAP_OFF, FlipWay.MIX)}
        assert (before.way, after.way) == ways[name]
        assert (await engine.prefill(request_of("a"))).finish is FinishReason.NONE

    monkeypatch.setattr(LocalHost, "start", counted)
    run_virtually(run())


def test_an_engine_that_somebody_else_starts_does_not_change_its_role_by_a_restart() -> None:
    async def run() -> None:
        options = OPTIONS._replace(restarts=False)
        host = LocalHost(LIBRARY)
        engine = TrtllmEngine(spec("d", Role.DECODE, 40), host, ByteText(), LoopClock(), 131_072, options)
        assert (await engine.start()).flip is None

    run_virtually(run())
