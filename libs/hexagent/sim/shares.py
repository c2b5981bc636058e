"""What each tenant got of a simulated cluster, and what it got of it while all of them wanted more."""

from collections import Counter
from typing import NamedTuple

from hexagent.core.scheduling.core import TICK_US, SchedulerCore
from hexagent.core.workflow.model import CallOutcome


class TenantShare(NamedTuple):
    """Charged to one tenant for calls that ended, priced GPU-microseconds."""

    tenant: str
    weight: int
    charged_us: int
    contested_us: int  # of it, for calls that started while every tenant had others waiting


class Shares:
    """Counts by periods of TICK_US; one in which every tenant has calls waiting all the time is contested."""

    def __init__(self, scheduler: SchedulerCore) -> None:
        self._tenants = scheduler.tenants
        self._charged_us: Counter[tuple[str, int]] = Counter()  # by tenant and period in which the call started
        self._contested: dict[int, None] = {}  # periods
        self._emptied: list[int] | None = None  # how often queues had been empty at the last look; None = one was

    @property
    def contested_us(self) -> int:
        """How long it was contested."""
        return len(self._contested) * TICK_US

    def ended(self, tenant: str, outcome: CallOutcome) -> None:
        started = outcome.times.dispatched_us // TICK_US
        self._charged_us[tenant, started] += self._tenants.prices.charged(outcome)

    def look(self, now_us: int) -> None:
        """A period ends."""
        accounts = self._tenants.accounts.values()
        emptied = [account.emptied for account in accounts]
        if emptied == self._emptied:
            self._contested[now_us // TICK_US - 1] = None
        self._emptied = emptied if all(account.waiting for account in accounts) else None

    def rows(self) -> tuple[TenantShare, ...]:
        charged_us: Counter[str] = Counter()
        contested_us: Counter[str] = Counter()
        for (tenant, period), priced_us in self._charged_us.items():
            charged_us[tenant] += priced_us
            contested_us[tenant] += priced_us if period in self._contested else 0
        return tuple(
            TenantShare(tenant, account.spec.weight, charged_us[tenant], contested_us[tenant])
            for tenant, account in self._tenants.accounts.items()
        )
