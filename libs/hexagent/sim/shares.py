"""What each tenant got of a simulated cluster, and what it got of it while all of them wanted more."""

from collections import Counter
from typing import NamedTuple

from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.workflow.model import CallOutcome


class TenantShare(NamedTuple):
    """Charged to one tenant for calls that ended, priced GPU-microseconds."""

    tenant: str
    weight: int
    charged_us: int
    contested_us: int  # of it, while every tenant had calls that waited


class Shares:
    """Counts from period to period; one in which every tenant has calls waiting all the time is contested."""

    def __init__(self, scheduler: SchedulerCore) -> None:
        self._tenants = scheduler.tenants
        self._charged_us: Counter[str] = Counter()
        self._contested_us: Counter[str] = Counter()
        self._before: Counter[str] = Counter()  # charged at the last look
        self._emptied: list[int] | None = None  # how often queues had been empty then; None = one was
        self._looked_us = 0
        self.contested_us = 0  # how long periods were contested

    def ended(self, tenant: str, outcome: CallOutcome) -> None:
        self._charged_us[tenant] += self._tenants.prices.charged(outcome)

    def look(self, now_us: int) -> None:
        """A period ends."""
        accounts = self._tenants.accounts.values()
        emptied = [account.emptied for account in accounts]
        if emptied == self._emptied:
            self.contested_us += now_us - self._looked_us
            self._contested_us += self._charged_us - self._before
        self._emptied = emptied if all(account.waiting for account in accounts) else None
        self._before = self._charged_us.copy()
        self._looked_us = now_us

    def rows(self) -> tuple[TenantShare, ...]:
        return tuple(
            TenantShare(tenant, account.spec.weight, self._charged_us[tenant], self._contested_us[tenant])
            for tenant, account in self._tenants.accounts.items()
        )
