"""What `hexagent top` makes of two looks at a stack."""

from rich.console import Console

from hexagent.cli.top import View, drawn, view_of
from hexagent.client.cluster_views import ClusterView, InstanceView, ReportedView, TenantView
from hexagent.client.overview import Overview, Residuals, ResidualTime
from hexagent.client.views import WorkflowSummary
from hexagent.core.estimate.calibration import CalibrationRow
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.spec import Lora, Role
from hexagent.core.units import PPM, US_PER_S
from hexagent.core.workflow.model import WorkflowStatus
from hexagent.wire.telemetry import DeviceSample, FailedLink, Links
from tests.sim.cases import decodes


def workflow(name: str, *, slo_scale: float = 0.0, deadline: float = 0.0) -> WorkflowSummary:
    """Twenty seconds old in model time and ten in wall time, with a horizon of eight."""
    running = WorkflowStatus.RUNNING
    return WorkflowSummary(name, "t", "c", running, "", 0, slo_scale, deadline, 1_000.0, 20.0, 8.0, 3, 1, 0, {})


def cluster(at_s: int, tokens: int, *, epoch: int = 1, stale: bool = False, wanted: Role | None = None) -> ClusterView:
    """One instance with two GPUs, of which one does not say what it draws."""
    devices = tuple(
        DeviceSample(use, 60, 80, watts, celsius, None, reasons)
        for celsius, watts, use, reasons in ((50, 300, 100.0, 0x04), (70, None, 50.0, 0x24))
    )
    load = InstanceLoad(
        1, 10, (at_s - 3) * US_PER_S, 0, 0, 0, 2, 0, kv_used_blocks=50, kv_cached_blocks=0, kv_free_blocks=0
    )
    links = Links(3, 1, (FailedLink("d-a100-0", "KV_LOST_TIMEOUT"),), 90_000)
    steps = tokens // 10, tokens * 1_000
    sampled_at_us = (at_s - 1) * US_PER_S
    reported = ReportedView(load, 400_000, stale, 300, 100, tokens, *steps, devices, 80, 60, sampled_at_us, links)
    spec = decodes("h100")[0]._replace(kv_blocks=200)
    instance = InstanceView(
        spec, True, "", False, wanted, 0, reported, 0, (at_s + 2) * US_PER_S, 0, 0, PPM, 1_250_000, None, False
    )
    tenants = (TenantView("b", 2, 4, 5_000_000),)
    return ClusterView("fcfs", epoch, at_s * US_PER_S, 4, 0, 0, tokens, 0, (instance,), tenants)


def viewed(now: ClusterView, *workflows: WorkflowSummary, residuals: Residuals = None) -> View:
    """Five seconds of wall time and ten of model time after a first look."""
    estimates = (CalibrationRow("tool", "x", 7, 900_000, 0, 0, 0),)
    before = Overview(cluster(90, 1_000), (), None, None, 1_005.0)
    return view_of(before, Overview(now, workflows, estimates, residuals, 1_010.0))


def test_rates_are_of_the_time_between_two_looks() -> None:
    (row,) = viewed(cluster(100, 3_000)).instances
    assert (row["generated_tokens_per_s"], row["prefilled_tokens_per_s"], row["step_ms"]) == (200.0, 0.0, 10.0)
    assert (row["reuse_percent"], row["kv_used_percent"], row["queue_age_s"]) == (75.0, 25.0, 3.0)
    assert (row["transfer_backlog_s"], row["accepted_percent"], row["sample_age_s"]) == (2.0, 75.0, 1.0)
    assert (row["decode_time_factor"], row["telemetry_age_wall_s"], row["state"]) == (1.25, 0.4, "up")
    assert (row["temperature_celsius"], row["power_watts"], row["sm_clock_mhz"]) == (70, 300, None)
    assert (row["device_memory_percent"], row["device_utilization_percent"]) == (75.0, 75.0)
    assert row["clock_held_by"] == "sw_power_cap, sw_thermal_slowdown"
    assert (row["links_warm"], row["links_cold"], row["links_failure"]) == (3, 1, "d-a100-0: KV_LOST_TIMEOUT")
    assert viewed(cluster(100, 3_000)).cluster["events_per_s"] == 400.0


def test_an_instance_that_gets_another_role_says_which() -> None:
    (row,) = viewed(cluster(100, 3_000, wanted=Role.PREFILL)).instances
    assert (row["role"], row["state"]) == ("decode", "to prefill")


def test_a_scheduler_that_began_again_has_counted_from_nothing() -> None:
    view = viewed(cluster(100, 500, epoch=2, stale=True))
    assert view.cluster["events_per_s"] is None
    assert view.instances[0]["generated_tokens_per_s"] is None
    assert view.instances[0]["state"] == "stale"


def test_workflows_with_the_least_time_left_come_first() -> None:
    free, late, due = workflow("free"), workflow("late", slo_scale=2.0), workflow("due", deadline=1_009.0)
    rows = viewed(cluster(100, 0), free, late, due).workflows
    # Half a second of wall time is one of model time: the deadline is 18 s after the start.
    assert [(row["workflow"], row["laxity_s"]) for row in rows] == [("late", -4.0), ("due", -2.0), ("free", None)]
    assert rows[0]["stretch"] == 2.5


def test_a_workflow_says_when_it_ends_where_that_is_known() -> None:
    known = {"told": ResidualTime("c3", 98_000_000, 1_000_000, 31_000_000, 50_000_000)}
    view = viewed(cluster(100, 0), workflow("told"), workflow("new"), residuals=known)
    ends = [(row["foreseen_at_call"], row["ends_in_s"], row["ends_in_90_percent_s"]) for row in view.workflows]
    assert ends == [(None, None, None), ("c3", 0.0, 29.0)]
    assert "90 %: s" in drawn_text(view)
    assert "90 %: s" not in drawn_text(viewed(cluster(100, 0), workflow("told")))


def drawn_text(view: View) -> str:
    console = Console(width=180)
    with console.capture() as capture:
        console.print(drawn(view))
    return capture.get()


def test_every_row_is_written_with_its_table_and_drawn_without_what_nobody_says() -> None:
    view = viewed(cluster(100, 3_000), workflow("w"))
    tables = [row["table"] for row in view.rows()]
    assert tables == ["cluster", "instance", "workflow", "tenant", "estimate"]
    console = Console(width=140)
    with console.capture() as capture:
        console.print(drawn(view, "the stack is away"))
    text = capture.get()
    assert "the stack is away" in text
    assert "tables alone (degraded)" in text
    assert "MHz" not in text
    assert "-10.00" in text  # the bias, percent


def test_what_instances_serve_is_told_where_they_differ() -> None:
    now = cluster(100, 3_000)
    (one,) = now.instances
    other = one._replace(
        spec=one.spec._replace(instance_id="d1", model="other", precision="fp8", loras=(Lora("sql", 16),))
    )
    shown = []
    for instances in ((one,), (one, other)):
        console = Console(width=140)
        with console.capture() as capture:
            console.print(drawn(viewed(now._replace(instances=instances))))
        shown.append(capture.get())
    assert "What they serve" not in shown[0]
    assert all(word in shown[1] for word in ("What they serve", "other", "fp8", "sql"))
