"""The scheduler core under random orders of events: the ledger stays sound, and no call is lost or doubled."""

import contextlib
import json
from collections import Counter
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.errors import FailedPrecondition
from hexagent.core.estimate.snapshot import Snapshot, SpeedFactor
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.needs import ANYTHING, Needs, serves
from hexagent.core.instance.spec import FlipWay, InstanceSpec, Lora, Role, RoleFlip
from hexagent.core.policy.dispatch import Plan
from hexagent.core.policy.registry import known
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.effects import Bind, ChangeRole, Dispatch
from hexagent.core.scheduling.events import (
    CallProgress,
    InstanceCordoned,
    InstanceDown,
    InstanceFlip,
    InstanceUp,
    Phase,
    Tick,
)
from hexagent.core.units import PPM
from hexagent.core.workflow.model import NodeStatus
from tests.sim.cases import MODEL, Desk, decodes, prefills

POLICIES = known()
KINDS = ("pull", "push", "both", "cached", "needs")
NEEDS = (ANYTHING, Needs("sql"), Needs(min_precision="bf16"), Needs("sql", "bf16"), Needs("chess"))
PHASES = (Phase.PREFILLED, Phase.DECODING, Phase.ENDED)


class Step(NamedTuple):
    """What happens next; `pick` chooses among what it can happen to."""

    what: str
    pick: int
    size: int


STEPS = st.builds(
    Step,
    st.sampled_from(
        ["reveal", "progress", "progress", "progress", "refuse", "lose", "cancel", "pause", "fail", "cordon", "flip"]
    ),
    st.integers(0, 1_000),
    st.integers(1, 6),
)


class Play:
    """Feeds steps and keeps its own account of what the scheduler may do."""

    def __init__(self, policy: str, kind: str, gpus: tuple[str, ...] = ("a100", "h100", "h200")) -> None:
        specs = prefills(*gpus) + decodes("h100", "h200", kv_blocks=200)
        if kind == "push":
            specs = tuple(s._replace(profile="push") for s in specs)
        elif kind == "cached":
            specs = tuple(s._replace(prefix_cache=True) for s in specs)
        elif kind == "needs":
            specs = tuple(_able(s, int(s.instance_id[1:]) % 2) for s in specs)
        elif kind == "both":
            specs = tuple(s._replace(role=Role.BOTH) for s in specs if s.role is Role.DECODE)
        self.specs = tuple(s._replace(flip=RoleFlip(FlipWay.MIX, 0)) for s in specs)
        self.desk = Desk(self.specs, policy)
        self.needs = NEEDS if kind == "needs" else NEEDS[:1]
        self.workflows: list[str] = []
        self.open: dict[CallId, None] = {}
        self.running: dict[CallId, tuple[Ticket, int]] = {}  # ticket and next phase
        self.paused: set[str] = set()
        self.down: list[InstanceSpec] = []
        self.cordoned: set[str] = set()
        self.flipping: set[str] = set()
        self.changing: dict[str, Role] = {}  # those of which the agent has been told
        self.tickets: Counter[Ticket] = Counter()
        self.nodes = 0
        self.log: list[object] = []

    def step(self, step: Step) -> None:
        self.desk.now_us += step.pick * 100
        getattr(self, step.what)(step)
        self.check()

    def tell(self, effects: tuple[object, ...]) -> None:
        self.log.append(effects)
        for cancelled in self.desk.cancelled:
            held = self.running.get(cancelled.ticket.call)
            if held is not None and held[0] == cancelled.ticket:
                del self.running[cancelled.ticket.call]
        self.desk.cancelled.clear()
        for effect in effects:
            if isinstance(effect, Dispatch | Bind):
                found, instances = self.desk.core.projection.find(effect.ticket.call), self.desk.core.ledger.instances
                assert found is not None
                for instance_id in (effect.prefill_instance, effect.decode_instance):
                    assert serves(instances[instance_id].spec, found.needs)
            if isinstance(effect, ChangeRole) and effect.now:
                assert self.desk.core.ledger.instances[effect.instance_id].holds_nothing
                self.changing[effect.instance_id] = effect.role
            if isinstance(effect, Dispatch):
                self.tickets[effect.ticket] += 1
                call = effect.ticket.call
                assert call in self.open, "dispatched after its end"
                assert call not in self.running, "two live attempts"
                assert call.workflow_id not in self.paused
                assert not {effect.prefill_instance, effect.decode_instance} & (self.cordoned | self.flipping)
                assert not {effect.prefill_instance, effect.decode_instance} & {s.instance_id for s in self.down}
                self.running[call] = (effect.ticket, 0)

    def reveal(self, step: Step) -> None:
        workflow = f"w{step.pick % 4}"
        if workflow not in self.workflows:
            self.workflows.append(workflow)
            self.desk.start(workflow)
        names = tuple(f"n{self.nodes + i:03}" for i in range(step.size))
        self.nodes += step.size
        self.open.update(dict.fromkeys(CallId(workflow, name) for name in names))
        needs = self.needs[step.pick % len(self.needs)]
        prompt, expected = 50 + step.pick * 4, 1 + step.pick // 10
        self.tell(self.desk.reveal(workflow, *names, prompt=prompt, expected=expected, needs=needs))

    def progress(self, step: Step) -> None:
        if not self.running:
            return
        call = list(self.running)[step.pick % len(self.running)]
        ticket, phase = self.running[call]
        if phase + 1 == len(PHASES):
            del self.running[call]
        else:
            self.running[call] = (ticket, phase + 1)
        self.tell(self.desk.tell(CallProgress(ticket, PHASES[phase], "", self.desk.now_us)))
        if phase + 1 == len(PHASES):
            del self.open[call]
            self.tell(self.desk.finish(call))

    def refuse(self, step: Step) -> None:
        """A decode side refuses before KV moved; where none moves there is nothing to refuse."""
        if self.specs[0].role is Role.BOTH:
            return
        early = [ticket for ticket, phase in self.running.values() if phase <= 1]
        if early:
            ticket = early[step.pick % len(early)]
            self.tell(self.desk.progress(ticket, Phase.HAND_OFF_REFUSED))

    def lose(self, step: Step) -> None:
        if self.running:
            ticket, _ = list(self.running.values())[step.pick % len(self.running)]
            self.tell(self.desk.progress(ticket, Phase.LOST))

    def cancel(self, step: Step) -> None:
        if self.open:
            call = list(self.open)[step.pick % len(self.open)]
            del self.open[call]
            self.tell(self.desk.finish(call, NodeStatus.CANCELLED))
            assert call not in self.running

    def pause(self, step: Step) -> None:
        if self.workflows:
            workflow = self.workflows[step.pick % len(self.workflows)]
            self.paused ^= {workflow}
            self.tell(self.desk.pause(workflow, workflow in self.paused))

    def fail(self, step: Step) -> None:
        spec = self.specs[step.pick % len(self.specs)]
        if spec not in self.down:
            self.down.append(spec)
            self.changing.pop(spec.instance_id, None)
            self.tell(self.desk.tell(InstanceDown(spec.instance_id, self.desk.now_us)))

    def cordon(self, step: Step) -> None:
        spec = self.specs[step.pick % len(self.specs)]
        self.cordoned ^= {spec.instance_id}
        self.tell(self.desk.tell(InstanceCordoned(spec.instance_id, spec.instance_id in self.cordoned, 0)))

    def flip(self, step: Step) -> None:
        """An instance shall have the other role, or says that it has."""
        instance_id = self.specs[step.pick % len(self.specs)].instance_id
        instance = self.desk.core.ledger.instances[instance_id]
        if instance_id in self.changing:
            self.change(instance_id)
        elif instance_id not in self.flipping and instance.spec.role is not Role.BOTH:
            role = Role.PREFILL if instance.spec.role is Role.DECODE else Role.DECODE
            with contextlib.suppress(FailedPrecondition):
                self.desk.core.flips.check(instance, role)
                self.flipping.add(instance_id)
                self.tell(self.desk.tell(InstanceFlip(instance_id, role, self.desk.now_us)))

    def change(self, instance_id: str) -> None:
        self.flipping.remove(instance_id)
        self.down = [down for down in self.down if down.instance_id != instance_id]
        spec = self.desk.core.ledger.instances[instance_id].spec._replace(role=self.changing.pop(instance_id))
        self.tell(self.desk.tell(InstanceUp(spec, (), self.desk.now_us)))

    def check(self) -> None:
        for instance in self.desk.core.ledger.instances.values():
            assert instance.pinned_tokens >= 0
            assert instance.reserved_tokens >= 0
            assert instance.context_sum >= 0
            assert instance.local_us >= 0
            assert instance.kv_free_tokens >= 0, f"{instance.spec.instance_id} is over its capacity"
            assert len(instance.decoding) <= instance.spec.max_batch
        assert set(self.desk.core.ledger.attempts) == {ticket for ticket, _ in self.running.values()}
        assert max(self.tickets.values(), default=1) == 1, "a ticket was dispatched twice"

    def settle(self) -> None:
        """Everything comes back and runs to its end."""
        while self.down:
            self.tell(self.desk.tell(InstanceUp(self.down.pop(), (), self.desk.now_us)))
        for instance_id in sorted(self.cordoned):
            self.cordoned.remove(instance_id)
            self.tell(self.desk.tell(InstanceCordoned(instance_id, False, 0)))
        for workflow in sorted(self.paused):
            self.paused.remove(workflow)
            self.tell(self.desk.pause(workflow, False))
        for _ in range(8 * len(self.open) + 8):
            if not self.open:
                break
            for instance_id in list(self.changing):
                self.change(instance_id)
            self.step(Step("progress", 0, 1))
            self.tell(self.desk.tell(Tick(self.desk.now_us)))
        assert not self.open, "calls that never ran"
        assert self.desk.ledger_is_empty()


def _able(spec: InstanceSpec, odd: int) -> InstanceSpec:
    """Precise weights here, one adapter more there."""
    if not odd:
        return spec._replace(loras=(Lora("sql", 16),), prefix_cache=True)
    return spec._replace(precision="fp8", loras=(Lora("chess", 8), Lora("sql", 16)), prefix_cache=True)


def played(policy: str, kind: str, steps: list[Step]) -> Play:
    play = Play(policy, kind)
    for step in steps:
        play.step(step)
    play.settle()
    return play


def left_over(desk: Desk) -> Plan:
    """What the policy would start besides if it planned once more in the same state."""
    core = desk.core
    topology = Topology(*core.ledger.pool(MODEL, core.policy.dispatcher.mixing), core.estimator)
    topology.update(())
    if not core.waiting.get(MODEL) or not topology.prefill or not topology.decode:
        return Plan()
    return core.policy.dispatcher.plan(core.policy.order, topology, core.waiting[MODEL], desk.now_us)


@settings(max_examples=150)
@given(policy=st.sampled_from(POLICIES), kind=st.sampled_from(KINDS), steps=st.lists(STEPS, max_size=30))
def test_a_plan_conserves_work(policy: str, kind: str, steps: list[Step]) -> None:
    """It leaves nothing that it would start, and no cluster idle on which a waiting call fits."""
    play = Play(policy, kind, ("a100", "h200", "h200", "h200", "h200"))
    for step in steps:
        play.step(step)
    play.tell(play.desk.tell(Tick(play.desk.now_us)))
    assert not left_over(play.desk).decisions
    core = play.desk.core
    waiting = core.waiting[MODEL].calls if MODEL in core.waiting else []
    if not play.running:
        assert not any(all(core.ledger.pool(MODEL, needs=call.needs)) for call in waiting), "they wait and nothing runs"


def said(topology: Topology) -> tuple[object, ...]:
    """What a plan begins with."""
    books = topology.books
    lists = books.prefill_of, books.decode_of, books.by_free, books.by_step, books.speeds, books.floors
    return *lists, books.prefill.tolist(), books.decode.tolist(), topology.rate.tolist(), topology.setup_us.tolist()


@settings(max_examples=60)
@given(policy=st.sampled_from(POLICIES), kind=st.sampled_from(KINDS), steps=st.lists(STEPS, max_size=30))
def test_what_is_kept_between_plans_is_what_a_first_plan_would_find(policy: str, kind: str, steps: list[Step]) -> None:
    play = Play(policy, kind)
    core = play.desk.core
    for number, step in enumerate(steps):
        if number == len(steps) // 2:
            play.tell(play.desk.tell(Snapshot(1, 0, (SpeedFactor(play.specs[0].instance_id, PPM // 2, 2 * PPM, 9),))))
        play.step(step)
        for (model, mixing), kept in core._topologies.items():
            kept.update(core.ledger.changed.values())
            found = Topology(*core.ledger.pool(model, mixing), core.estimator)
            found.update(())
            assert said(kept) == said(found)


@settings(max_examples=300)
@given(policy=st.sampled_from(POLICIES), kind=st.sampled_from(KINDS), steps=st.lists(STEPS, max_size=60))
def test_the_ledger_is_sound_and_every_call_runs_once(policy: str, kind: str, steps: list[Step]) -> None:
    play = played(policy, kind, steps)
    attempts: dict[CallId, list[int]] = {}
    for ticket in play.tickets:
        attempts.setdefault(ticket.call, []).append(ticket.attempt)
    for numbers in attempts.values():
        assert numbers == list(range(1, len(numbers) + 1))


@settings(max_examples=50)
@given(policy=st.sampled_from(POLICIES), kind=st.sampled_from(KINDS), steps=st.lists(STEPS, max_size=40))
def test_equal_events_give_equal_effects(policy: str, kind: str, steps: list[Step]) -> None:
    assert json.dumps(played(policy, kind, steps).log) == json.dumps(played(policy, kind, steps).log)
