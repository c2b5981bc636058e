"""Residual times of the workflows that run: foreseen when a call is dispatched, kept for who asks."""

from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from hexagent.core.errors import NotFound
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.scheduling.foresight import Foresight
from hexagent.core.scheduling.projection import Projection
from hexagent.core.scheduling.record import DecisionKind, DecisionRecord
from hexagent.core.workflow.events import NodesRevealed, WorkflowEvent, WorkflowFinished

WAITING_MAX: Final = 8_192  # dispatches ahead of their events; the oldest go


class Residual(NamedTuple):
    """From a call's dispatch to the end of its workflow."""

    call: CallId  # of the workflow's the one that was dispatched last
    dispatched_at_us: int
    us: tuple[int, ...]  # at `PERCENTS`, alone on the cluster


class Residuals:
    """Events and decisions come from different processes; they are taken in by their time, a while later."""

    def __init__(self, cluster: ClusterSpec, estimator: Estimator) -> None:
        self._projection = Projection(estimator)
        self._foresight = Foresight(self._projection)
        self._gpus = {spec.instance_id: spec.gpu_type for spec in cluster.instances}
        self._events: deque[WorkflowEvent] = deque()
        self._dispatches: deque[DecisionRecord] = deque(maxlen=WAITING_MAX)
        self._early: dict[CallId, DecisionRecord] = {}  # of calls that are not known
        self._latest: dict[str, Residual] = {}  # by workflow

    def observe(self, event: WorkflowEvent) -> None:
        """What happened next."""
        self._events.append(event)

    def decided(self, record: DecisionRecord) -> None:
        """What the scheduler did next; only dispatches count."""
        if record.kind is DecisionKind.DISPATCH:
            self._dispatches.append(record)

    def advance(self, until_us: int) -> None:
        """Take in what happened until then: all of it has been heard."""
        while self._events and self._events[0].at_us <= until_us:
            event = self._events.popleft()
            self._foresee_until(event.at_us - 1)
            self._apply(event)
        self._foresee_until(until_us)

    def _apply(self, event: WorkflowEvent) -> None:
        with self._foresight.learning(event):
            self._projection.apply(event, event.at_us)
        if isinstance(event, WorkflowFinished):
            self._latest.pop(event.workflow_id, None)
        elif isinstance(event, NodesRevealed) and self._early:
            for spec in event.nodes:  # by clocks of two machines a call may be dispatched before it is revealed
                record = self._early.pop(CallId(event.workflow_id, spec.node_id), None)
                if record is not None:
                    self._foresee(record)

    def price_anew(self) -> None:
        """The estimator has learned."""
        self._projection.price_anew()

    def of(self, workflow_id: str) -> Residual | None:
        """None while too little is known of the workflow's class. `NotFound` if it does not run."""
        if workflow_id not in self._projection.workflows:
            raise NotFound(
                f"workflow {workflow_id!r} does not run: it is unknown, or has ended",
                reason="UNKNOWN_WORKFLOW",
                field="workflow_id",
            )
        return self._latest.get(workflow_id)

    def newest(self, most: int) -> list[Residual]:
        """Of all workflows that run, those first that are known the shortest."""
        return list(islice(reversed(self._latest.values()), most))

    def _foresee_until(self, until_us: int) -> None:
        while self._dispatches and self._dispatches[0].at_us <= until_us:
            self._foresee(self._dispatches.popleft())

    def _foresee(self, record: DecisionRecord) -> None:
        call_id, chosen = record.ticket.call, record.chosen
        call = self._projection.find(call_id)
        if call is None:
            self._early[call_id] = record
            if len(self._early) > WAITING_MAX:
                del self._early[next(iter(self._early))]
            return
        gpus = (self._gpus.get(chosen.prefill_instance, ""), self._gpus.get(chosen.decode_instance, ""))
        us = self._foresight.dispatched(call, gpus)
        if us is not None:
            self._latest[call_id.workflow_id] = Residual(call_id, record.at_us, us)
