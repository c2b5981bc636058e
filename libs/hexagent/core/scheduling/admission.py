"""Whether a call that has become ready may wait, or is refused with a reason and a time to come back.

Load decides only about workflows of which no call was accepted yet: what has begun goes on. The bounds on how much may
wait at all hold for every call. A bound on tokens never refuses the only call it counts: it would be as large later.
"""

from hexagent.core.instance.spec import ClusterSpec, Role
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.queue import ReadyQueue, projected_tokens
from hexagent.core.scheduling.tenants import OUT_OF_QUOTA, Tenants
from hexagent.core.units import MILLI, US_PER_S
from hexagent.core.workflow.model import CallOutcome, NodeStatus

QUEUE_FULL = "QUEUE_FULL"
KV_QUEUE_FULL = "KV_QUEUE_FULL"
TENANT_QUEUE_FULL = "TENANT_QUEUE_FULL"
DEADLINE_INFEASIBLE = "DEADLINE_INFEASIBLE"
RETRY_US_MIN = US_PER_S


class Admission:
    """The rules of a cluster, over what waits in `queue` and what `tenants` were charged."""

    def __init__(self, cluster: ClusterSpec, queue: ReadyQueue, tenants: Tenants) -> None:
        self._rules, self._queue, self._tenants = cluster.admission, queue, tenants
        self._tenant_tokens_max = {spec.name: spec.queued_tokens_max for spec in cluster.tenants}
        self._kv_tokens = dict.fromkeys(cluster.models, 0)  # of decode instances as configured, by model
        for spec in cluster.instances:
            if spec.role is not Role.PREFILL:
                self._kv_tokens[spec.model] += spec.kv_tokens

    def refusal(self, call: Call, now_us: int) -> CallOutcome | None:
        """The outcome of a call that may not wait, else None: its workflow has begun then."""
        refused = self._too_much_waits(call, now_us)
        if refused is None and not call.workflow.admitted:
            refused = self._not_now(call, now_us)
        if refused is None:
            call.workflow.admitted = True
        return refused

    def _too_much_waits(self, call: Call, now_us: int) -> CallOutcome | None:
        queue, tenant = self._queue, call.workflow.tenant
        if queue.calls >= self._rules.queued_calls_max:
            return self._refused(
                call, QUEUE_FULL, f"{queue.calls} calls wait, no more may", self._turn_us(call, now_us)
            )
        waiting, limit = queue.tenant_tokens.get(tenant, 0), self._tenant_tokens_max.get(tenant, 0)
        if limit and waiting and waiting + projected_tokens(call) > limit:
            message = f"calls of tenant {tenant} that wait may need {limit} KV tokens, {waiting} are taken"
            return self._refused(call, TENANT_QUEUE_FULL, message, self._turn_us(call, now_us))
        return None

    def _not_now(self, call: Call, now_us: int) -> CallOutcome | None:
        window_end_us = self._tenants.window_end_us(call, now_us)
        if window_end_us:
            message = f"tenant {call.workflow.tenant} has used up its quota of this window"
            return self._refused(call, OUT_OF_QUOTA, message, window_end_us - now_us)
        waiting = self._queue.kv_tokens.get(call.model, 0)
        limit = self._kv_tokens.get(call.model, 0) * self._rules.queued_kv_milli // MILLI
        if limit and waiting and waiting + projected_tokens(call) > limit:
            message = f"calls of {call.model} that wait may need {limit} KV tokens, {waiting} are taken"
            return self._refused(call, KV_QUEUE_FULL, message, self._turn_us(call, now_us))
        deadline_us = call.workflow.graph.spec.deadline_us
        finish_us = now_us + call.workflow.horizon.below_us(call.index)
        if self._rules.refuse_late and 0 < deadline_us < finish_us:
            message = f"alone on the cluster it would end {finish_us - deadline_us} us after its deadline"
            return self._refused(call, DEADLINE_INFEASIBLE, message, 0)
        return None

    def _turn_us(self, call: Call, now_us: int) -> int:
        """When to come back: as long as the call that waits longest has waited, which is how fast the queue moves."""
        waiting = self._queue.by_model.get(call.model)
        longest_us = now_us - waiting.calls[0].ready_us if waiting else 0
        return max(longest_us, RETRY_US_MIN)

    @staticmethod
    def _refused(call: Call, reason: str, message: str, retry_after_us: int) -> CallOutcome:
        return CallOutcome(
            call.call_id,
            call.attempts + 1,
            NodeStatus.REFUSED,
            reason=reason,
            message=message,
            retry_after_us=retry_after_us,
        )
