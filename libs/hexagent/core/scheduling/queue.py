"""Calls that are ready and not dispatched."""

from hexagent.core.policy.waiting import WaitingCalls
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.tenants import Tenants


class ReadyQueue:
    """Waiting calls by model; tenants hear of each that comes or goes."""

    def __init__(self, tenants: Tenants) -> None:
        self.by_model: dict[str, WaitingCalls] = {}
        self._tenants = tenants

    def add(self, call: Call) -> None:
        """Let a ready call wait; one of a paused workflow leaves the queue."""
        waiting = self.by_model.get(call.model)
        if waiting is None:
            waiting = self.by_model[call.model] = WaitingCalls()
        if call.workflow.paused:
            self.remove(call)
        elif call not in waiting:
            waiting.add(call)
            self._tenants.joins(call)

    def remove(self, call: Call) -> None:
        waiting = self.by_model.get(call.model)
        if waiting is not None and waiting.remove(call):
            self._tenants.leaves(call)
