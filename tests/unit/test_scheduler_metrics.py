"""What the scheduler's metrics say of instances."""

from opentelemetry.metrics import NoOpMeterProvider
from prometheus_client import CollectorRegistry

from hexagent.core.instance.spec import FlipWay, Role, RoleFlip
from hexagent.core.scheduling.events import InstanceFlip, InstanceUp
from hexagent.runtime.clock import ModelClock
from hexagent.runtime.metrics import Metrics
from hexagent_services.scheduler.metrics import ClusterMetrics
from hexagent_services.scheduler.reported import Reports
from tests.sim.cases import Desk, decodes, prefills


def test_an_instance_that_has_changed_its_role_is_counted_once() -> None:
    desk = Desk(tuple(s._replace(flip=RoleFlip(FlipWay.MIX, 0)) for s in prefills("h100", "h100") + decodes("h100")))
    registry = CollectorRegistry()
    metrics = Metrics(NoOpMeterProvider().get_meter("test"), registry)
    shown = ClusterMetrics(metrics, desk.core, Reports(), ModelClock(0))
    desk.start("w")
    desk.reveal("w", "a")
    (dispatch,) = desk.dispatched
    instance_id = dispatch.prefill_instance
    shown.refresh()
    desk.run(dispatch)
    desk.tell(InstanceFlip(instance_id, Role.DECODE, 0))
    desk.tell(InstanceUp(desk.core.ledger.instances[instance_id].spec._replace(role=Role.DECODE), (), 0))
    shown.refresh()
    samples = [s for metric in registry.collect() for s in metric.samples if instance_id in s.labels.values()]
    said = {(s.name, s.labels.get("hexagent_role")): s.value for s in samples}
    assert said == {
        ("hexagent_instance_up", "prefill"): 0,
        ("hexagent_instance_up", "decode"): 1,
        ("hexagent_instance_flips", None): 1,
        ("hexagent_instance_kv_pinned_tokens", None): 0,
    }
