"""`hexagent top`: a running stack as it is, again and again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from hexagent.cli.explain import parsed_address, scheduler_address
from hexagent.cli.failures import failure_text
from hexagent.cli.ports import PORT_MAX
from hexagent.cli.report import Row, console, shown, table_of, write_json
from hexagent.cli.top_rows import cluster_row, estimate_rows, instance_rows, tenant_rows, workflow_rows
from hexagent.client.overview import Addresses, Observer, Overview, observing
from hexagent.core.errors import DeadlineExceeded, Unavailable

WORKFLOWS_SHOWN: Final = 15
ESTIMATES_SHOWN: Final = 8

# Columns of the tables, and the keys of rows they show.
_INSTANCES: Final = {
    "instance": "instance", "gpu": "gpu_type", "role": "role", "state": "state", "queued": "queued_calls",
    "oldest s": "queue_age_s", "running": "running_calls", "out tok/s": "generated_tokens_per_s",
    "in tok/s": "prefilled_tokens_per_s", "step ms": "step_ms", "KV %": "kv_used_percent", "reuse %": "reuse_percent",
    "accepted %": "accepted_percent",
}  # fmt: skip
_SERVES: Final = {name: name for name in ("model", "precision", "kv_precision", "loras", "speculation")}
_BELIEFS: Final = {
    "instance": "instance", "prefill x": "prefill_time_factor", "decode x": "decode_time_factor",
    "prefill in s": "prefill_backlog_s", "links in s": "transfer_backlog_s", "reuse wrong %": "prefix_wrong_percent",
    "alarm": "prefix_alarm", "heard s ago": "telemetry_age_wall_s", "sampled s ago": "sample_age_s",
}  # fmt: skip
_LINKS: Final = {
    "links warm": "links_warm", "cold": "links_cold", "failed": "links_failure", "role flip": "flip_way",
    "takes s": "flip_cost_s",
}  # fmt: skip
_DEVICES: Final = {
    "used %": "device_utilization_percent", "memory %": "device_memory_percent", "C": "temperature_celsius",
    "W": "power_watts", "MHz": "sm_clock_mhz", "clock held by": "clock_held_by",
}  # fmt: skip
_WORKFLOWS: Final = {
    "workflow": "workflow", "tenant": "tenant", "class": "class", "status": "status", "age s": "age_s",
    "horizon s": "horizon_s", "age/horizon": "stretch", "laxity s": "laxity_s", "ends in s": "ends_in_s",
    "90 %: s": "ends_in_90_percent_s", "calls": "calls", "ended": "calls_ended",
}  # fmt: skip
_TENANTS: Final = {"tenant": "tenant", "weight": "weight", "waiting": "waiting_calls", "charged s": "charged_gpu_s"}
_ESTIMATES: Final = {
    "predicted": "quantity", "of": "subject", "samples": "samples", "bias %": "bias_percent", "error %": "error_percent"
}  # fmt: skip


class TopOptions(NamedTuple):
    """How to look."""

    addresses: Addresses
    interval_s: float  # of wall time, between two looks; rates are over it
    once: bool
    json_file: Path | None


class View(NamedTuple):
    """Rows of one moment."""

    cluster: Row
    instances: list[Row]
    workflows: list[Row]
    tenants: list[Row]
    estimates: list[Row]

    def rows(self) -> list[Row]:
        """All of them, each with the name of its table first."""
        tables = {"cluster": [self.cluster], "instance": self.instances, "workflow": self.workflows,
                  "tenant": self.tenants, "estimate": self.estimates}  # fmt: skip
        return [{"table": name, **row} for name, rows in tables.items() for row in rows]


def stack_addresses(tracker: str, scheduler: str = "", estimator: str = "") -> Addresses:
    """Those given, or where `hexagent up` puts them: each on the port after the one before.

    `InvalidArgument` names the option that is no host:port.
    """
    scheduler = scheduler_address(tracker, scheduler)
    if estimator:
        parsed_address(estimator, "estimator", PORT_MAX)
        return Addresses(tracker, scheduler, estimator)
    host, port = parsed_address(scheduler, "scheduler", PORT_MAX - 1)
    return Addresses(tracker, scheduler, f"{host}:{port + 1}")


async def run_top(options: TopOptions) -> None:
    """Show the stack until cancelled, or once where it is asked for or stdout is no terminal.

    `Unavailable` where no stack is found; one that goes away later is waited for.
    """
    out = console()
    async with observing(options.addresses) as observer:
        before = await observer.look()
        if options.once or not out.is_terminal:
            await asyncio.sleep(options.interval_s)
            view = view_of(before, await observer.look())
            out.print(drawn(view))
            write_json(options.json_file, "top", None, view.rows())
            return
        with Live(console=out, screen=True, auto_refresh=False) as live:
            await _follow(observer, before, options, live)


async def _follow(observer: Observer, before: Overview, options: TopOptions, live: Live) -> None:
    view = view_of(before, before)
    live.update(drawn(view), refresh=True)
    while True:
        await asyncio.sleep(options.interval_s)
        try:
            now = await observer.look()
        except (Unavailable, DeadlineExceeded) as error:
            live.update(drawn(view, failure_text(error)), refresh=True)
            continue
        view, before = view_of(before, now), now
        live.update(drawn(view), refresh=True)
        write_json(options.json_file, "top", None, view.rows())


def view_of(before: Overview, now: Overview) -> View:
    """What to show; rates are over the time between the two looks."""
    return View(
        cluster_row(before, now),
        instance_rows(before.cluster, now.cluster),
        workflow_rows(before, now),
        tenant_rows(now.cluster),
        estimate_rows(now),
    )


def drawn(view: View, failure: str = "") -> RenderableType:
    """The tables; `failure` is why they are old."""
    parts: list[RenderableType] = [Text(headline(view.cluster), style="bold")]
    if failure:
        parts.append(Text(failure, style="red"))
    parts.append(_table("Instances", view.instances, _INSTANCES))
    if len({tuple(row[key] for key in _SERVES) for row in view.instances}) > 1:
        parts.append(_table("What they serve", view.instances, {"instance": "instance"} | _SERVES))
    parts.append(
        _table("What is learned of them, how long their queues are, when they were heard of", view.instances, _BELIEFS)
    )
    for title, columns in ("Links and other roles", _LINKS), ("Their GPUs", _DEVICES):
        if any(row[key] is not None for row in view.instances for key in columns.values()):
            parts.append(_table(title, view.instances, {"instance": "instance"} | columns))
    more = len(view.workflows) - WORKFLOWS_SHOWN
    parts.append(_table("Workflows", view.workflows[:WORKFLOWS_SHOWN], _WORKFLOWS))
    if more > 0:
        parts.append(Text(f"and {more} more"))
    if len(view.tenants) > 1:
        parts.append(_table("Tenants", view.tenants, _TENANTS))
    worst = sorted(view.estimates, key=_error, reverse=True)[:ESTIMATES_SHOWN]
    parts.append(_table("Worst estimates", worst, _ESTIMATES))
    return Group(*parts)


def headline(row: Row) -> str:
    """The cluster in a line."""
    estimates = "tables alone (degraded)" if row["degraded"] else f"revision {row['snapshot_revision']}"
    silent = "" if row["estimator_answers"] else "; the estimator does not answer"
    return (
        f"policy {row['policy']}, epoch {row['epoch']}: {row['waiting_calls']} calls wait,"
        f" {row['live_workflows']} workflows live, {shown(row['events_per_s'])} events/s,"
        f" {shown(row['decisions_per_s'])} decisions/s (wall); estimates: {estimates}{silent}"
    )


def _table(title: str, rows: Sequence[Row], columns: dict[str, str]) -> RenderableType:
    return table_of(title, _columns(rows, columns)) if rows else Text(f"{title}: none")


def _columns(rows: Sequence[Row], columns: dict[str, str]) -> list[Row]:
    """Without columns that say nothing of any row."""
    told = {name: key for name, key in columns.items() if any(row[key] is not None for row in rows)}
    return [{name: row[key] for name, key in told.items()} for row in rows]


def _error(row: Row) -> float:
    error = row["error_percent"]
    return error if isinstance(error, float) else 0.0
