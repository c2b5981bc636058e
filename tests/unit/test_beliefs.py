"""What the scheduler believes of prefix caches: as the engines have it where it can know, corrected where not."""

import pytest

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.blocks import BlockPool
from hexagent.core.instance.io import PrefixSegment
from hexagent.core.instance.spec import PROFILES, Role
from hexagent.core.scheduling.beliefs import ALARM_PPM, JUDGED, JUDGED_MIN, CacheBelief
from hexagent.core.scheduling.events import CallProgress, InstanceDown, InstanceUp, Phase
from hexagent.core.units import PPM
from hexagent.core.workflow.events import CallFinished, NodesRevealed
from hexagent.core.workflow.model import CallOutcome, CallSpec, NodeKind, NodeSpec, NodeStatus, SegmentRef
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World
from tests.sim.cases import CAP, MODEL, Desk, decodes, instance, prefills


def chain(*segments: tuple[str, int]) -> tuple[PrefixSegment, ...]:
    return tuple(PrefixSegment(digest, tokens) for digest, tokens in segments)


def ticket(name: str) -> Ticket:
    return Ticket(CallId("w", name), 1, 1)


def belief(kv_blocks: int = 1_000) -> CacheBelief:
    return CacheBelief(instance("p0", "h100", Role.PREFILL, kv_blocks, prefix_cache=True))


def ran(cache: CacheBelief, name: str, *segments: tuple[str, int], found: int | None = None) -> int:
    """A prompt that is computed here and leaves; what it was believed to find, and finds unless told otherwise."""
    tokens = sum(size for _, size in segments)
    predicted = cache.begin(ticket(name), chain(*segments), tokens, tokens)
    cache.computed(ticket(name), chain(*segments), tokens, predicted, predicted if found is None else found)
    cache.end(ticket(name))
    return predicted


def test_hits_are_whole_blocks_and_leave_a_token_to_compute() -> None:
    cache = belief()
    assert ran(cache, "a", ("sys", 100), ("user", 60)) == 0
    assert cache.match(chain(("sys", 100), ("user", 60)), 160) == 128, "five blocks of 32 hold every token"
    assert cache.match(chain(("sys", 100), ("user", 60), ("more", 1)), 161) == 160
    assert cache.match(chain(("sys", 100), ("other", 60)), 160) == 96
    assert cache.match(chain(("user", 60), ("sys", 100)), 160) == 0


def test_an_unexpected_miss_takes_with_it_what_was_used_no_later() -> None:
    cache = belief()
    for name in ("old", "mid", "new"):
        ran(cache, name, ("sys", 64), (name, 320))
    assert ran(cache, "again", ("sys", 64), ("mid", 320), ("on", 32), found=64) == 384
    assert cache.match(chain(("sys", 64), ("old", 320), ("on", 32)), 416) == 64
    for kept in ("mid", "new"):
        assert cache.match(chain(("sys", 64), (kept, 320), ("on", 32)), 416) == 384


def test_the_belief_is_no_larger_than_the_engine() -> None:
    cache = belief(kv_blocks=30)
    for number in range(50):
        ran(cache, f"n{number}", (f"n{number}", 320))
    assert cache.cached_blocks == 30
    assert [cache.match(chain((f"n{n}", 320), ("on", 32)), 352) for n in (46, 47, 49)] == [0, 320, 320]


# --- in the scheduler -------------------------------------------------------------------------------------
def desk() -> Desk:
    specs = prefills("h100") + decodes("h100")
    return Desk(tuple(spec._replace(prefix_cache=True) for spec in specs), "fcfs")


def reveal(desk: Desk, node: str, *segments: SegmentRef, after: tuple[str, ...] = ()) -> None:
    call = CallSpec(MODEL, segments, sum(s.tokens for s in segments), CAP)
    desk.tell(NodesRevealed("w", (NodeSpec(node, NodeKind.CALL, "", after, call=call),), desk.now_us))


def finish(desk: Desk, output: SegmentRef) -> None:
    """The last dispatched call goes all the way; engines find nothing cached."""
    ticket = desk.dispatched[-1].ticket
    for phase in (Phase.PREFILLED, Phase.DECODING, Phase.ENDED):
        desk.progress(ticket, phase)
    desk.tell(CallFinished(CallOutcome(ticket.call, 1, NodeStatus.SUCCEEDED, output=output), desk.now_us))


def test_a_reveal_s_segments_and_outputs_are_believed_where_their_kv_is() -> None:
    d = desk()
    d.start("w")
    reveal(d, "a", SegmentRef("sys", 400), SegmentRef("user", 100))
    finish(d, SegmentRef("answer", 45))
    reveal(d, "b", SegmentRef("sys", 400), SegmentRef("user", 100), SegmentRef("", 45, "a"), SegmentRef("tool", 87),
           after=("a",))  # fmt: skip
    prefill, decode = d.core.ledger.instances["p0"].cache, d.core.ledger.instances["d0"].cache
    assert prefill is not None
    assert decode is not None
    (attempt,) = d.core.ledger.attempts.values()
    assert attempt.cached_tokens == 480
    assert decode.match(attempt.call.chain, 632) == 544
    d.tell(CallProgress(attempt.ticket, Phase.PREFILLED, "p0", 1, cached_tokens=448))
    assert d.core.ledger.reuse == (2, 1_132, 480, 448, 32)


def test_what_an_instance_cached_is_forgotten_when_it_goes_down() -> None:
    d = desk()
    d.start("w")
    reveal(d, "a", SegmentRef("sys", 400))
    first = d.dispatched[-1]
    d.progress(first.ticket, Phase.PREFILLED)
    d.tell(InstanceDown("p0", 0))
    assert d.core.ledger.instances["p0"].cache is None
    d.tell(InstanceUp(d.core.ledger.instances["p0"].spec, (), 1))
    second = d.core.ledger.attempts[d.dispatched[-1].ticket]
    assert (second.ticket.attempt, second.cached_tokens) == (2, 0)


def test_other_tenants_prompts_are_other_prompts() -> None:
    links = []
    for tenant in ("a", "b"):
        d = desk()
        d.start("w", tenant=tenant)
        reveal(d, "n", SegmentRef("sys", 400))
        (attempt,) = d.core.ledger.attempts.values()
        links.append(attempt.call.chain)
    assert links[0][1:] == links[1][1:]
    assert links[0][0] != links[1][0]


def test_prompts_of_other_salts_are_other_prompts() -> None:
    d = desk()
    d.start("w")
    for name, salt, cached in (("a", "x", 0), ("b", "x", 384), ("c", "", 0), ("d", "y", 0), ("e", "", 384)):
        call = CallSpec(MODEL, (SegmentRef("sys", 400),), 400, CAP, cache_salt=salt)
        d.tell(NodesRevealed("w", (NodeSpec(name, NodeKind.CALL, "", (), call=call),), d.now_us))
        (attempt,) = d.core.ledger.attempts.values()
        assert attempt.cached_tokens == cached, name
        d.tell(CallProgress(attempt.ticket, Phase.PREFILLED, "p0", d.now_us, cached_tokens=cached))
        d.run(d.dispatched[-1])


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_beliefs_equal_what_engines_have_where_nothing_is_evicted(profile: str) -> None:
    workload = generate("bfcl", Options(workflows=20, seed=5))
    world = World(named_cluster("mixed-3", profile=profile, prefix_cache=True), workload, "fcfs", 1)
    reuse = world.run().reuse
    assert reuse.reported_tokens > reuse.prompt_tokens // 3
    assert reuse.wrong_tokens < reuse.prompt_tokens // 200, "prompts that overlap in time"
    for name, held in world.scheduler.ledger.instances.items():
        assert held.cache is not None
        load = world.fleet.stations[name].model.load(world.now_us)
        assert (load.kv_used_blocks, load.kv_cached_blocks) == (0, held.cache.cached_blocks)


def test_without_prefix_caches_nothing_is_believed() -> None:
    world = World(named_cluster("mixed-3"), generate("bfcl", Options(workflows=2)), "fcfs", 1)
    assert world.run().reuse == (0, 0, 0, 0, 0)
    assert all(held.cache is None for held in world.scheduler.ledger.instances.values())


class Engine:
    """An engine's own cache beside the belief of it: fed by the same prompts, and by what the scheduler cannot know."""

    def __init__(self, kv_blocks: int = 1_000) -> None:
        self.believed = belief()
        self.blocks = kv_blocks
        self.restart()

    def restart(self) -> None:
        self._pool = BlockPool(self.blocks, 32, reuse=True)

    def ran(self, name: str, *segments: tuple[str, int]) -> tuple[int, int]:
        """What was believed to be found of a prompt, and is."""
        tokens = sum(size for _, size in segments)
        holding = self._pool.take(self._pool.need(tokens), chain(*segments), tokens)
        assert holding is not None
        found = self._pool.cached_tokens(holding, tokens)
        self._pool.commit(holding, chain(*segments), tokens)
        self._pool.release(holding)
        return ran(self.believed, name, *segments, found=found), found

    def turns(self, count: int, conversations: int) -> list[tuple[int, int]]:
        """Conversations of 20 blocks and their questions, one after the other."""
        return [
            self.ran(str(n), (f"talk{n % conversations}", 640), (f"ask{n}", 32))
            for n in range(self.asked(count), self.n)
        ]

    n = 0

    def asked(self, count: int) -> int:
        self.n += count
        return self.n - count


def test_a_belief_that_is_right_gives_no_alarm() -> None:
    engine = Engine()
    assert all(predicted == found for predicted, found in engine.turns(200, 40))
    assert (engine.believed.drift.wrong_ppm, engine.believed.drift.alarms) == (0, 0)


def test_after_an_unseen_restart_nothing_is_believed_any_more() -> None:
    engine = Engine()
    engine.turns(200, 40)
    engine.restart()
    for n in range(40):  # the longest unused first: a miss says nothing of what was used later
        engine.ran(f"again{n}", (f"talk{n}", 640), (f"other{n}", 32))
        if engine.believed.drift.alarms:
            break
    assert n == JUDGED * ALARM_PPM // PPM, "one more than the share of prefills that may go wrong"
    assert engine.believed.drift.alarm
    assert engine.believed.match(chain(("talk39", 640), ("x", 32)), 672) == 0
    assert all(predicted <= found for predicted, found in engine.turns(120, 40))
    assert not engine.believed.drift.alarm


def test_of_an_engine_that_keeps_less_than_it_could_less_is_believed() -> None:
    """40 conversations would fit twice; the engine has room for ten, and each turn comes after 39 others."""
    engine = Engine(kv_blocks=220)
    wrong = [sum(predicted > found for predicted, found in engine.turns(400, 40)) for _ in range(2)]
    assert engine.believed.drift.alarm
    assert wrong[0] <= 2 * JUDGED_MIN
    assert wrong[1] == 0
    assert engine.believed.cached_blocks < 500
