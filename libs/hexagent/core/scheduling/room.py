"""Room for the call that waits longest: KV is kept free for it on one decode instance, where others would take it."""

from hexagent.core.policy.weighing import AgeingFloor
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.ledger import Instance, Ledger
from hexagent.core.scheduling.queue import ReadyQueue
from hexagent.core.scheduling.tenants import Tenants


class KeptRoom:
    """At most one instance a model; what is kept counts as taken there until it is enough for the call."""

    def __init__(self, ledger: Ledger, queue: ReadyQueue, tenants: Tenants, floor: AgeingFloor) -> None:
        self._ledger, self._queue, self._tenants, self._floor = ledger, queue, tenants, floor
        self._kept: dict[str, tuple[Call, Instance]] = {}  # by model

    def keep(self, model: str, now_us: int) -> bool:
        """After a plan: whether the call that has its turn lacks room on all instances, so that one keeps it free."""
        waiting = self._queue.by_model[model].calls
        if not self._floor.due(waiting, now_us) or waiting[0].workflow.tenant in self._tenants.held:
            return False
        call, decode = waiting[0], self._ledger.pool(model, needs=waiting[0].needs)[1]
        fitting = [d for d in decode if d.spec.kv_tokens >= d.kv_tokens_of(call)]
        if not fitting or any(d.kv_free_tokens >= d.kv_tokens_of(call) for d in fitting):
            return False
        if model not in self._kept:
            instance = max(fitting, key=lambda d: d.kv_free_tokens - d.kv_tokens_of(call))
            self._ledger.keep(instance, instance.kv_tokens_of(call))
            self._kept[model] = call, instance
        return True

    def hand_over(self, model: str) -> None:
        """Before a plan: what is kept is free again if it is enough now, or nobody will use it."""
        if model in self._kept:
            call, instance = self._kept[model]
            if instance.kv_free_tokens >= 0 or not instance.usable or call not in self._queue:
                self._ledger.keep(instance, 0)
                del self._kept[model]
