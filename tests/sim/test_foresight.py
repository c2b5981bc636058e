"""What the estimator service says of workflows is what `bench estimator` measures."""

from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.scheduling.effects import Dispatch, Effect, Record
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.foresight import Foresight
from hexagent.core.workflow.events import WorkflowEvent
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World
from hexagent_services.estimator.residuals import Residuals


class Both:
    """The foresight beside the scheduler, and the service's with the same estimates, events and decisions."""

    def __init__(self, world: World) -> None:
        self._core = world.scheduler
        self._foresight = Foresight(self._core.projection)
        self._residuals = Residuals(named_cluster("mixed-3"), self._core.estimator)
        self._handle = world.handle
        world.handle = self
        self.same = 0

    def __call__(self, event: SchedulerEvent, now_us: int) -> tuple[Effect, ...]:
        with self._foresight.learning(event):
            effects = self._handle(event, now_us)
        if isinstance(event, Snapshot):
            self._residuals.price_anew()
        elif isinstance(event, WorkflowEvent):
            self._residuals.observe(event)
        for effect in effects:
            if isinstance(effect, Record):
                self._residuals.decided(effect.record)
        self._residuals.advance(now_us)
        foreseen = {}
        for effect in effects:
            if isinstance(effect, Dispatch):
                attempt = self._core.ledger.attempts[effect.ticket]
                gpus = attempt.prefill.spec.gpu_type, attempt.decode.spec.gpu_type
                foreseen[effect.ticket.call.workflow_id] = self._foresight.dispatched(attempt.call, gpus)
        for workflow_id, us in foreseen.items():
            known = self._residuals.of(workflow_id)
            assert us == (known.us if known is not None else None)
            self.same += us is not None
        return effects


def test_the_service_answers_what_the_bench_judges() -> None:
    workload = generate("bfcl", Options(workflows=60, rate_per_s=2, seed=3))
    world = World(named_cluster("mixed-3"), workload, "hexagent", 1)
    both = Both(world)
    world.run()
    assert both.same > 100
