"""What running workflows still take, foreseen whenever a call of theirs is dispatched.

The one place that feeds `ResidualTimes` from a projection: beside a simulated scheduler, whose predictions are judged,
and in the estimator, which answers by them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from hexagent.core.estimate.residual import Guess, ResidualTimes
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.projection import Projection
from hexagent.core.workflow.events import NodesRevealed, WorkflowFinished
from hexagent.core.workflow.model import WorkflowStatus


class Foresight:
    """Of the workflows of a projection."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self._times = ResidualTimes()

    def dispatched(self, call: Call, gpus: tuple[str, ...]) -> tuple[int, ...] | None:
        """From the call's start to the end of its workflow, alone on the cluster, in microseconds at `PERCENTS`; None
        while too little is known of the class. `gpus` are the types that prefill and decode the call."""
        workflow, workflow_id = call.workflow, call.call_id.workflow_id
        ahead = self._projection.work.levels_ahead(workflow.trail, workflow.horizon_us)
        if ahead is None:
            return None
        chances, level_us = ahead
        name, start_us = workflow.graph.spec.workflow_class, workflow.horizon.start_us(call.index)
        guess = Guess(name, call.role, gpus, workflow.trail.depth, start_us, workflow.horizon_us, level_us)
        mixture = self._times.mixture(guess, chances)
        quantiles = self._times.quantiles(guess, mixture)
        self._times.expect(workflow_id, guess, mixture)
        return quantiles

    @contextmanager
    def learning(self, event: SchedulerEvent) -> Iterator[None]:
        """To be entered before the projection takes in an event, and left when it has."""
        if not isinstance(event, NodesRevealed | WorkflowFinished):
            yield
            return
        workflow = self._projection.workflows.get(event.workflow_id)
        if workflow is None:
            yield
            return
        depth, horizon_us = workflow.trail.depth, workflow.horizon_us
        if isinstance(event, WorkflowFinished):
            if event.status is WorkflowStatus.COMPLETED:
                self._times.completed(event.workflow_id, depth, horizon_us)
            self._times.forget(event.workflow_id)
        yield
        if workflow.trail.depth > depth:
            self._times.goes_on(event.workflow_id, horizon_us)
