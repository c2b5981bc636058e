"""What the scheduler shows of queues and instances, from its own state and the instances' last telemetry."""

import asyncio
import logging
from typing import Final

from hexagent.core.instance.spec import FLIPPED
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.ledger import Instance
from hexagent.core.units import PPM, US_PER_S
from hexagent.runtime.clock import Clock
from hexagent.runtime.metrics import Metrics
from hexagent_services.scheduler.reported import Reports
from hexagent_services.scheduler.reported_metrics import ReportedMetrics

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0  # of wall time

# Without its role, which may change: a series that has ended keeps its last value.
_INSTANCE: Final = ("hexagent.instance", "hexagent.gpu")
_CALLS: Final = ("queued", "prefilling", "pinned", "waiting", "decoding", "transferring")  # of `InstanceLoad`


class ClusterMetrics:
    """All instruments of the scheduler."""

    def __init__(self, metrics: Metrics, core: SchedulerCore, reports: Reports, clock: Clock) -> None:
        self._core = core
        self._reports = reports
        self._clock = clock
        self._queue = metrics.gauge(
            "hexagent.scheduler.queue.size",
            "Ready calls without a decision.",
            ("gen_ai.request.model",),
            "{call}",
        )
        self._oldest = metrics.gauge(
            "hexagent.scheduler.queue.age", "How long the oldest of them waits.", ("gen_ai.request.model",), "s"
        )
        self._degraded = metrics.gauge(
            "hexagent.scheduler.estimates.degraded",
            "1 = instances are priced by tables alone, as there is no snapshot of the estimator or a stale one.",
            (),
        )
        self._age = metrics.gauge("hexagent.scheduler.snapshot.age", "Age of the last snapshot.", (), "s")
        self._prefix = metrics.gauge(
            "hexagent.scheduler.prefix.tokens",
            "Prompt tokens of attempts on engines with a prefix cache: all, those predicted to be there, those found.",
            ("hexagent.state",),
            "{token}",
        )
        self._drift = metrics.gauge(
            "hexagent.instance.prefix.drift",
            "Share of tokens lately predicted to be cached or found to be that was not both.",
            _INSTANCE,
        )
        self._alarms = metrics.gauge(
            "hexagent.instance.prefix.alarms",
            "How often that became too much since the engine came up.",
            _INSTANCE,
            "{alarm}",
        )
        self._charged = metrics.gauge(
            "hexagent.tenant.charged", "Priced GPU-time charged; of a single tenant none is.", ("hexagent.tenant",), "s"
        )
        self._waiting = metrics.gauge("hexagent.tenant.waiting", "Its calls that wait.", ("hexagent.tenant",), "{call}")
        self._shadows = metrics.gauge(
            "hexagent.scheduler.shadow.points",
            "Compared points at which a shadow starts the same calls, the same elsewhere, or other ones.",
            ("hexagent.policy", "hexagent.state"),
            "{point}",
        )
        self._up = metrics.gauge("hexagent.instance.up", "1 = it takes calls.", (*_INSTANCE, "hexagent.role"))
        self._flips = metrics.gauge("hexagent.instance.flips", "Changes of its role.", _INSTANCE, "{change}")
        self._calls = metrics.gauge(
            "hexagent.instance.calls", "Calls of an instance by state.", (*_INSTANCE, "hexagent.state"), "{call}"
        )
        self._blocks = metrics.gauge(
            "hexagent.instance.kv.blocks", "KV blocks by state.", (*_INSTANCE, "hexagent.state"), "{block}"
        )
        self._usage = metrics.gauge("hexagent.instance.kv.usage", "Share of KV blocks that calls hold.", _INSTANCE)
        self._pinned = metrics.gauge(
            "hexagent.instance.kv.pinned_tokens", "KV of prompts that waits to be pulled.", _INSTANCE, "{token}"
        )
        self._reported = ReportedMetrics(metrics, _INSTANCE)

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            try:
                self.refresh()
            except Exception:  # whatever it is, scheduling goes on
                log.exception("the cluster's metrics are not refreshed")
            await asyncio.sleep(PERIOD_S)

    def refresh(self) -> None:
        """Set everything to how it is now."""
        now_us = self._clock.now_us()
        for model, waiting in self._core.waiting.items():
            self._queue.set(len(waiting), model)
            oldest_us = min((call.ready_us for call in waiting.calls), default=now_us)
            self._oldest.set(max(now_us - oldest_us, 0) / US_PER_S, model)
        for tenant, account in self._core.tenants.accounts.items():
            self._charged.set(account.charged_us / US_PER_S, tenant)
            self._waiting.set(account.waiting, tenant)
        estimator = self._core.estimator
        self._degraded.set(float(not estimator.revision))
        self._age.set(max(now_us - estimator.snapshot.at_us, 0) / US_PER_S)
        reuse = self._core.ledger.reuse
        self._prefix.set(reuse.prompt_tokens, "all")
        self._prefix.set(reuse.predicted_tokens, "predicted")
        self._prefix.set(reuse.reported_tokens, "found")
        for policy, agreement in self._core.shadows.agreement.items():
            for state in agreement.__slots__:
                self._shadows.set(getattr(agreement, state), policy, state)
        for instance in self._core.ledger.instances.values():
            self._instance(instance, now_us)

    def _instance(self, instance: Instance, now_us: int) -> None:
        spec = instance.spec
        names = (spec.instance_id, spec.gpu_type)
        self._up.set(float(instance.up and not instance.closed), *names, spec.role.name.lower())
        if flips := self._core.flips.done[spec.instance_id]:
            self._flips.set(flips, *names)
            self._up.set(0.0, *names, FLIPPED[spec.role].name.lower())
        self._pinned.set(instance.pinned_tokens, *names)
        if instance.cache is not None:
            self._drift.set(instance.cache.drift.wrong_ppm / PPM, *names)
            self._alarms.set(instance.cache.drift.alarms, *names)
        reported = self._reports.get(spec.instance_id)
        if reported is None:
            return
        self._reported.set(reported, names, now_us)
        load = reported.load
        for state in _CALLS:
            self._calls.set(getattr(load, state), *names, state)
        for state in ("used", "cached", "free"):
            self._blocks.set(getattr(load, f"kv_{state}_blocks"), *names, state)
        self._usage.set(load.kv_used_blocks / max(spec.kv_blocks, 1), *names)
