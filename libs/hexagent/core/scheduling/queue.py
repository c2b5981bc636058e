"""Calls that are ready and not dispatched."""

from collections import Counter

from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.tenants import Tenants


class ReadyQueue:
    """Waiting calls by model, and sums over them; tenants hear of each that comes or goes."""

    def __init__(self, tenants: Tenants) -> None:
        self.by_model: dict[str, WaitingCalls] = {}
        self.calls = 0
        self.kv_tokens: Counter[str] = Counter()  # projected, by model
        self.tenant_tokens: Counter[str] = Counter()  # and by tenant
        self._tenants = tenants

    def __contains__(self, call: Call) -> bool:
        waiting = self.by_model.get(call.model)
        return waiting is not None and call in waiting

    def add(self, call: Call) -> None:
        """Let a ready call wait; one of a paused workflow leaves the queue."""
        if call.workflow.paused:
            self.remove(call)
        elif call not in self:
            if call.model not in self.by_model:
                self.by_model[call.model] = WaitingCalls()
            self.by_model[call.model].add(call)
            self._count(call, 1)
            self._tenants.joins(call)

    def remove(self, call: Call) -> None:
        waiting = self.by_model.get(call.model)
        if waiting is not None and waiting.remove(call):
            self._count(call, -1)
            self._tenants.leaves(call)

    def _count(self, call: Call, one: int) -> None:
        self.calls += one
        self.kv_tokens[call.model] += one * projected_tokens(call)
        self.tenant_tokens[call.workflow.tenant] += one * projected_tokens(call)


def projected_tokens(call: Call) -> int:
    """KV it needs where the output is as long as nine of ten are."""
    return call.prompt_tokens + call.output_q90
