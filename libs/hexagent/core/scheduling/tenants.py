"""Shares of the cluster: what each tenant is charged, who is ahead of whom, and who has to wait for it.

A tenant's *virtual time* advances by what its calls are charged (priced GPU-microseconds, `charges`) over its weight:
start-time fair queueing (Goyal, Vin and Cheng, 1996) with two bounds in place of a strict order. In the queue of a
model the tenant with the least virtual time is the one to serve; another's lead over it makes the other's ages count
less, down to half, and beyond a bound its calls wait until the lead has gone. How many calls or workflows a tenant has
enters nowhere. A tenant that had nothing to wait for begins at the least virtual time of those that have: it gathers no
credit, and what it leaves is used by the others as if it were not there.
"""

from collections.abc import Callable
from typing import Final

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.core.instance.spec import ClusterSpec, TenantSpec
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.charges import Prices
from hexagent.core.scheduling.ledger import Attempt
from hexagent.core.units import MILLI
from hexagent.core.workflow.model import CallOutcome

AHEAD: Final = "TENANT_AHEAD"
OUT_OF_QUOTA: Final = "QUOTA_EXHAUSTED"


class Account:
    """What one tenant was charged, in priced GPU-microseconds."""

    __slots__ = ("charged_us", "emptied", "in_window_us", "spec", "virtual_us", "waiting", "window")

    def __init__(self, spec: TenantSpec) -> None:
        self.spec = spec
        self.charged_us = 0
        self.virtual_us = 0
        self.waiting = 0  # calls, of all models
        self.emptied = 0  # how often the last of them started
        self.window = 0  # number of the quota's latest window in which something was charged
        self.in_window_us = 0  # charged in it

    def window_end_us(self, now_us: int) -> int:
        """When the next window begins, if the quota of this one is used up; else 0."""
        if not self.spec.quota_gpu_us:
            return 0
        window = now_us // self.spec.quota_window_us
        used_up = window == self.window and self.in_window_us >= self.spec.quota_gpu_us
        return (window + 1) * self.spec.quota_window_us if used_up else 0


class Tenants:
    """Accounts of a cluster's tenants. With a single one that has no quota nothing is counted, and nobody held.

    `lag_us` is how far one may be ahead, as time of the whole cluster at its price.
    """

    def __init__(self, cluster: ClusterSpec, lag_us: int) -> None:
        self.prices = Prices(cluster)
        self.accounts = {spec.name: Account(spec) for spec in cluster.tenants}
        self.counted = len(self.accounts) > 1 or any(spec.quota_gpu_us for spec in cluster.tenants)
        # As `look` found it for one queue:
        self.held: dict[str, str] = {}  # tenants whose calls may not start, and why
        self.weight_milli: dict[str, int] = {}  # how much an age counts; where none is named, 1,000
        self.revision = 0
        self._lag_us = max(lag_us * self.prices.cluster_milli // MILLI, 1)
        self._weights = sum(spec.weight for spec in cluster.tenants)
        self._held_in: dict[str, dict[str, str]] = {}  # `held` of each model when it was looked at last
        self._queues: dict[str, dict[str, dict[CallId, Call]]] = {}  # waiting calls by model and tenant
        self._charged: dict[CallId, int] = {}  # what calls under way were charged

    # --- who waits --------------------------------------------------------------------------------------------
    def joins(self, call: Call) -> None:
        """The call waits from now on."""
        if not self.counted:
            return
        account = self._account(call)
        if not account.waiting:
            account.virtual_us = max(account.virtual_us, self._start_us())
        account.waiting += 1
        self._queues.setdefault(call.model, {}).setdefault(account.spec.name, {})[call.call_id] = call

    def leaves(self, call: Call) -> None:
        """A call that waited does so no more."""
        if not self.counted:
            return
        account, queue = self._account(call), self._queues[call.model]
        account.waiting -= 1
        account.emptied += not account.waiting
        del queue[account.spec.name][call.call_id]
        if not queue[account.spec.name]:
            del queue[account.spec.name]

    def window_end_us(self, call: Call, now_us: int) -> int:
        """When the window ends whose quota the call's tenant has used up; 0 if it has not."""
        return self._account(call).window_end_us(now_us) if self.counted else 0

    def why_held(self, call: Call) -> str:
        """Why a call that waits may not start, as of the last plan; "" = its tenant is not held."""
        return self._held_in.get(call.model, {}).get(call.workflow.tenant, "")

    def _start_us(self) -> int:
        """Virtual time at which a tenant begins that had nothing to wait for."""
        waiting = [account.virtual_us for account in self.accounts.values() if account.waiting]
        return min(waiting) if waiting else max(account.virtual_us for account in self.accounts.values())

    def _account(self, call: Call) -> Account:
        """A tenant that has left the cluster file but not the workflow stream has weight 1."""
        name = call.workflow.tenant
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(TenantSpec(name))
            self._weights += 1
        return account

    # --- what they are charged --------------------------------------------------------------------------------
    def dispatched(self, attempt: Attempt, prefill_us: int, estimator: Estimator, now_us: int) -> None:
        """The call has started: it is charged what it is predicted to take."""
        if self.counted:
            priced_us = self.prices.predicted(attempt, prefill_us, estimator)
            self._charged[attempt.call.call_id] = priced_us
            self._charge(self._account(attempt.call), priced_us, now_us)

    def lost(self, call: Call, now_us: int) -> None:
        """Its attempt was lost, which is not the tenant's to pay."""
        if self.counted:
            self._charge(self._account(call), -self._charged.pop(call.call_id, 0), now_us)

    def ended(self, call: Call, outcome: CallOutcome, now_us: int) -> None:
        """The call has ended: it is charged what it took. One that was cancelled keeps the prediction, so that
        cancelling just before the end saves nothing."""
        if self.counted:
            predicted_us = self._charged.pop(call.call_id, 0)
            if outcome.times.prefill_end_us:
                self._charge(self._account(call), self.prices.charged(outcome) - predicted_us, now_us)

    def _charge(self, account: Account, priced_us: int, now_us: int) -> None:
        account.charged_us += priced_us
        # By the mean weight, so that virtual time is that of the cluster whatever numbers the weights are.
        account.virtual_us += priced_us * self._weights // (len(self.accounts) * account.spec.weight)
        if account.spec.quota_gpu_us:
            window = now_us // account.spec.quota_window_us
            if window != account.window:
                account.window, account.in_window_us = window, 0
            account.in_window_us = max(account.in_window_us + priced_us, 0)

    # --- who may start ----------------------------------------------------------------------------------------
    def look(self, model: str, fits: Callable[[Call], bool], now_us: int) -> None:
        """Find who may start calls of `model` now. Nobody waits for a tenant whose calls no open instance can hold,
        as `fits` says, or whose quota is used up."""
        self.revision += 1
        self.held, self.weight_milli = {}, {}
        self._held_in[model] = self.held
        queue = self._queues.get(model, {})
        served: list[Account] = []
        for name in queue:
            if self.accounts[name].window_end_us(now_us):
                self.held[name] = OUT_OF_QUOTA
            else:
                served.append(self.accounts[name])
        if len(served) < 2:
            return
        served.sort(key=lambda account: (account.virtual_us, account.spec.name))
        last_us = served[-1].virtual_us
        least_us = next(
            account.virtual_us
            for account in served
            if last_us - account.virtual_us <= self._lag_us or any(map(fits, queue[account.spec.name].values()))
        )
        for account in served:
            lead_us = account.virtual_us - least_us
            if lead_us > self._lag_us:
                self.held[account.spec.name] = AHEAD
            elif lead_us > 0:
                self.weight_milli[account.spec.name] = MILLI * self._lag_us // (self._lag_us + lead_us)
