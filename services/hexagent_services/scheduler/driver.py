"""Drives the scheduler core: every input goes in at one place, every effect comes out at one place."""

import logging

from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Bind, CancelAttempt, ChangeRole, Dispatch, Effect, Record, Refuse, Shadowed
from hexagent.core.scheduling.events import InstanceCordoned, InstanceFlip, SchedulerEvent
from hexagent.core.workflow.model import SegmentRef
from hexagent.runtime.clock import Clock
from hexagent.runtime.journal import JournalWriter
from hexagent.wire.worker import BindCommand, Command, CordonCommand, attempt_of, dispatch_of
from hexagent_services.scheduler.outbox import Outboxes
from hexagent_services.scheduler.publisher import Publisher
from hexagent_services.scheduler.traces import Traces

log = logging.getLogger(__name__)


class Driver:
    """`handle` is the only way into the core; it does not wait, so events keep their order."""

    def __init__(
        self,
        core: SchedulerCore,
        clock: Clock,
        outboxes: Outboxes,
        publisher: Publisher,
        journal: JournalWriter,
        traces: Traces,
    ) -> None:
        self.core = core
        self.events = 0  # handled
        self.decisions = 0  # made of them
        self._journal = journal
        self._clock = clock
        self._outboxes = outboxes
        self._publisher = publisher
        self._traces = traces

    def handle(self, event: SchedulerEvent, now_us: int | None = None, stored: bytes = b"") -> None:
        """Feed one event; `now_us` is given only where stored events are caught up with, `stored` is a workflow event
        as its stream keeps it, for the journal."""
        now_us = self._clock.now_us() if now_us is None else now_us
        self._journal.append(event, now_us, stored)
        self.events += 1
        for effect in self.core.handle(event, now_us):
            self._perform(effect, now_us)

    def cordon(self, instance_id: str, cordoned: bool) -> None:
        """Close an instance of the ledger to new calls or open it; its agent remembers for the next scheduler."""
        self.handle(InstanceCordoned(instance_id, cordoned, self._clock.now_us()))
        self._send(instance_id, CordonCommand(instance_id, cordoned))

    def flip(self, instance_id: str, role: Role) -> None:
        """An instance of the ledger shall have `role` once it holds nothing."""
        self.handle(InstanceFlip(instance_id, role, self._clock.now_us()))

    def _perform(self, effect: Effect, now_us: int) -> None:
        match effect:
            case Dispatch():
                self._dispatch(effect, now_us)
            case Bind():
                self._send(effect.prefill_instance, BindCommand(effect, self._address(effect.decode_instance)))
            case CancelAttempt():
                agents = (self._agent(effect.prefill_instance), self._agent(effect.decode_instance))
                for agent_id in dict.fromkeys(agents):
                    self._outboxes.put(agent_id, effect)
            case ChangeRole():
                log.info("%s shall be a %s instance", effect.instance_id, effect.role.name.lower())
                self._send(effect.instance_id, effect)
            case Refuse():
                self._publisher.outcome(effect.outcome)
            case Record():
                self._journal.append(effect.record, now_us)
                self._publisher.record(effect.record)
                self.decisions += 1
            case Shadowed():
                self._publisher.shadowed(effect)

    def _dispatch(self, effect: Dispatch, now_us: int) -> None:
        call_id = effect.ticket.call
        graph = self.core.projection.workflows[call_id.workflow_id].graph
        spec = graph.node(call_id.node_id).spec.call
        assert spec is not None
        outputs: dict[str, SegmentRef] = {}
        for segment in spec.segments:
            if segment.output_of:
                outcome = graph.node(segment.output_of).outcome
                assert outcome is not None  # a prompt may only hold outputs of calls it waits for
                outputs[segment.output_of] = outcome.output
        attempt = attempt_of(
            effect,
            spec,
            outputs=outputs,
            tenant=graph.spec.tenant,
            workflow_class=graph.spec.workflow_class,
            trace_context=self._traces.of(call_id),
            now_us=now_us,
        )
        self._send(effect.prefill_instance, dispatch_of(effect, attempt, self._address(effect.decode_instance)))

    def _send(self, instance_id: str, command: Command) -> None:
        self._outboxes.put(self._agent(instance_id), command)

    def _agent(self, instance_id: str) -> str:
        return self.core.ledger.instances[instance_id].spec.agent_id

    def _address(self, instance_id: str) -> str:
        return self.core.ledger.instances[instance_id].spec.address if instance_id else ""
