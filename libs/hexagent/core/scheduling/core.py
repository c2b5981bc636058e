"""The scheduler core: events in, dispatches, cancels and decision records out."""

from typing import Final

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
from hexagent.core.policy.weighing import AgeingFloor, WeighedOrder
from hexagent.core.scheduling.admission import Admission
from hexagent.core.scheduling.adoption import Adoption
from hexagent.core.scheduling.balance import Balance
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.decision_log import DecisionLog
from hexagent.core.scheduling.effects import Bind, CancelAttempt, Dispatch, Effect, Record, Refuse
from hexagent.core.scheduling.events import (
    UNREACHABLE,
    CallProgress,
    InstanceCordoned,
    InstanceDown,
    InstanceFlip,
    InstanceUp,
    Phase,
    SchedulerEvent,
    Started,
    Tick,
)
from hexagent.core.scheduling.flips import Flips
from hexagent.core.scheduling.ledger import Attempt, Instance, Ledger, Mixing
from hexagent.core.scheduling.projection import Projection
from hexagent.core.scheduling.queue import ReadyQueue
from hexagent.core.scheduling.record import NOWHERE, Candidate, DecisionKind
from hexagent.core.scheduling.room import KeptRoom
from hexagent.core.scheduling.shadows import Shadows
from hexagent.core.scheduling.tenants import Tenants
from hexagent.core.workflow.events import CallFinished, WorkflowEvent
from hexagent.core.workflow.model import CallOutcome, NodeStatus

TICK_US: Final = 1_000_000  # how often a driver sends `Tick`: a plan that no event triggers is at most this late


class SchedulerCore:
    """Owns the projection, the ledger and the queue of ready calls of one cluster.

    Nothing is dispatched before `Started`, so that attempts which agents still hold are adopted, not repeated.
    The policies of `shadows` plan on the same state at one of `shadow_every` points where `policy` does, and only say
    what they would start. Only a simulation has an `oracle`.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        policy: str,
        profile: Profile = DEFAULT,
        shadows: tuple[tuple[str, Profile], ...] = (),
        oracle: Oracle | None = None,
        shadow_every: int = 1,
    ) -> None:
        self.estimator = Estimator(cluster, oracle)
        self.projection = Projection(self.estimator)
        self.ledger = Ledger(self.estimator)
        self.flips = Flips(self.ledger)
        self._balance = Balance(self.ledger, self.flips, self.estimator, profile.flip_us_max)
        self.epoch = 0  # 0 = not started
        self.tenants = Tenants(cluster, profile.tenant_lag_us)
        self.queue = ReadyQueue(self.tenants)
        self.waiting = self.queue.by_model
        self.admission = Admission(cluster, self.queue, self.tenants)
        self._floor = AgeingFloor(profile.ageing_us)
        self.policy = self._policy(policy, profile)
        self._log = DecisionLog(self.policy.name, self.estimator)
        self._profile = profile
        self.shadows = Shadows(tuple([self._policy(name, tuned) for name, tuned in shadows]), shadow_every)
        # By model, and what does both phases; until instances change.
        self._topologies: dict[tuple[str, Mixing], Topology] = {}
        self._attempts: dict[CallId, Attempt] = {}  # the live attempt of a call
        self._room = KeptRoom(self.ledger, self.queue, self.tenants, self._floor)
        self._adoption = Adoption(self.ledger, self.projection, self.queue, self._attempts, self._watch)
        self._starved: set[str] = set()  # models of which a call found no room for its KV in the last plan

    def _policy(self, name: str, profile: Profile) -> Policy:
        policy = policy_by_name(name, self.estimator, profile)
        order = WeighedOrder(policy.order, self.tenants, self.projection.with_terms, self._floor)
        return policy._replace(order=order)

    def handle(self, event: SchedulerEvent, now_us: int) -> tuple[Effect, ...]:
        """Take in one event and plan if it may have freed a slot or added a call."""
        effects: list[Effect] = []
        match event:
            case CallProgress():
                plan = self._progress(event, now_us, effects)
            case Telemetry():
                plan = False  # speeds and lengths arrive learned, as snapshots
            case Snapshot():
                self.estimator.update(event)
                self.projection.price_anew()
                plan = False
            case InstanceUp():
                plan = self._instance_up(event)
            case InstanceDown():
                plan = self._instance_down(event, now_us, effects)
            case InstanceCordoned():
                plan = self._cordon(event)
            case InstanceFlip():
                effects.append(self.flips.want(self._known(event.instance_id), event.role))
                self._topologies.clear()
                plan = True
            case Started():
                self.epoch = event.epoch
                self._adoption.start()
                plan = True
            case Tick():
                self.estimator.look_at_age(now_us, self._profile.snapshot_stale_us)
                self._look_for_stuck(now_us, effects)
                if self.epoch and (changes := self._balance.look(self.waiting, now_us)):
                    effects += changes
                    self._topologies.clear()
                plan = True
            case _:
                if isinstance(event, CallFinished):
                    self._count(event.outcome, now_us)
                change = self.projection.apply(event, now_us)
                freed = [self._forget(call, event, effects) for call in change.ended]
                for call in change.ready:
                    self._admit(call, now_us, effects)
                plan = bool(change.ready) or any(freed) or bool(change.ended and (self._starved or self.tenants.held))
        if self.epoch:
            effects += self.flips.due()
            if plan:
                self._plan(now_us, effects)
        return tuple(effects)

    # --- calls ------------------------------------------------------------------------------------------------
    def _admit(self, call: Call, now_us: int, effects: list[Effect]) -> None:
        """Let a ready call wait unless it runs already, or refuse it; before the start nothing is refused."""
        if call.call_id in self._attempts:
            return
        fresh = not call.attempts and not call.workflow.paused and call not in self.queue
        refused = self.admission.refusal(call, now_us) if self.epoch and fresh else None
        if refused is None:
            self.queue.add(call)
            return
        effects.append(Refuse(refused))
        attempt = Ticket(call.call_id, refused.attempt, self.epoch), call, 0
        record = self._log.record(DecisionKind.REFUSE, attempt, NOWHERE, (), 0, (0, self.queue.calls), now_us)
        effects.append(Record(record._replace(reason=refused.reason)))

    def _count(self, outcome: CallOutcome, now_us: int) -> None:
        """A call has ended: what it has used, and what of it stays in a cache."""
        call, attempt = self.projection.find(outcome.call), self._attempts.get(outcome.call)
        if call is not None:
            self.tenants.ended(call, outcome, now_us)
        if attempt is not None:
            self.ledger.output_stays(attempt, outcome.output)

    def _forget(self, call: Call, event: WorkflowEvent, effects: list[Effect]) -> bool:
        """The call has its outcome: free what it holds and stop an attempt that still runs; whether it held anything.

        The attempt whose success the event tells has ended by itself, and only its agent's report is still to come.
        """
        self.queue.remove(call)
        attempt = self._attempts.pop(call.call_id, None)
        if attempt is None or attempt.ticket not in self.ledger.attempts:
            return False
        self.ledger.ended(attempt, attempt.prefill_end_us)
        if not (isinstance(event, CallFinished) and _succeeded(event.outcome, attempt)):
            effects.append(_cancel(attempt, "CALL_ENDED"))
        return True

    def _lose(self, attempt: Attempt, reason: str, now_us: int, effects: list[Effect]) -> None:
        """Lost through no fault of the call: it waits again, at its old place, up to a number of times."""
        effects.append(_cancel(attempt, reason))
        self.ledger.ended(attempt, attempt.prefill_end_us)
        call = attempt.call
        if self._attempts.get(call.call_id) is not attempt:
            return
        del self._attempts[call.call_id]
        self.tenants.lost(call, now_us)
        if call.attempts < self._profile.attempts_max:
            self.queue.add(call)
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
    def _progress(self, event: CallProgress, now_us: int, effects: list[Effect]) -> bool:
        """Returns whether a call may start that could not before."""
        attempt = self.ledger.attempts.get(event.ticket)
        if attempt is None:
            return False
        match event.phase:
            case Phase.PREFILLED:
                self.ledger.prefilled(attempt, event.at_us, event.cached_tokens)
                attempt.phase = max(attempt.phase, Phase.PREFILLED)
                return not attempt.prefill.prefilling or attempt.prefill.profile.equal_progress
            case Phase.DECODING:
                self.ledger.kv_arrived(attempt, event.at_us)
                return attempt.call.model in self._starved
            case Phase.ENDED:
                freed = attempt.ticket in attempt.prefill.prefilling
                self.ledger.ended(attempt, event.at_us)
                return freed or attempt.call.model in self._starved
            case Phase.LOST:
                self._lose(attempt, event.reason, now_us, effects)
            case Phase.HAND_OFF_REFUSED:
                self._rebind(attempt, event, now_us, effects)
            case Phase.ACCEPTED:
                return False
        return True

    def _rebind(self, attempt: Attempt, event: CallProgress, now_us: int, effects: list[Effect]) -> None:
        """The decode side said no: under pull the best one that has not, else the attempt is lost.

        One whose agent does not answer has not said no: it may be back by the time that the others have.
        """
        if not event.reason.startswith(UNREACHABLE):
            attempt.refused_by += (attempt.decode,)
        _, decode = self.ledger.pool(attempt.call.model, needs=attempt.call.needs)
        kv_precision = attempt.prefill.spec.kv_precision
        others = [
            d
            for d in decode
            if d is not attempt.decode
            and d not in attempt.refused_by
            and d.spec.role is Role.DECODE
            and d.spec.kv_precision == kv_precision
            and d.kv_free_tokens >= attempt.kv_tokens
        ]
        if attempt.prefill.profile.hand_off is not HandOff.PULL or not others:
            self._lose(attempt, event.reason, now_us, effects)
            return
        call = attempt.call
        best = min(others, key=lambda d: d.decode_step_us(self.estimator, 1, call.mean_context))
        finish_us = event.at_us + call.output_q50 * best.decode_step_us(self.estimator, 1, call.mean_context)
        self.ledger.rebound(attempt, best)
        chosen = Candidate(
            attempt.prefill.spec.instance_id, best.spec.instance_id, 0, attempt.prefill_end_us, event.at_us, finish_us
        )
        booked = attempt.ticket, call, attempt.reserve_output_tokens
        record = self._log.record(DecisionKind.BIND, booked, chosen, (), 0, (0, 0), event.at_us)
        effects.append(Bind(attempt.ticket, chosen.prefill_instance, chosen.decode_instance, record.sequence))
        effects.append(Record(record))

    def _instance_up(self, event: InstanceUp) -> bool:
        known = event.spec.instance_id in self.ledger.instances
        instance = self.ledger.describe(event.spec)
        instance.draining = event.draining
        if not known:  # else what was said here since is newer than what its agent remembers
            instance.cordoned = event.cordoned
            if event.wanted_role is not None:
                self.flips.want(instance, event.wanted_role)
        self.flips.heard(instance)
        self._topologies.clear()
        self._adoption.hear(event.held, bool(self.epoch))
        return True

    def _instance_down(self, event: InstanceDown, now_us: int, effects: list[Effect]) -> bool:
        instance = self.ledger.instances.get(event.instance_id)
        was_up = instance is not None and instance.up
        if event.spec is not None:
            instance = self.ledger.describe(event.spec)
        if instance is None:
            return False
        self.ledger.down(instance, event.reason)
        if not was_up:
            return False
        self._topologies.clear()
        for attempt in self.ledger.held_by(instance):
            self._lose(attempt, "INSTANCE_DOWN", now_us, effects)
        return True

    def _look_for_stuck(self, now_us: int, effects: list[Effect]) -> None:
        """Retry attempts of which nothing was heard for too long, away from where they got stuck."""
        for attempt in list(self.ledger.attempts.values()):
            if attempt.give_up_us <= now_us:
                culprit = attempt.decode if attempt.phase >= Phase.PREFILLED else attempt.prefill
                culprit.suspect_until_us = now_us + self._profile.suspect_us
                self._lose(attempt, "STUCK", now_us, effects)
        for instance in self.ledger.instances.values():
            if instance.suspect_until_us and instance.suspect_until_us <= now_us:
                instance.suspect_until_us = 0
                self._topologies.clear()
        if effects:
            self._topologies.clear()

    def _watch(self, attempt: Attempt, finish_us: int, now_us: int) -> None:
        """Give it up far behind the predicted finish of the longest output the call may have, in a full batch."""
        step_us = attempt.decode.decode_step_us(self.estimator, attempt.decode.spec.max_batch, 0)
        longest_us = finish_us - now_us + attempt.call.max_tokens * step_us
        attempt.give_up_us = now_us + self._profile.stuck_factor * longest_us + self._profile.stuck_us

    def _cordon(self, event: InstanceCordoned) -> bool:
        self._known(event.instance_id).cordoned = event.cordoned
        self._topologies.clear()
        return True

    def _known(self, instance_id: str) -> Instance:
        instance = self.ledger.instances.get(instance_id)
        if instance is None:
            raise NotFound(f"no instance {instance_id!r}", reason="UNKNOWN_INSTANCE", field="instance_id")
        return instance

    # --- planning ---------------------------------------------------------------------------------------------
    def _plan(self, now_us: int, effects: list[Effect]) -> None:
        for model, waiting in self.waiting.items():
            while waiting and self._plan_queue(model, now_us, effects):
                pass

    def _plan_queue(self, model: str, now_us: int, effects: list[Effect]) -> bool:
        """Whether to plan again, as what starts now has changed which tenants may start calls."""
        waiting = self.waiting[model]
        self._room.hand_over(model)
        changed, count = self.ledger.changes(), len(waiting)
        for topology in self._topologies.values():
            topology.update(changed)
        self._look_at_tenants(model, now_us)
        held = self.tenants.held
        plan = self._planned(self.policy, model, now_us)
        effects += self.shadows.compared(plan, lambda policy: self._planned(policy, model, now_us), now_us)
        if self._room.keep(model, now_us) or plan.starved:
            self._starved.add(model)
        else:
            self._starved.discard(model)
        for decision in plan.decisions:
            if decision.placed.call.workflow.tenant in self.tenants.held:
                return True
            self._dispatch(decision, count, now_us, effects)
            self._look_at_tenants(model, now_us)
        return plan.again or self.tenants.held != held

    def _look_at_tenants(self, model: str, now_us: int) -> None:
        """Find who may start calls of `model`."""
        if self.tenants.counted:
            mixing = self.policy.dispatcher.mixing
            self.tenants.look(model, lambda call: self.ledger.could_hold(call, mixing), now_us)

    def _planned(self, policy: Policy, model: str, now_us: int) -> Plan:
        topology = self._topology(model, policy.dispatcher.mixing)
        if not topology.prefill or not topology.decode:
            return Plan()
        return policy.dispatcher.plan(policy.order, topology, self.waiting[model], now_us)

    def _topology(self, model: str, mixing: Mixing) -> Topology:
        topology = self._topologies.get((model, mixing))
        if topology is None:
            topology = Topology(*self.ledger.pool(model, mixing), self.estimator)
            self._topologies[model, mixing] = topology
            topology.update(())
        return topology

    def _dispatch(self, decision: Decision, waiting: int, now_us: int, effects: list[Effect]) -> None:
        placed, score = decision.placed, decision.score
        call, chosen = placed.call, placed.chosen
        call.attempts += 1
        ticket = Ticket(call.call_id, call.attempts, self.epoch)
        reserve = placed.decode.kv_tokens_of(call) - call.prompt_tokens
        attempt = Attempt(ticket, call, placed.prefill, placed.decode, reserve)
        self.queue.remove(call)
        self._attempts[call.call_id] = attempt
        prefill_us, beside = placed.beside_us or chosen.prefill_end_us - chosen.prefill_start_us, placed.beside_us > 0
        self.ledger.dispatched(attempt, chosen.prefill_end_us, placed.transfer_us, prefill_us, beside)
        self.tenants.dispatched(attempt, prefill_us, self.estimator, now_us)
        self._floor.started(call, self.waiting[call.model].calls)
        self._watch(attempt, chosen.finish_us, now_us)
        place = (decision.position, waiting)
        booked = ticket, call, reserve
        record = self._log.record(DecisionKind.DISPATCH, booked, chosen, placed.others, score, place, now_us)
        effects.append(
            Dispatch(ticket, chosen.prefill_instance, chosen.decode_instance, reserve, score, record.sequence)
        )
        effects.append(Record(record))


def _succeeded(outcome: CallOutcome, attempt: Attempt) -> bool:
    ticket = attempt.ticket
    succeeded = outcome.status is NodeStatus.SUCCEEDED
    return succeeded and (outcome.call, outcome.attempt) == (ticket.call, ticket.attempt)


def _cancel(attempt: Attempt, reason: str) -> CancelAttempt:
    return CancelAttempt(attempt.ticket, attempt.prefill.spec.instance_id, attempt.decode.spec.instance_id, reason)
