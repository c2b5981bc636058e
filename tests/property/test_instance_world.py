"""Two or three connected instances under a random script: what holds whatever comes."""

from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import (
    Abort,
    Admitted,
    DecodeStarted,
    Ended,
    InstanceEffect,
    InstanceInput,
    KvArrived,
    KvLost,
    KvReady,
    KvSent,
    Prefill,
    PrefillDone,
    PrefillStarted,
    PrefixSegment,
    PullKv,
    Refused,
    Reserve,
    SendKv,
    StepDone,
    Work,
)
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, HandOff, InstanceSpec, LinkSpec, Role
from hexagent.core.units import NEVER_US

BLOCK = 16
KV_BYTES = 1_000
BUDGET = 256


class LinearTimes:
    """A fake of the tables: a fixed cost a step, and linear in tokens."""

    def batch_prefill_us(self, chunks: Sequence[tuple[int, int]]) -> int:
        return 500 + sum(10 * new + prefix // 4 for new, prefix in chunks)

    def decode_us(self, batch: int, mean_context: int) -> int:
        return 1_000 + 20 * batch + batch * mean_context // 50

    def mixed_us(self, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int) -> int:
        return self.decode_us(batch, mean_context) + sum(10 * new for new, _ in chunks)


class Job(NamedTuple):
    """A call of the script."""

    at_us: int
    groups: tuple[int, ...]  # its prompt: segments by number, which says digest and tokens
    tail: int  # tokens of its own at the end of the prompt
    output: int
    spare: int  # max_tokens beyond the output
    reserve: int
    local: bool
    rank: int
    abort_us: int  # after arrival, 0 = never
    abort_at: str  # "" = everywhere; where decode alone is aborted it is bound again elsewhere, once

    @property
    def prompt(self) -> int:
        return sum(segment_tokens(g) for g in self.groups) + self.tail


class Script(NamedTuple):
    jobs: tuple[Job, ...]
    profile: str
    kv_blocks: int
    seed: int
    both: bool  # a third instance that is not disaggregated takes the local calls and some decodes


def segment_tokens(group: int) -> int:
    return (5, 16, 40, 100)[group % 4]


def work_of(number: int, job: Job) -> Work:
    prefix = tuple(PrefixSegment(f"g{g}", segment_tokens(g)) for g in job.groups)
    return Work(
        ticket=Ticket(CallId("w", f"n{number}"), 1, 1),
        prefix=(*prefix, PrefixSegment(f"own{number}", job.tail)),
        prompt_tokens=job.prompt,
        max_tokens=job.output + job.spare,
        reserve_output_tokens=job.reserve,
        output_tokens=job.output,
    )


def spec_of(name: str, role: Role, script: Script) -> InstanceSpec:
    return InstanceSpec(
        name, "h100", 4, role, "m", "bf16", "bf16", script.kv_blocks, BLOCK, 6, BUDGET,
        LinkSpec(100_000_000, 200), script.profile, True,
    )  # fmt: skip


class World:
    """A virtual-time loop: effects of one instance become inputs of another without delay."""

    def __init__(self, script: Script, twice: bool = False, extra_advance: bool = False) -> None:
        self.script = script
        self.push = PROFILES[script.profile].hand_off is HandOff.PUSH
        self.twice = twice
        self.extra_advance = extra_advance
        names = [("p0", Role.PREFILL), ("d0", Role.DECODE)] + ([("x0", Role.BOTH)] if script.both else [])
        self.models = {name: self._model(spec_of(name, role, script)) for name, role in names}
        self.effects: dict[str, list[InstanceEffect]] = {name: [] for name in self.models}
        self.works = [work_of(n, job) for n, job in enumerate(script.jobs)]
        self.by_ticket = {work.ticket: work for work in self.works}
        self.heap: list[tuple[int, int, str, InstanceInput]] = []
        self.pushed = 0
        self.dropped: set[Ticket] = set()  # aborted where they were prefilled: no part of them is begun again
        self.decode_at: dict[Ticket, str] = {}
        self.bound_again: set[Ticket] = set()

    def _model(self, spec: InstanceSpec) -> InstanceModel:
        truth = Truth(self.script.seed, 1_100_000, 80_000, prefill_factor_ppm=1_400_000, decode_factor_ppm=2_000_000)
        return InstanceModel(spec, PROFILES[spec.profile], LinearTimes(), KV_BYTES, truth)

    def schedule(self, at_us: int, name: str, item: InstanceInput) -> None:
        for _ in range(2 if self.twice else 1):
            self.pushed += 1
            heappush(self.heap, (at_us, self.pushed, name, item))

    def run(self) -> None:
        for job, work in zip(self.script.jobs, self.works, strict=True):
            home = "p0"
            if job.local:
                home = "x0" if self.script.both else "d0"
            self.schedule(job.at_us, home, Prefill(work, job.rank, job.local))
            for name in self.models:
                if job.abort_us and name in (job.abort_at or name):
                    self.schedule(job.at_us + job.abort_us, name, Abort(work.ticket))
        for _ in range(200_000):
            if not self.step():
                return
        raise AssertionError("the world does not come to rest")

    def step(self) -> bool:
        due = [(at, name) for name, m in self.models.items() if (at := m.next_due_us()) < NEVER_US]
        if self.heap and (not due or self.heap[0][0] < min(due)[0]):
            at_us, _, name, item = heappop(self.heap)
            if self.extra_advance:
                for model in self.models.values():
                    assert model.advance(max(0, at_us - 1)) == ()
            if isinstance(item, Prefill) and item.work.ticket in self.dropped:
                return True
            if isinstance(item, Abort) and name == "p0":
                self.dropped.add(item.ticket)
            self.react(name, self.models[name].handle(item, at_us), at_us)
        elif due:
            at_us, name = min(due)
            if self.extra_advance:
                assert self.models[name].advance(at_us - 1) == ()
            self.react(name, self.models[name].advance(at_us), at_us)
        else:
            return False
        self.check(at_us)
        return True

    def react(self, name: str, effects: tuple[InstanceEffect, ...], now_us: int) -> None:
        self.effects[name] += effects
        for effect in effects:
            assert not isinstance(effect, KvSent) or effect.end_us == now_us
            if isinstance(effect, PrefillStarted) and self.push and name == "p0":
                self.reserve(effect.ticket, now_us, kv_ready=False)
            elif isinstance(effect, PrefillDone) and name == "p0":
                if self.push and effect.ticket in self.decode_at:
                    told = Abort(effect.ticket) if effect.done else KvReady(effect.ticket)
                    self.schedule(now_us, self.decode_at[effect.ticket], told)
                elif not effect.done and not self.push:
                    self.reserve(effect.ticket, now_us, kv_ready=True)
            elif isinstance(effect, PullKv):
                self.schedule(now_us, effect.source, SendKv(effect.ticket, name, 10_000_000, 300))
            elif isinstance(effect, KvSent):
                self.schedule(now_us, effect.to_instance, KvArrived(effect.ticket))
            elif isinstance(effect, Refused) and effect.to_instance:
                self.schedule(now_us, effect.to_instance, KvLost(effect.ticket))
            elif isinstance(effect, Refused) and name != "p0":
                self.schedule(now_us, "p0", Abort(effect.ticket))
            elif isinstance(effect, Ended) and effect.aborted and name == "p0" and effect.ticket in self.decode_at:
                self.schedule(now_us, self.decode_at.pop(effect.ticket), Abort(effect.ticket))
            elif isinstance(effect, Ended) and effect.aborted and name == self.decode_at.get(effect.ticket):
                self.bind_again(effect.ticket, now_us)

    def reserve(self, ticket: Ticket, now_us: int, kv_ready: bool) -> None:
        if ticket not in self.dropped:
            odd = self.works.index(self.by_ticket[ticket]) % 2
            self.decode_at[ticket] = "x0" if odd and self.script.both else "d0"
            self.schedule(now_us, self.decode_at[ticket], Reserve(self.by_ticket[ticket], "p0", kv_ready))

    def bind_again(self, ticket: Ticket, now_us: int) -> None:
        """Decode was given up where it was bound: take the other instance if there is one, else give up."""
        other = "d0" if self.decode_at.pop(ticket) == "x0" else "x0"
        if self.push or not self.script.both or ticket in self.dropped | self.bound_again:
            self.schedule(now_us, "p0", Abort(ticket))
        else:
            self.bound_again.add(ticket)
            self.decode_at[ticket] = other
            self.schedule(now_us, other, Reserve(self.by_ticket[ticket], "p0", True))

    def check(self, now_us: int) -> None:
        for model in self.models.values():
            load = model.load(now_us)
            assert min(load) >= 0
            assert load.kv_used_blocks + load.kv_cached_blocks + load.kv_free_blocks == self.script.kv_blocks
            assert load.decoding <= model.spec.max_batch
            # Work is conserved: without a step nobody decodes or prefills, and no waiting call fits.
            idle = model._engine.step is None
            assert not idle or load.decoding + load.prefilling == 0
            if idle and load.queued:
                works = [self.by_ticket[ticket] for ticket in model.tickets()]
                most = max(-(-(w.prompt_tokens + w.max_tokens) // BLOCK) for w in works)
                assert load.kv_free_blocks + load.kv_cached_blocks < most or load.waiting
                assert load.pinned + load.waiting + load.transferring > 0, "an empty instance starts a queued call"


jobs = st.builds(
    Job,
    at_us=st.integers(0, 25_000),
    groups=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    tail=st.integers(1, 300),
    output=st.integers(1, 150),
    spare=st.integers(0, 60),
    reserve=st.integers(1, 200),
    local=st.booleans(),
    rank=st.integers(-2, 2),
    abort_us=st.one_of(st.just(0), st.integers(0, 80_000)),
    abort_at=st.sampled_from(("", "", "p0", "d0 x0")),
)
scripts = st.builds(
    Script,
    jobs=st.lists(jobs, min_size=1, max_size=14).map(tuple),
    profile=st.sampled_from(tuple(PROFILES)),
    kv_blocks=st.integers(12, 90),
    seed=st.integers(0, 3),
    both=st.booleans(),
)


def ran(script: Script, twice: bool = False, extra_advance: bool = False) -> World:
    world = World(script, twice, extra_advance)
    world.run()
    return world


def bare(effects: Sequence[InstanceEffect], kinds: tuple[type, ...]) -> list[InstanceEffect]:
    return [e for e in effects if isinstance(e, kinds)]


@settings(max_examples=250, deadline=None)
@given(scripts)
def test_every_call_ends_once_and_leaves_nothing_behind(script: Script) -> None:
    world = ran(script)
    for name, model in world.models.items():
        load = model.load(10**9)
        assert model.tickets() == ()
        assert load.kv_used_blocks == 0
        assert sum(load[:1]) + sum(load[3:8]) == 0
        ends: dict[Ticket, int] = defaultdict(int)
        for effect in world.effects[name]:
            if isinstance(effect, Ended):
                ends[effect.ticket] += 1
                work = world.by_ticket[effect.ticket]
                assert effect.output_tokens <= work.output_tokens
                if not effect.aborted:
                    assert effect.output_tokens == work.output_tokens
                elif script.jobs[world.works.index(work)].abort_us == 0:
                    # Push reserves before it is known that the first token is the last, or that decode refuses.
                    assert world.push or any(isinstance(e, Refused) for es in world.effects.values() for e in es)
            elif isinstance(effect, Refused) and not effect.to_instance:
                ends[effect.ticket] += 1
        for effect in bare(world.effects[name], (PrefillStarted, Admitted)):
            assert isinstance(effect, PrefillStarted | Admitted)
            sent = sum(isinstance(e, KvSent) and e.ticket == effect.ticket for e in world.effects[name])
            assert ends.get(effect.ticket, 0) == 1 or (effect.ticket not in ends and sent == 1)
        assert all(n == 1 for n in ends.values())


@settings(max_examples=150, deadline=None)
@given(scripts)
def test_steps_explain_the_busy_time_and_the_tokens(script: Script) -> None:
    world = ran(script)
    for effects in world.effects.values():
        last_end = 0
        steps = [e for e in effects if isinstance(e, StepDone)]
        for step in steps:
            start = step.at_us - step.duration_us
            assert start >= last_end, "steps of one instance never overlap"
            assert step.steps >= 1
            assert step.steps == 1 or not step.prefill_chunks
            assert sum(new for new, _ in step.prefill_chunks) + step.decode_batch <= BUDGET
            last_end = step.at_us
        if not any(isinstance(e, Ended) and e.aborted for e in effects):
            ended = sum(e.output_tokens - 1 for e in effects if isinstance(e, Ended) and not e.aborted)
            decoded = sum(s.steps * s.decode_batch for s in steps)
            evicts = not PROFILES[script.profile].never_evicts  # a recomputed prompt yields a token outside decode
            assert decoded <= ended + sum(isinstance(e, Refused) for e in effects) * 200 if evicts else decoded == ended
        shares = [e.decode_us for e in effects if isinstance(e, Ended)]
        decoding_us = sum(step.duration_us for step in steps if step.decode_batch)
        assert sum(shares) <= decoding_us
        if not any((isinstance(e, Ended) and e.aborted) or isinstance(e, Refused) for e in effects):
            assert decoding_us - sum(shares) <= len(shares), "each share is cut to a microsecond"


@settings(max_examples=150, deadline=None)
@given(scripts)
def test_transfers_are_in_order_and_within_their_slots(script: Script) -> None:
    world = ran(script)
    sent = [e for e in world.effects["p0"] if isinstance(e, KvSent)]
    slots = PROFILES[script.profile].send_concurrency
    starts = [e.start_us for e in sorted(sent, key=lambda e: (e.start_us, e.end_us))]
    for at in starts:
        assert sum(e.start_us <= at < e.end_us for e in sent) <= slots
    for name, effects in world.effects.items():
        came = [e for e in sent if e.to_instance == name]
        pulls = [e.ticket for e in effects if isinstance(e, PullKv)]
        assert [t for t in pulls if any(e.ticket == t for e in came)] == [e.ticket for e in came]
        for at in starts:
            assert sum(e.start_us <= at < e.end_us for e in came) <= 1
    for effect in sent:
        assert effect.kv_bytes == world.by_ticket[effect.ticket].prompt_tokens * KV_BYTES


@settings(max_examples=100, deadline=None)
@given(scripts)
def test_doubled_inputs_and_extra_advances_change_nothing(script: Script) -> None:
    once = ran(script)
    assert ran(script, extra_advance=True).effects == once.effects
    twice = ran(script, twice=True)
    for name in once.models:
        # A late copy of a request for KV that was sent meanwhile is refused; nobody waits for the answer.
        copies = [e for e in twice.effects[name] if not (isinstance(e, Refused) and e.to_instance)]
        unique = [e for e in once.effects[name] if not (isinstance(e, Refused) and e.to_instance)]
        calls_refused = {e.ticket for e in unique if isinstance(e, Refused)}
        assert [e for e in copies if getattr(e, "ticket", None) not in calls_refused] == [
            e for e in unique if getattr(e, "ticket", None) not in calls_refused
        ]


@settings(max_examples=150, deadline=None)
@given(scripts, st.lists(st.integers(0, 200_000), max_size=30))
def test_advance_may_be_split_or_left_out(script: Script, cuts: list[int]) -> None:
    """One instance, inputs at fixed times: only `handle`, or `advance` at any times in between, say the same."""
    spec = spec_of("x0", Role.BOTH, script)
    inputs: list[tuple[int, int, InstanceInput]] = []
    for n, job in enumerate(script.jobs):
        work = work_of(n, job)
        inputs.append((job.at_us, n, Prefill(work, job.rank, True)))
        if job.abort_us:
            inputs.append((job.at_us + job.abort_us, n, Abort(work.ticket)))
    inputs.sort(key=lambda i: i[:2])

    def play(stops: list[int]) -> list[InstanceEffect]:
        truth = Truth(script.seed, noise_ppm=50_000)
        model = InstanceModel(spec, PROFILES[script.profile], LinearTimes(), KV_BYTES, truth)
        effects: list[InstanceEffect] = []
        left = sorted(stops)
        for at_us, _, item in inputs:
            while left and left[0] <= at_us:
                effects += model.advance(left.pop(0))
            effects += model.handle(item, at_us)
        for stop in left:
            effects += model.advance(stop)
        effects += model.advance(10**9)
        return effects

    whole = play([])
    assert play(cuts) == whole
    times = [at for e in whole if (at := getattr(e, "at_us", None)) is not None]
    assert times == sorted(times)


@settings(max_examples=100, deadline=None)
@given(scripts)
def test_a_call_s_effects_come_in_the_order_of_its_life(script: Script) -> None:
    order = {PrefillStarted: 0, PrefillDone: 1, Admitted: 0, PullKv: 1, KvSent: 2, DecodeStarted: 3, Ended: 4}
    for effects in ran(script).effects.values():
        seen: dict[Ticket, list[int]] = defaultdict(list)
        for effect in effects:
            if type(effect) in order and not isinstance(effect, StepDone):
                seen[effect.ticket].append(order[type(effect)])
        for ticket, stages in seen.items():
            aborted = any(isinstance(e, Ended) and e.aborted and e.ticket == ticket for e in effects)
            assert aborted or stages == sorted(set(stages))
