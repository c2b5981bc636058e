"""TensorRT-LLM engines that break in every documented way, in virtual time: no call hangs, no block is left behind.

A cluster's life are calls, aborts, faults of engines and deaths of their hosts, drawn by a seed, or chosen one by one
by a state machine, which finds the shortest that fails. Calls whose attempt is lost run again elsewhere, as their
scheduler would have it. HYPOTHESIS_PROFILE=explore lives more lives.
"""

import asyncio
import os
import random
from collections.abc import Coroutine
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import Role
from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.port import (
    DecodeEvent,
    EngineAborted,
    EngineRefused,
    EngineRequest,
    Finished,
    KvPiece,
    Prefilled,
)
from hexagent_services.worker_agent.engine.supervision import Quarantine, Supervisor
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from hexagent_services.worker_agent.engine_host.library import Library
from tests.contract.engines import LINK, handed_over, is_empty, request_of, spec
from tests.fakes.byte_text import ByteText
from tests.fakes.local_host import LocalHost, fake_library
from tests.fakes.virtual_loop import LoopClock, VirtualLoop, run_virtually

EXPLORES: Final = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
SEQUENCES: Final = 1_000 if EXPLORES else 200
LIBRARY: Final = fake_library()
NAMES: Final = ("p0", "p1", "d0", "d1")
ATTEMPTS: Final = 4
STEPS: Final = 5
PATIENCE_S: Final = 1.5  # virtual time after which an attempt of which nothing is heard is given up
KV_BLOCKS: Final = 40
SETTLED_S: Final = 2.0  # virtual time in which everything that was begun has ended
OPTIONS: Final = TrtllmOptions("/models/none", max_seq_tokens=2_000, transfer_timeout_s=0.5, stall_s=0.8, grace_s=0.1)
RULE: Final = Quarantine(failures=2, within_s=10.0, lasts_s=1.0)
FAULTS: Final = ("wedged", "leaks", "lazy_cleanup", "blocks_on_death", "crash", "lose_events", "refuse", "pull_s")


class Cluster:
    """Two engines of each role, kept running."""

    def __init__(self, library: Library) -> None:
        self.hosts: dict[str, LocalHost] = {}
        self.engines: dict[str, TrtllmEngine] = {}
        for name in NAMES:
            role = Role.PREFILL if name[0] == "p" else Role.DECODE
            self.hosts[name] = LocalHost(library)
            self.engines[name] = TrtllmEngine(
                spec(name, role, KV_BLOCKS), self.hosts[name], ByteText(), LoopClock(), 131_072, OPTIONS
            )
        self.ends: dict[str, str] = {}  # how each call ended
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        supervisors = [Supervisor(engine, lambda spec, cause: None, RULE) for engine in self.engines.values()]
        self._keepers += [asyncio.create_task(supervisor.run()) for supervisor in supervisors]
        for supervisor in supervisors:
            await supervisor.tried.wait()

    async def call(
        self, node: str, prefill: int, decode: int, local: bool, output_tokens: int = 0, leased_tokens: int = 64
    ) -> None:
        """To its end, by other instances after each loss; of as many tokens as its name is long by default."""
        wanted = output_tokens or len(node)
        request = request_of(node, 100 + 7 * len(node), wanted, max(64, 2 * wanted), stream="yes")
        request = request._replace(reserve_output_tokens=leased_tokens)
        cause = ""
        for attempt in range(ATTEMPTS):
            again = request._replace(ticket=Ticket(CallId("w", node), attempt + 1, 1))
            source = self.engines[f"p{(prefill + attempt) % 2}"]
            target = self.engines[f"d{(decode + attempt // 2) % 2}"]
            try:
                async with asyncio.timeout(PATIENCE_S):
                    text = await (self._local(target, again) if local else self._handed(source, target, again))
                assert len(text) == wanted
                self.ends[node] = "done"
                return
            except EngineAborted:
                self.ends[node] = "aborted"
                return
            except (EngineRefused, TimeoutError) as error:
                cause = str(error) or "STUCK"
            finally:
                source.abort(again.ticket)
                target.abort(again.ticket)
            await asyncio.sleep(0.6)
        self.ends[node] = f"failed: {cause}"

    async def _local(self, target: TrtllmEngine, request: EngineRequest) -> bytes:
        return _text([event async for event in target.local(request)])

    async def _handed(self, source: TrtllmEngine, target: TrtllmEngine, request: EngineRequest) -> bytes:
        prefilled = await source.prefill(request)
        if prefilled.finish is not FinishReason.NONE:
            return prefilled.first_text
        target.reserve(request, source.spec.instance_id, True)

        async def fetch() -> KvPiece:
            return [piece async for piece in source.send_kv(request.ticket, "d", LINK)][-1]

        return _text([e async for e in target.decode(request, handed_over(source, request, prefilled), fetch)])

    async def close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        for engine in self.engines.values():
            await engine.close()


def _text(events: list[DecodeEvent | Prefilled]) -> bytes:
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished.text


async def live(seed: int, library: Library) -> list[str]:
    """One cluster's life; how its calls ended."""
    draw = random.Random(seed)
    cluster = Cluster(library)
    await cluster.start()
    calls: list[asyncio.Task[None]] = []
    for step in range(STEPS):
        node = "n" * (1 + draw.randrange(3)) + str(step)
        calls.append(asyncio.create_task(cluster.call(node, draw.randrange(2), draw.randrange(2), draw.random() < 0.2)))
        host = cluster.hosts[draw.choice(sorted(cluster.hosts))]
        chance = draw.random()
        if chance < 0.35:
            setattr(host.llm.faults, draw.choice(FAULTS), 1)
        elif chance < 0.45:
            await host.kill()
        elif chance < 0.7:
            engine = cluster.engines[draw.choice(sorted(cluster.engines))]
            for ticket in [run.ticket for run in engine._held.runs.values()][:1]:
                for one in cluster.engines.values():
                    one.abort(ticket)
        await asyncio.sleep(draw.choice((0.0, 0.001, 0.004, 0.02, 0.3)))
    await asyncio.gather(*calls)
    await assert_nothing_left(cluster, seed)
    await cluster.close()
    return [cluster.ends[node] for node in sorted(cluster.ends)]


async def assert_nothing_left(cluster: Cluster, seed: int) -> None:
    await asyncio.sleep(SETTLED_S)
    for name, engine in cluster.engines.items():
        llm = cluster.hosts[name].llm
        assert is_empty(engine), (seed, name, engine.load())
        assert not engine._held.by_number, (seed, name)
        assert llm.blocks.used <= engine._held.admission.leaked_blocks + sum(llm._abandoned), (
            seed,
            name,
            llm.blocks.used,
        )
        assert llm.interrupted_transfers == 0, (seed, name)


def test_nothing_is_left_behind_whatever_breaks() -> None:
    ends: list[str] = []
    for seed in range(SEQUENCES):
        ends += run_virtually(live(seed, LIBRARY))
    assert len(ends) == SEQUENCES * STEPS
    assert ends.count("done") > len(ends) // 2


class ClusterMachine(RuleBasedStateMachine):
    """One life, a step at a time; between steps the time of the event loop stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.cluster = self.runner.run(self._started())
        self.calls: list[asyncio.Task[None]] = []

    async def _started(self) -> Cluster:
        cluster = Cluster(LIBRARY)
        await cluster.start()
        return cluster

    def _run(self, work: Coroutine[Any, Any, None], seconds: float = 0.0) -> None:
        async def run() -> None:
            await work
            await asyncio.sleep(seconds)

        self.runner.run(run())

    @rule(
        instances=st.tuples(st.integers(0, 1), st.integers(0, 1)),
        local=st.booleans(),
        output_tokens=st.sampled_from((1, 2, 30, 200)),
        leased_tokens=st.sampled_from((64, 1_000)),
    )
    def call(self, instances: tuple[int, int], local: bool, output_tokens: int, leased_tokens: int) -> None:
        async def begin() -> None:
            node = f"n{len(self.calls)}"
            life = self.cluster.call(node, *instances, local, output_tokens, leased_tokens)
            self.calls.append(asyncio.create_task(life))

        self._run(begin(), 0.001)

    @rule(name=st.sampled_from(NAMES), fault=st.sampled_from(FAULTS))
    def break_engine(self, name: str, fault: str) -> None:
        setattr(self.cluster.hosts[name].llm.faults, fault, 1)

    @rule(name=st.sampled_from(NAMES))
    def kill_host(self, name: str) -> None:
        self._run(self.cluster.hosts[name].kill())

    @rule(name=st.sampled_from(NAMES), place=st.integers(0, 3))
    def abort(self, name: str, place: int) -> None:
        async def everywhere() -> None:
            for run in list(self.cluster.engines[name]._held.runs.values())[place : place + 1]:
                for engine in self.cluster.engines.values():
                    engine.abort(run.ticket)

        self._run(everywhere())

    @rule(seconds=st.sampled_from((0.001, 0.004, 0.02, 0.3, 1.0)))
    def wait(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    @invariant()
    def no_engine_is_given_more_than_it_has(self) -> None:
        for name, engine in self.cluster.engines.items():
            admission = engine._held.admission
            assert 0 <= admission.used_blocks <= KV_BLOCKS, name
            assert admission._held.keys() <= engine._held.by_number.keys(), name

    def teardown(self) -> None:
        async def end() -> None:
            await asyncio.gather(*self.calls)
            await assert_nothing_left(self.cluster, 0)
            await self.cluster.close()

        try:
            self.runner.run(end())
            assert len(self.cluster.ends) == len(self.calls)
        finally:
            self.runner.close()


TestClusterMachine = ClusterMachine.TestCase
TestClusterMachine.settings = settings(max_examples=1_000 if EXPLORES else 40, stateful_step_count=15)
