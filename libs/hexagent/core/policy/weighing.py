"""An order that sees ages as the shares of tenants weigh them."""

import numpy as np
import numpy.typing as npt

from hexagent.core.policy.order import NOT_NOW, Ages, IntArray, Order
from hexagent.core.scheduling.tenants import Tenants
from hexagent.core.units import MILLI

AGE_MAX_US = 10**12  # about 11 days; what is weighed counts as at most so old


class WeighedOrder:
    """Any order, over ages of workflows and calls times a weight; calls of tenants that are held do not start.

    An age that counts half lets its call fall behind others gently, whatever the order makes of ages.
    """

    def __init__(self, order: Order, tenants: Tenants) -> None:
        self.projected = order.projected
        self._order, self._tenants = order, tenants
        self._seen: tuple[Ages, int] | None = None  # what `_weighed` and `_held` are made from
        self._weighed: Ages
        self._held: npt.NDArray[np.bool_] | None = None

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        tenants = self._tenants
        if not (tenants.held or tenants.weight_milli):
            return self._order.scores(ages, finish_us)
        if self._seen is None or self._seen[0] is not ages or self._seen[1] != tenants.revision:
            self._look(ages)
        scores = self._order.scores(self._weighed, finish_us)
        return scores if self._held is None else np.where(self._held, NOT_NOW, scores)

    def _look(self, ages: Ages) -> None:
        tenants = self._tenants
        names = [call.workflow.tenant for call in ages.calls]
        milli = np.array([tenants.weight_milli.get(name, MILLI) for name in names], dtype=np.int64)
        self._weighed = ages._replace(
            ready_us=_weighed(ages.ready_us, milli, ages.now_us),
            arrival_us=_weighed(ages.arrival_us, milli, ages.now_us),
        )
        self._held = np.array([name in tenants.held for name in names], dtype=bool) if tenants.held else None
        self._seen = ages, tenants.revision


def _weighed(since_us: IntArray, milli: IntArray, now_us: int) -> IntArray:
    """Since when something lasts whose age counts `milli` thousandths."""
    weighed_us: IntArray = now_us - np.minimum((now_us - since_us) * milli // MILLI, AGE_MAX_US)
    return weighed_us
