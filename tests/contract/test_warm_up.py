"""Links that are used ahead of calls, between two engines and the agents' sides of it, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.runtime.kv import KvWatch
from hexagent.wire.telemetry import AgentAnnouncement, FailedLink, Links, announcement_to_bytes
from hexagent_services.worker_agent.engine.admission import FIRST_RANK, LAST_RANK
from hexagent_services.worker_agent.peers import Peers
from hexagent_services.worker_agent.warm_up import REFUSAL, WarmUps
from tests.contract.engines import assert_empty, eventually, is_empty, request_of, spec, trtllm_serve
from tests.contract.trtllm.session import Side, decode, finished, started
from tests.fakes.local_host import LocalHost, fake_library
from tests.fakes.virtual_loop import LoopClock, run_virtually

LIBRARY = fake_library()


class Entry:
    def __init__(self, announcement: AgentAnnouncement) -> None:
        self.value = announcement_to_bytes(announcement)


class Pair:
    """A prefill and a decode agent that see each other's announcements, and peers to each other."""

    def __init__(self, source: Side, target: Side) -> None:
        self.source, self.target = source, target
        self.reached = True
        peers = cast("Peers", self)
        self.prefill = WarmUps({"p": source.engine}, peers, LoopClock(), "prefill:1")
        self.decode = WarmUps({"d": target.engine}, peers, LoopClock(), "decode:1")
        self._announced: asyncio.Queue[Entry] = asyncio.Queue()
        self.told: list[bool] = []  # that the prefill instance is cut off, or no longer
        run = self.prefill.run(cast("KvWatch", self), lambda name: self.told.append(self.prefill.cut_off(name)))
        self._keeping = asyncio.create_task(run)

    def __aiter__(self) -> "Pair":
        return self

    async def __anext__(self) -> Entry:
        return await self._announced.get()

    async def runs(self, address: str, instance_id: str) -> bool:
        return self.reached

    async def warm_up(self, address: str, request: pb.HandOffRequest) -> tuple[str, int]:
        if address != "decode:1":
            return "UNKNOWN_INSTANCE", 0
        return await self.decode.pull(pb.HandOffRequest.FromString(request.SerializeToString()))

    def announce(self, side: Side, *down: str) -> None:
        name = side.engine.spec.instance_id
        self.announce_spec("prefill:1" if name == "p" else "decode:1", side.engine.spec, *down)

    def announce_spec(self, address: str, spec: InstanceSpec, *down: str) -> None:
        announcement = AgentAnnouncement(spec.instance_id, address, (spec,), 1, 0, 1, False, down)
        self._announced.put_nowait(Entry(announcement))

    @property
    def links(self) -> Links:
        links = self.prefill.links_of("p")
        assert links is not None
        return links

    def stop(self) -> None:
        self._keeping.cancel()


def play(scene: Callable[[Pair], Awaitable[None]]) -> None:
    async def run() -> None:
        pair = Pair(await started("p", LIBRARY), await started("d", LIBRARY, 80))
        await scene(pair)
        pair.stop()
        await asyncio.sleep(3)
        for side in (pair.source, pair.target):
            assert is_empty(side.engine), side.engine.load()
            assert side.llm.interrupted_transfers == 0
            await side.engine.close()

    run_virtually(run())


def test_a_link_is_used_when_agents_meet_and_again_after_either_engine_was_started() -> None:
    async def scene(pair: Pair) -> None:
        pair.announce(pair.source)
        await asyncio.sleep(0.1)
        assert (pair.links, pair.decode.links_of("d")) == (Links(0, 0, (), 0), None)
        pair.target.llm.faults.pull_s = 0.2
        pair.announce(pair.target)
        await asyncio.sleep(0.1)
        assert pair.links == Links(0, 1, (), 0)
        await asyncio.sleep(0.5)
        assert (pair.links.warm, pair.links.cold) == (1, 0)
        assert 199_000 <= pair.links.slowest_us <= 201_000
        for side in (pair.source, pair.target):
            before = len(pair.target.llm.retentions)
            pair.announce(side)
            await asyncio.sleep(0.5)
            assert len(pair.target.llm.retentions) == before + 1
        # Nothing was cached, so that KV did move; but no later transfer will be like these.
        taken = pair.target.engine.take_samples()
        assert (taken.transfers, taken.reused_tokens) == ((), 0)
        assert pair.source.engine.incidents().dropped_hand_offs == 0
        pair.announce(pair.target, "d")
        await asyncio.sleep(0.1)
        assert pair.links == Links(0, 0, (), 0)

    play(scene)


async def test_servers_warm_up_as_hosts_do() -> None:
    engines = trtllm_serve(spec("p", Role.PREFILL)), trtllm_serve(spec("d", Role.DECODE))
    await asyncio.gather(*(engine.start() for engine in engines))
    pair = Pair(*(Side(engine, cast("LocalHost", None)) for engine in engines))
    for side in (pair.source, pair.target):
        pair.announce(side)
    await eventually(lambda: pair.links.warm == 1)
    pair.stop()
    await assert_empty(*engines)
    for engine in engines:
        await engine.close()


def test_a_link_over_which_no_kv_comes_gets_no_calls_until_some_does() -> None:
    async def scene(pair: Pair) -> None:
        pair.announce(pair.source)
        pair.target.llm.faults.pull_s = 0.8  # longer than a hand-off is kept
        pair.announce(pair.target)
        await asyncio.sleep(1.0)
        assert pair.links == Links(0, 0, (FailedLink("d", "KV_LOST_TIMEOUT"),), 0)
        assert pair.prefill.refusal("p", "d") == REFUSAL
        assert pair.prefill.refusal("p", "elsewhere") == pair.prefill.refusal("unknown", "d") == ""
        pair.announce(pair.target)  # such as for another engine there: what has failed still has
        await asyncio.sleep(0.1)
        assert pair.prefill.refusal("p", "d") == REFUSAL
        pair.target.llm.faults.pull_s = 0.01
        await asyncio.sleep(2.0)
        assert (pair.links.warm, pair.links.failed, pair.prefill.refusal("p", "d")) == (1, (), "")

    play(scene)


def test_a_failed_link_is_tried_before_calls_that_wait() -> None:
    async def scene(pair: Pair) -> None:
        pair.announce(pair.source)
        pair.target.llm.faults.pull_s = 0.8
        pair.announce(pair.target)
        await asyncio.sleep(1.0)
        pair.target.llm.faults.pull_s = 0.01
        await pair.source.engine.prefill(request_of("full", prompt_tokens=1_270))
        later = asyncio.create_task(pair.source.engine.prefill(request_of("later")._replace(rank=-5)))
        await asyncio.sleep(0.3)
        assert [claim.rank for claim in pair.source.engine._held.admission._waiting] == [FIRST_RANK, -5]
        await later
        await asyncio.sleep(1)
        assert pair.links.warm == 1

    play(scene)


def test_who_has_only_failed_links_is_cut_off_until_one_works() -> None:
    async def scene(pair: Pair) -> None:
        pair.announce(pair.source)
        pair.target.llm.faults.pull_s = 0.8
        pair.announce(pair.target)
        await asyncio.sleep(0.1)
        assert not pair.told, "a link that has not been tried may do"
        await asyncio.sleep(0.9)
        assert pair.told == [True]
        pair.announce_spec("elsewhere:1", pair.target.engine.spec._replace(instance_id="d2"))
        await asyncio.sleep(0.01)
        assert pair.told == [True, False]
        pair.reached = False
        await asyncio.sleep(20)
        assert pair.told == [True, False, True], "d2 is not there"
        pair.reached = True
        pair.target.llm.faults.pull_s = 0.01
        await asyncio.sleep(61)
        assert pair.told == [True, False, True, False]

    play(scene)


def test_an_agent_that_is_not_there_costs_nothing_and_its_link_is_not_to_blame() -> None:
    async def scene(pair: Pair) -> None:
        pair.reached = False
        pair.announce(pair.source)
        pair.announce(pair.target)
        await asyncio.sleep(20)
        assert pair.links == Links(0, 1, (), 0)
        assert pair.source.llm.retentions == []
        pair.reached = True
        await asyncio.sleep(61)
        assert pair.links.warm == 1

    play(scene)


def test_a_link_is_not_to_blame_where_there_was_no_room() -> None:
    async def scene(pair: Pair) -> None:
        calls = [request_of(name, prompt_tokens=1_216) for name in ("a", "b")]
        for call in calls:
            pair.target.engine.reserve(call, "p", True)
        pair.announce(pair.source)
        pair.announce(pair.target)
        await asyncio.sleep(0.7)
        assert (pair.links, pair.target.engine.load().waiting) == (Links(0, 1, (), 0), len(calls))
        for call in calls:
            pair.target.engine.abort(call.ticket)
        await asyncio.sleep(3)
        assert pair.links.warm == 1

    play(scene)


def test_calls_go_first() -> None:
    async def scene(pair: Pair) -> None:
        full = request_of("full", prompt_tokens=1_270)
        prefilled = await pair.source.engine.prefill(full)
        pair.announce(pair.source)
        pair.announce(pair.target)
        await asyncio.sleep(0.01)
        later = request_of("later")._replace(rank=86_400_000_000)  # it came a day after the first, by a queue's order
        waiting = asyncio.create_task(pair.source.engine.prefill(later))
        await asyncio.sleep(0.01)
        ranks = [claim.rank for claim in pair.source.engine._held.admission._waiting]
        assert ranks == [later.rank, LAST_RANK]
        assert finished(await decode(pair.source, pair.target, full, prefilled)).output_tokens == 12
        assert finished(await decode(pair.source, pair.target, later, await waiting)).output_tokens == 12
        await asyncio.sleep(0.5)
        assert pair.links.warm == 1

    play(scene)
