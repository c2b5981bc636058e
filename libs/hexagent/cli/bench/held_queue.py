"""A scheduler whose queue is held at one length: what starts is replaced, and what runs goes as was predicted."""

from collections import Counter
from collections.abc import Sequence
from heapq import heappop, heappush
from time import process_time_ns
from typing import Final

from hexagent.core.ids import Ticket
from hexagent.core.instance.io import PrefixSegment, salt
from hexagent.core.instance.spec import ClusterSpec, Role
from hexagent.core.policy.registry import is_aggregated
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Record
from hexagent.core.scheduling.events import CallProgress, InstanceUp, Phase, SchedulerEvent, Started, Tick
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.workflow.events import CallFinished, NodesRevealed, WorkflowFinished, WorkflowStarted
from hexagent.core.workflow.model import (
    CallOutcome,
    CallSpec,
    NodeKind,
    NodeSpec,
    NodeStatus,
    SegmentRef,
    WorkflowSpec,
    WorkflowStatus,
)
from hexagent.sim.clusters import aggregated
from hexagent.sim.workloads.model import WorkItem

WORKFLOW_CALLS: Final = 8  # of each workflow, which depend on nothing


class HeldQueue:
    """Calls have the sizes of `items`, over and over; output lengths are hinted, not learned.

    Where engines cache prefixes, what stands in a prompt before its last segment is held by one prefill and one decode
    instance as its workflow's last call left it, the same ones for all calls of a workflow.
    """

    def __init__(self, cluster: ClusterSpec, policy: str, items: Sequence[WorkItem], ready_calls: int) -> None:
        if is_aggregated(policy):
            cluster = aggregated(cluster)
        self.core = SchedulerCore(cluster, policy)
        self._items, self._model, self._ready_calls = items, cluster.models[0], ready_calls
        self._now_us = 0
        self._revealed = 0
        self._left: dict[str, int] = {}  # calls that have not ended, by workflow
        self._due: list[tuple[int, int, Phase, Ticket]] = []  # heap; the second keeps equal times in order of dispatch
        self._dispatched = 0
        self._prefill_of: dict[Ticket, str] = {}  # of calls in prefill
        self._prefilling = Counter[str]()  # calls by instance
        self._idle = {spec.instance_id for spec in cluster.instances if spec.role is not Role.DECODE}
        self._prefills = frozenset(self._idle)  # those that may be in it
        self._times_ns: list[int] = []
        self._caching = {
            role: [spec.instance_id for spec in cluster.instances if spec.prefix_cache and spec.role is role]
            for role in (Role.PREFILL, Role.DECODE)
        }
        for spec in cluster.instances:
            self._handle(InstanceUp(spec, (), 0))
        self._refill()
        self._handle(Started(1, 0))
        self._refill()
        while self._handle(Tick(0)):
            self._refill()

    def decide(self, count: int) -> list[int]:
        """CPU nanoseconds of the next `count` decisions: events at which a call might start on an idle instance."""
        self._times_ns.clear()
        while len(self._times_ns) < count:
            self._now_us, _, phase, ticket = heappop(self._due)
            if phase is Phase.PREFILLED:
                instance_id = self._prefill_of.pop(ticket)
                self._prefilling[instance_id] -= 1
                if not self._prefilling[instance_id] and instance_id in self._prefills:
                    self._idle.add(instance_id)
            self._handle(CallProgress(ticket, phase, "", self._now_us), phase is Phase.PREFILLED)
            if phase is Phase.ENDED:
                self._end(ticket)
            self._refill()
        return self._times_ns[:count]

    def _handle(self, event: SchedulerEvent, may_start: bool = False) -> bool:
        """Whether anything was dispatched; `may_start` where the event asks for a plan, the queue at its length."""
        decides = may_start and bool(self._idle)
        began_ns = process_time_ns()
        effects = self.core.handle(event, self._now_us)
        if decides:
            self._times_ns.append(process_time_ns() - began_ns)
        for effect in effects:
            if isinstance(effect, Record):
                self._follow(effect.record)
        return bool(effects)

    def _follow(self, record: DecisionRecord) -> None:
        """A call started: its phases end as they are predicted to."""
        ticket, chosen = record.ticket, record.chosen
        self._prefill_of[ticket] = chosen.prefill_instance
        self._idle.discard(chosen.prefill_instance)
        self._prefilling[chosen.prefill_instance] += 1
        self._dispatched += 1
        for phase, at_us in (
            (Phase.PREFILLED, chosen.prefill_end_us),
            (Phase.DECODING, chosen.transfer_end_us),
            (Phase.ENDED, chosen.finish_us),
        ):
            heappush(self._due, (at_us, self._dispatched, phase, ticket))

    def _refill(self) -> None:
        """Calls that are ready at once, until the queue has its length again."""
        while (missing := self._ready_calls - sum([len(waiting) for waiting in self.core.waiting.values()])) > 0:
            number, place = divmod(self._revealed, WORKFLOW_CALLS)
            workflow_id = f"w{number}"
            if not place:
                self._left[workflow_id] = WORKFLOW_CALLS
                self._handle(WorkflowStarted(WorkflowSpec(workflow_id, "default", "held"), self._now_us))
            again, at = divmod(self._revealed, len(self._items))
            item = self._items[at]
            self._revealed += 1
            prompt = tuple([SegmentRef(f"{again}/{segment.name}", segment.tokens) for segment in item.segments])
            self._hold(prompt[:-1], number)
            call = CallSpec(
                self._model, prompt, item.prompt_tokens, item.max_tokens, expected_output_tokens=item.output_tokens
            )
            node = NodeSpec(f"c{place}", NodeKind.CALL, "worker", (), call=call)
            self._handle(NodesRevealed(workflow_id, (node,), self._now_us), missing == 1)

    def _hold(self, said: tuple[SegmentRef, ...], number: int) -> None:
        """What was said before in workflow `number` is where its last call was."""
        chain = (salt("default", self._model, ""), *[PrefixSegment(ref.digest, ref.tokens) for ref in said])
        for names in self._caching.values():
            if names:
                cache = self.core.ledger.instances[names[number % len(names)]].cache
                assert cache is not None
                cache.keep(chain, sum([ref.tokens for ref in said]))

    def _end(self, ticket: Ticket) -> None:
        """The tracker tells of the call's end, and of its workflow's."""
        outcome = CallOutcome(ticket.call, ticket.attempt, NodeStatus.SUCCEEDED)
        self._handle(CallFinished(outcome, self._now_us))
        workflow_id = ticket.call.workflow_id
        self._left[workflow_id] -= 1
        if not self._left[workflow_id]:
            del self._left[workflow_id]
            self._handle(WorkflowFinished(workflow_id, WorkflowStatus.COMPLETED, self._now_us))
