"""Rows of `hexagent top`: flat, with units; times are model time unless they say wall."""

from collections.abc import Sequence
from statistics import mean
from typing import Final

from hexagent.cli.report import Row, Value
from hexagent.client.cluster_views import ClusterView, InstanceView, ReportedView
from hexagent.client.overview import Overview, Residuals
from hexagent.client.views import WorkflowSummary
from hexagent.core.units import PPM, US_PER_MS, US_PER_S
from hexagent.wire.telemetry import DeviceSample

_PERCENT_PPM: Final = PPM // 100
_ENDS: Final = ("foreseen_at_call", "foreseen_ago_s", "ends_in_s", "ends_in_90_percent_s", "ends_in_99_percent_s")
# Of NVML's bits, those that lower the clock of a GPU with work; an idle one and its display clock are no news.
_HELD_BY: Final = {
    0x02: "applications_clocks_setting",
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
_WORK: Final = ("generated_tokens_per_s", "prefilled_tokens_per_s", "step_ms", "reuse_percent", "accepted_percent")


def cluster_row(before: Overview, now: Overview) -> Row:
    """The stack as a whole; rates a second of wall time."""
    cluster, wall_s = now.cluster, now.wall_s - before.wall_s
    same = cluster.epoch == before.cluster.epoch  # else a scheduler that has begun to count again
    return {
        "policy": cluster.policy,
        "epoch": cluster.epoch,
        "at_s": cluster.at_us / US_PER_S,
        "waiting_calls": cluster.waiting,
        "live_workflows": len(now.workflows),
        "events_per_s": _rate(cluster.events - before.cluster.events, wall_s) if same else None,
        "decisions_per_s": _rate(cluster.decisions - before.cluster.decisions, wall_s) if same else None,
        "snapshot_revision": cluster.snapshot_revision,
        "snapshot_age_s": (cluster.at_us - cluster.snapshot_at_us) / US_PER_S if cluster.snapshot_at_us else None,
        "degraded": not cluster.snapshot_revision,
        "estimator_answers": now.calibration is not None,
    }


def instance_rows(before: ClusterView, now: ClusterView) -> list[Row]:
    """One an instance, sorted by id."""
    earlier = {view.spec.instance_id: view.reported for view in before.instances} if before.epoch == now.epoch else {}
    passed_s = (now.at_us - before.at_us) / US_PER_S
    rows: list[Row] = []
    for view in now.instances:
        known = earlier.get(view.spec.instance_id)
        rows.append(
            {**_state_row(view, now.at_us), **_load_row(view, now.at_us), **_work_row(known, view.reported, passed_s)}
        )
    return rows


def _state_row(view: InstanceView, at_us: int) -> Row:
    spec, sampled_at_us = view.spec, view.reported.sampled_at_us if view.reported is not None else 0
    links = view.reported.links if view.reported is not None else None
    return {
        "instance": spec.instance_id,
        "gpu_type": spec.gpu_type,
        "tp": spec.tp,
        "role": spec.role.name.lower(),
        "model": spec.model,
        "precision": spec.precision,
        "kv_precision": spec.kv_precision,
        "loras": ", ".join(lora.name for lora in spec.loras) or None,
        "max_loras": spec.max_loras or None,
        "speculation": spec.speculation and f"{spec.speculation.method} {spec.speculation.draft_tokens}",
        "flip_way": spec.flip and spec.flip.way.name.lower(),
        "flip_cost_s": spec.flip and spec.flip.cost_us / US_PER_S,
        "state": _state(view),
        "prefill_time_factor": view.prefill_ppm / PPM,
        "decode_time_factor": view.decode_ppm / PPM,
        "prefix_wrong_percent": None if view.prefix_wrong_ppm is None else view.prefix_wrong_ppm / _PERCENT_PPM,
        "prefix_alarm": None if view.prefix_wrong_ppm is None else view.prefix_alarm,
        "telemetry_age_wall_s": view.reported.silent_us / US_PER_S if view.reported is not None else None,
        "sample_age_s": max(at_us - sampled_at_us, 0) / US_PER_S if sampled_at_us else None,
        "links_warm": links and links.warm,
        "links_cold": links and links.cold,
        "links_failed": links and len(links.failed),
        "links_failure": links and (": ".join(links.failed[0]) if links.failed else None),
        **_devices(view.reported.devices if view.reported is not None else ()),
    }


def _state(view: InstanceView) -> str:
    if view.wanted_role is not None:
        return f"to {view.wanted_role.name.lower()}"
    if not view.up:
        return "down"
    if view.reported is None:
        return "unheard"
    if view.reported.stale:
        return "stale"
    return "closed" if view.cordoned else "up"


def _load_row(view: InstanceView, at_us: int) -> Row:
    """As reported, and what the scheduler has sent there."""
    load = view.reported.load if view.reported is not None else None
    oldest_us, blocks, tokens = load.oldest_queued_us if load else 0, view.spec.kv_blocks, view.capacity_tokens
    return {
        "queued_calls": load.queued if load else None,
        "queue_age_s": max(at_us - oldest_us, 0) / US_PER_S if oldest_us else None,
        "running_calls": load.prefilling + load.decoding if load else None,
        "waiting_kv_calls": load.pinned + load.waiting if load else None,
        "kv_used_percent": 100 * load.kv_used_blocks / blocks if load and blocks else None,
        "kv_reserved_percent": 100 * view.reserved_tokens / tokens if tokens else None,
        "prefill_backlog_s": max(view.prefill_free_us - at_us, 0) / US_PER_S,
        "transfer_backlog_s": max(view.transfer_free_us - at_us, 0) / US_PER_S,
    }


def _work_row(before: ReportedView | None, now: ReportedView | None, passed_s: float) -> Row:
    """Rates a second of model time since the look before; reuse and accepted drafts are of all it has reported."""
    row: dict[str, Value] = dict.fromkeys(_WORK)
    if now is not None and (prompts := now.reused_tokens + now.prefilled_tokens):
        row["reuse_percent"] = 100 * now.reused_tokens / prompts
    if now is not None and now.drafted_tokens:
        row["accepted_percent"] = 100 * now.accepted_tokens / now.drafted_tokens
    if now is not None and before is not None:
        row["generated_tokens_per_s"] = _rate(now.generated_tokens - before.generated_tokens, passed_s)
        row["prefilled_tokens_per_s"] = _rate(now.prefilled_tokens - before.prefilled_tokens, passed_s)
        if steps := now.steps - before.steps:
            row["step_ms"] = (now.steps_us - before.steps_us) / US_PER_MS / steps
    return row


def _devices(devices: Sequence[DeviceSample]) -> Row:
    """The hottest and the slowest of its GPUs, what holds a clock of any down; mean use; power and memory of all."""

    def known(field: str) -> list[float]:
        values = [getattr(device, field) for device in devices]
        return [value for value in values if value is not None]

    used, total = sum(known("memory_used_bytes")), sum(known("memory_total_bytes"))
    held = {name for mask in known("throttle_reasons") for bit, name in _HELD_BY.items() if int(mask) & bit}
    return {
        "device_utilization_percent": mean(use) if (use := known("utilization_percent")) else None,
        "temperature_celsius": max(known("temperature_celsius"), default=None),
        "sm_clock_mhz": min(known("sm_clock_mhz"), default=None),
        "clock_held_by": ", ".join(sorted(held)) or None,
        "power_watts": sum(power) if (power := known("power_watts")) else None,
        "device_memory_percent": 100 * used / total if total else None,
        "device_memory_used_bytes": used or None,
        "device_memory_total_bytes": total or None,
    }


def workflow_rows(before: Overview, now: Overview) -> list[Row]:
    """One a live workflow, least laxity first, then the oldest."""
    wall_s = now.wall_s - before.wall_s
    scale = (now.cluster.at_us - before.cluster.at_us) / US_PER_S / wall_s if wall_s else None
    rows = [(_laxity_s(w, scale), w) for w in now.workflows]
    rows.sort(key=lambda row: (row[0] if row[0] is not None else float("inf"), -row[1].age_s, row[1].workflow_id))
    return [
        {
            "workflow": w.workflow_id,
            "tenant": w.tenant,
            "class": w.workflow_class,
            "status": w.status.name.lower(),
            "age_s": w.age_s,
            "horizon_s": w.horizon_s,
            "stretch": w.age_s / w.horizon_s if w.horizon_s else None,
            "laxity_s": laxity_s,
            **residual_row(now.residuals, w.workflow_id, now.cluster.at_us),
            "calls": w.calls,
            "calls_ended": w.calls_ended,
            "tools": w.tools,
        }
        for laxity_s, w in rows
    ]


def residual_row(residuals: Residuals, workflow_id: str, at_us: int) -> Row:
    """In what time the workflow ends alone on the cluster, as foreseen when a call of it was dispatched last: 0 once
    that time has passed, None where it is not known."""
    residual = residuals.get(workflow_id) if residuals is not None else None
    row: dict[str, Value] = dict.fromkeys(_ENDS)
    if residual is not None:
        passed_us = max(at_us - residual.dispatched_at_us, 0)
        ends_s = [max(us - passed_us, 0) / US_PER_S for us in (residual.q50_us, residual.q90_us, residual.q99_us)]
        row.update(zip(_ENDS, (residual.node_id, passed_us / US_PER_S, *ends_s), strict=True))
    return row


def _laxity_s(workflow: WorkflowSummary, scale: float | None) -> float | None:
    """What is left of its budget: the time to its deadline, else `slo_scale` horizons less its age; None: has none.

    `scale` is model seconds a wall second, as deadlines are of wall time; None: not known.
    """
    if workflow.deadline:
        return scale and (workflow.deadline - workflow.started_at) * scale - workflow.age_s
    return workflow.slo_scale * workflow.horizon_s - workflow.age_s if workflow.slo_scale else None


def tenant_rows(cluster: ClusterView) -> list[Row]:
    """One a tenant."""
    return [
        {
            "tenant": tenant.tenant,
            "weight": tenant.weight,
            "waiting_calls": tenant.waiting,
            "charged_gpu_s": tenant.charged_us / US_PER_S,
        }
        for tenant in cluster.tenants
    ]


def estimate_rows(now: Overview) -> list[Row]:
    """How far predictions were off lately, one a quantity and subject."""
    return [
        {
            "quantity": row.quantity,
            "subject": row.subject,
            "samples": row.samples,
            "bias_percent": (row.bias_ppm - PPM) / _PERCENT_PPM,
            "error_percent": row.error_ppm / _PERCENT_PPM,
        }
        for row in now.calibration or ()
    ]


def _rate(amount: int, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
