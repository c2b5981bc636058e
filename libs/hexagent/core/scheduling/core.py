"""The scheduler core: events in, dispatches, cancels and decision records out."""

from hexagent.core.errors import NotFound
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.oracle import Oracle
from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import ClusterSpec, HandOff, Role
from hexagent.core.instance.telemetry import Telemetry
from hexagent.core.policy.dispatch import Decision, Plan
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.policy.registry import Policy, policy_by_name
from hexagent.core.policy.topology import Topology
from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.effects import Bind, CancelAttempt, Choice, Dispatch, Effect, Record, Refuse, Shadowed
from hexagent.core.scheduling.events import (
    CallProgress,
    HeldTicket,
    InstanceCordoned,
    InstanceDown,
    InstanceUp,
    Phase,
    SchedulerEvent,
    Started,
    Tick,
)
from hexagent.core.scheduling.ledger import Attempt, Instance, Ledger
from hexagent.core.scheduling.projection import Projection
from hexagent.core.scheduling.record import Candidate, DecisionKind, DecisionRecord
from hexagent.core.workflow.events import CallFinished, WorkflowEvent
from hexagent.core.workflow.model import CallOutcome, NodeStatus

TICK_US = 1_000_000  # how often a driver sends `Tick`: a plan that no event triggers is at most this late


class SchedulerCore:
    """Owns the projection, the ledger and the queue of ready calls of one cluster.

    Nothing is dispatched before `Started`, so that attempts which agents still hold are adopted, not repeated.
    The policies of `shadows` plan on the same state whenever `policy` does, and only say where they differ. Only a
    simulation has an `oracle`.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        policy: str,
        profile: Profile = DEFAULT,
        shadows: tuple[tuple[str, Profile], ...] = (),
        oracle: Oracle | None = None,
    ) -> None:
        self.estimator = Estimator(cluster, oracle)
        self.projection = Projection(self.estimator)
        self.ledger = Ledger()
        self.waiting: dict[str, WaitingCalls] = {}  # by model: ready, not dispatched, not paused
        self.epoch = 0  # 0 = not started
        self.policy: Policy = policy_by_name(policy, self.estimator, profile)
        self._profile = profile
        self._shadows = tuple(policy_by_name(name, self.estimator, tuned) for name, tuned in shadows)
        # By model, and with or without prefill on decode instances; until instances change.
        self._topologies: dict[tuple[str, bool], Topology] = {}
        self._attempts: dict[CallId, Attempt] = {}  # the live attempt of a call
        self._held: dict[CallId, HeldTicket] = {}  # what agents run, as they say before the start
        self._starved: set[str] = set()  # models of which a call found no room for its KV in the last plan
        self._sequence = 0

    def handle(self, event: SchedulerEvent, now_us: int) -> tuple[Effect, ...]:
        """Take in one event and plan if it may have freed a slot or added a call."""
        effects: list[Effect] = []
        match event:
            case CallProgress():
                plan = self._progress(event, effects)
            case Telemetry():
                plan = False  # speeds and lengths arrive learned, as snapshots
            case Snapshot():
                self.estimator.update(event)
                plan = False
            case InstanceUp():
                plan = self._instance_up(event)
            case InstanceDown():
                plan = self._instance_down(event, effects)
            case InstanceCordoned():
                plan = self._cordon(event)
            case Started():
                self._start(event.epoch)
                plan = True
            case Tick():
                self._look_for_stuck(now_us, effects)
                plan = True
            case _:
                if isinstance(event, CallFinished) and event.outcome.call in self._attempts:
                    self.ledger.output_stays(self._attempts[event.outcome.call], event.outcome.output)
                change = self.projection.apply(event, now_us)
                freed = [self._forget(call, event, effects) for call in change.ended]
                for call in change.ready:
                    self._enqueue(call)
                plan = bool(change.ready) or any(freed) or bool(change.ended and self._starved)
        if plan and self.epoch:
            self._plan(now_us, effects)
        return tuple(effects)

    # --- queue ------------------------------------------------------------------------------------------------
    def _enqueue(self, call: Call) -> None:
        """Let a ready call wait unless it runs already; one of a paused workflow leaves the queue."""
        if call.call_id in self._attempts:
            return
        waiting = self.waiting.get(call.model)
        if waiting is None:
            waiting = self.waiting[call.model] = WaitingCalls()
        if call.workflow.paused:
            waiting.remove(call)
        elif call not in waiting:
            waiting.add(call)

    def _dequeue(self, call: Call) -> None:
        waiting = self.waiting.get(call.model)
        if waiting is not None:
            waiting.remove(call)

    def _forget(self, call: Call, event: WorkflowEvent, effects: list[Effect]) -> bool:
        """The call has its outcome: free what it holds and stop an attempt that still runs; whether it held anything.

        The attempt whose success the event tells has ended by itself, and only its agent's report is still to come.
        """
        self._dequeue(call)
        attempt = self._attempts.pop(call.call_id, None)
        if attempt is None or attempt.ticket not in self.ledger.attempts:
            return False
        self.ledger.ended(attempt, attempt.prefill_end_us)
        if not (isinstance(event, CallFinished) and _succeeded(event.outcome, attempt)):
            effects.append(_cancel(attempt, "CALL_ENDED"))
        return True

    def _lose(self, attempt: Attempt, reason: str, effects: list[Effect]) -> None:
        """Lost through no fault of the call: it waits again, at its old place, up to a number of times."""
        effects.append(_cancel(attempt, reason))
        self.ledger.ended(attempt, attempt.prefill_end_us)
        call = attempt.call
        if self._attempts.get(call.call_id) is not attempt:
            return
        del self._attempts[call.call_id]
        if call.attempts < self._profile.attempts_max:
            self._enqueue(call)
            return
        outcome = CallOutcome(
            call.call_id,
            call.attempts + 1,
            NodeStatus.FAILED,
            reason="ATTEMPTS_EXHAUSTED",
            message=f"{call.attempts} attempts were lost, the last one as {reason}",
        )
        effects.append(Refuse(outcome))

    # --- agents -----------------------------------------------------------------------------------------------
    def _progress(self, event: CallProgress, effects: list[Effect]) -> bool:
        """Returns whether a call may start that could not before."""
        attempt = self.ledger.attempts.get(event.ticket)
        if attempt is None:
            return False
        match event.phase:
            case Phase.PREFILLED:
                self.ledger.prefilled(attempt, event.at_us, event.cached_tokens)
                attempt.phase = max(attempt.phase, Phase.PREFILLED)
                return not attempt.prefill.prefilling
            case Phase.DECODING:
                self.ledger.kv_arrived(attempt, event.at_us)
                return attempt.call.model in self._starved
            case Phase.ENDED:
                freed = attempt.ticket in attempt.prefill.prefilling
                self.ledger.ended(attempt, event.at_us)
                return freed or attempt.call.model in self._starved
            case Phase.LOST:
                self._lose(attempt, event.reason, effects)
            case Phase.HAND_OFF_REFUSED:
                self._rebind(attempt, event, effects)
            case Phase.ACCEPTED:
                return False
        return True

    def _rebind(self, attempt: Attempt, event: CallProgress, effects: list[Effect]) -> None:
        """The decode side said no: the next best one under pull, else the attempt is lost."""
        _, decode = self.ledger.pool(attempt.call.model)
        kv_precision = attempt.prefill.spec.kv_precision
        others = [
            d
            for d in decode
            if d is not attempt.decode
            and d.spec.role is Role.DECODE
            and d.spec.kv_precision == kv_precision
            and d.kv_free_tokens >= attempt.kv_tokens
        ]
        if attempt.prefill.profile.hand_off is not HandOff.PULL or not others:
            self._lose(attempt, event.reason, effects)
            return
        call = attempt.call
        best = min(others, key=lambda d: d.decode_step_us(self.estimator, 1, call.mean_context))
        finish_us = event.at_us + call.output_q50 * best.decode_step_us(self.estimator, 1, call.mean_context)
        self.ledger.rebound(attempt, best)
        chosen = Candidate(
            attempt.prefill.spec.instance_id, best.spec.instance_id, 0, attempt.prefill_end_us, event.at_us, finish_us
        )
        record = self._record(DecisionKind.BIND, attempt, chosen, (), 0, (0, 0), event.at_us)
        effects.append(Bind(attempt.ticket, chosen.prefill_instance, chosen.decode_instance, record.sequence))
        effects.append(Record(record))

    def _instance_up(self, event: InstanceUp) -> bool:
        known = event.spec.instance_id in self.ledger.instances
        instance = self.ledger.describe(event.spec)
        if not known:  # else what was said here since is newer than what its agent remembers
            instance.cordoned = event.cordoned
        self._topologies.clear()
        for held in event.held:
            self._hear_of(held)
        self._adopt_held()
        return True

    def _start(self, epoch: int) -> None:
        """Attempts that could not be adopted are made again, as later ones; their agents drop the older."""
        self.epoch = epoch
        for call_id in sorted(self._held):
            call = self.projection.find(call_id)
            if call is not None:
                call.attempts = max(call.attempts, self._held[call_id].ticket.attempt)
        self._held.clear()

    def _hear_of(self, held: HeldTicket) -> None:
        """Before the start, when agents answer in any order, what comes first by `_precedence` is booked."""
        call_id = held.ticket.call
        other = self._held.get(call_id)
        if other is not None and _precedence(other) >= _precedence(held):
            return
        self._held[call_id] = held
        booked = self._attempts.get(call_id)
        if booked is not None and not self.epoch:
            self.ledger.ended(booked, booked.prefill_end_us)
            del self._attempts[call_id]
            booked.call.attempts = booked.ticket.attempt - 1
            self._enqueue(booked.call)

    def _adopt_held(self) -> None:
        """Book attempts of which both instances are known: those of one agent come one by one."""
        for call_id in sorted(self._held):
            call, held = self.projection.find(call_id), self._held[call_id]
            if call is not None and call_id not in self._attempts:
                prefill = self.ledger.instances.get(held.instance_id)
                decode = self.ledger.instances.get(held.decode_instance or held.instance_id)
                if prefill is None or decode is None:
                    continue
                if held.ticket.attempt > call.attempts:
                    self._adopt(call, held, prefill, decode)
            if self.epoch:
                del self._held[call_id]

    def _adopt(self, call: Call, held: HeldTicket, prefill: Instance, decode: Instance) -> None:
        """Book an attempt that an agent already runs."""
        self._dequeue(call)
        call.attempts = held.ticket.attempt
        attempt = Attempt(held.ticket, call, prefill, decode, held.reserve_output_tokens)
        self._attempts[call.call_id] = attempt
        self.ledger.dispatched(attempt, call.ready_us, 0)
        attempt.give_up_us = self._stuck_us(attempt, call.ready_us, call.ready_us)
        if held.phase >= Phase.PREFILLED:
            self.ledger.prefill_ended(attempt, call.ready_us)
            attempt.phase = Phase.PREFILLED
        if held.phase >= Phase.DECODING:
            self.ledger.kv_left(attempt)

    def _instance_down(self, event: InstanceDown, effects: list[Effect]) -> bool:
        instance = self.ledger.instances.get(event.instance_id)
        if instance is None or not instance.up:
            return False
        self.ledger.down(instance)
        self._topologies.clear()
        for attempt in self.ledger.held_by(instance):
            self._lose(attempt, "INSTANCE_DOWN", effects)
        return True

    def _look_for_stuck(self, now_us: int, effects: list[Effect]) -> None:
        """Retry attempts of which nothing was heard for too long, away from where they got stuck."""
        for attempt in list(self.ledger.attempts.values()):
            if attempt.give_up_us <= now_us:
                culprit = attempt.decode if attempt.phase >= Phase.PREFILLED else attempt.prefill
                culprit.suspect_until_us = now_us + self._profile.suspect_us
                self._lose(attempt, "STUCK", effects)
        for instance in self.ledger.instances.values():
            if instance.suspect_until_us and instance.suspect_until_us <= now_us:
                instance.suspect_until_us = 0
                self._topologies.clear()
        if effects:
            self._topologies.clear()

    def _stuck_us(self, attempt: Attempt, finish_us: int, now_us: int) -> int:
        """When to give up: far behind the predicted finish of the longest output the call may have, in a full batch."""
        step_us = attempt.decode.decode_step_us(self.estimator, attempt.decode.spec.max_batch, 0)
        longest_us = finish_us - now_us + attempt.call.max_tokens * step_us
        return now_us + self._profile.stuck_factor * longest_us + self._profile.stuck_us

    def _cordon(self, event: InstanceCordoned) -> bool:
        instance = self.ledger.instances.get(event.instance_id)
        if instance is None:
            raise NotFound(f"no instance {event.instance_id!r}", reason="UNKNOWN_INSTANCE", field="instance_id")
        instance.cordoned = event.cordoned
        self._topologies.clear()
        return True

    # --- planning ---------------------------------------------------------------------------------------------
    def _plan(self, now_us: int, effects: list[Effect]) -> None:
        queues = [(model, waiting) for model, waiting in self.waiting.items() if waiting]
        if not queues:
            return
        changed = self.ledger.changes()
        for topology in self._topologies.values():
            topology.books.update(changed)
        for model, waiting in queues:
            plan = self._planned(self.policy, model, now_us)
            for shadow in self._shadows:
                other = self._planned(shadow, model, now_us)
                if _choices(other) != _choices(plan):
                    effects.append(Shadowed(shadow.name, now_us, _choices(plan), _choices(other)))
            if plan.starved:
                self._starved.add(model)
            else:
                self._starved.discard(model)
            count = len(waiting)
            for decision in plan.decisions:
                self._dispatch(decision, count, now_us, effects)

    def _planned(self, policy: Policy, model: str, now_us: int) -> Plan:
        topology = self._topology(model, policy.dispatcher.local_prefill)
        if not topology.prefill or not topology.decode:
            return Plan()
        return policy.dispatcher.plan(policy.order, topology, self.waiting[model], now_us)

    def _topology(self, model: str, local_prefill: bool) -> Topology:
        topology = self._topologies.get((model, local_prefill))
        if topology is None:
            topology = Topology(*self.ledger.pool(model, local_prefill), self.estimator)
            self._topologies[model, local_prefill] = topology
            topology.books.update(())
        return topology

    def _dispatch(self, decision: Decision, waiting: int, now_us: int, effects: list[Effect]) -> None:
        placed, score = decision.placed, decision.score
        call, chosen = placed.call, placed.chosen
        call.attempts += 1
        ticket = Ticket(call.call_id, call.attempts, self.epoch)
        reserve = placed.decode.kv_tokens_of(call) - call.prompt_tokens
        attempt = Attempt(ticket, call, placed.prefill, placed.decode, reserve)
        self._dequeue(call)
        self._attempts[call.call_id] = attempt
        self.ledger.dispatched(attempt, chosen.prefill_end_us, placed.transfer_us)
        attempt.give_up_us = self._stuck_us(attempt, chosen.finish_us, now_us)
        place = (decision.position, waiting)
        record = self._record(DecisionKind.DISPATCH, attempt, chosen, placed.others, score, place, now_us)
        effects.append(
            Dispatch(ticket, chosen.prefill_instance, chosen.decode_instance, reserve, score, record.sequence)
        )
        effects.append(Record(record))

    def _record(
        self,
        kind: DecisionKind,
        attempt: Attempt,
        chosen: Candidate,
        others: tuple[Candidate, ...],
        score: int,
        place: tuple[int, int],
        now_us: int,
    ) -> DecisionRecord:
        self._sequence += 1
        call = attempt.call
        return DecisionRecord(
            sequence=self._sequence,
            at_us=now_us,
            kind=kind,
            policy=self.policy.name,
            ticket=attempt.ticket,
            chosen=chosen,
            others=others,
            key=(score, call.ready_us),
            position=place[0],
            waiting=place[1],
            age_us=now_us - call.workflow.arrival_us,
            horizon_us=call.workflow.horizon_us,
            prompt_tokens=call.prompt_tokens,
            predicted_output_tokens=call.output_q50,
            reserve_output_tokens=attempt.reserve_output_tokens,
            snapshot_revision=self.estimator.snapshot.revision,
        )


def _choices(plan: Plan) -> tuple[Choice, ...]:
    return tuple(
        Choice(d.placed.call.call_id, d.placed.chosen.prefill_instance, d.placed.chosen.decode_instance)
        for d in plan.decisions
    )


def _precedence(held: HeldTicket) -> tuple[int, int, int, bool, str]:
    """Whose word counts about a call that several agents hold: the latest attempt's, there the furthest one's.

    Between the two sides of a hand-off that of the prefill side, which names both instances.
    """
    ticket = held.ticket
    return ticket.attempt, ticket.epoch, held.phase, held.instance_id != held.decode_instance, held.instance_id


def _succeeded(outcome: CallOutcome, attempt: Attempt) -> bool:
    ticket = attempt.ticket
    succeeded = outcome.status is NodeStatus.SUCCEEDED
    return succeeded and (outcome.call, outcome.attempt) == (ticket.call, ticket.attempt)


def _cancel(attempt: Attempt, reason: str) -> CancelAttempt:
    return CancelAttempt(attempt.ticket, attempt.prefill.spec.instance_id, attempt.decode.spec.instance_id, reason)
