"""An order that sees ages as shares of tenants and terms of workflows weigh them."""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from hexagent.core.policy.order import NOT_NOW, Ages, IntArray, Order
from hexagent.core.policy.terms import terms_milli
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.tenants import Tenants
from hexagent.core.units import LONGEST_US, MILLI

WEIGHT_MAX: Final = 8  # shares and terms together let an age count at most so many times, and at least an 8th
FLOOR_STARTS: Final = 16


class AgeingFloor:
    """Of FLOOR_STARTS calls of a model that start, one at least has waited longest, if that is longer than `ageing_us`.

    So nothing waits for ever for want of urgency, and the order keeps nearly all of the cluster.
    """

    def __init__(self, ageing_us: int) -> None:
        self._ageing_us = ageing_us
        self._passed: dict[str, int] = {}  # starts since the last one of a call that had waited longest, by model

    def started(self, call: Call, still_waiting: Sequence[Call]) -> None:
        """`still_waiting` are the other calls of the model in first-come order."""
        longest = not still_waiting or call.order < still_waiting[0].order
        self._passed[call.model] = 0 if longest else self._passed.get(call.model, 0) + 1

    def due(self, waiting: Sequence[Call], now_us: int) -> bool:
        """Whether the call that waits longest, the first one, has its turn."""
        longest = waiting[0]
        return now_us - longest.ready_us > self._ageing_us and self._passed.get(longest.model, 0) >= FLOOR_STARTS - 1


class WeighedOrder:
    """Any order, over ages of workflows and calls times a weight; calls of tenants that are held do not start.

    An age that counts half lets its call fall behind others gently, whatever the order makes of ages. `with_terms`
    names the live workflows that have any.
    """

    def __init__(self, order: Order, tenants: Tenants, with_terms: Collection[str], floor: AgeingFloor) -> None:
        self.projected = order.projected
        self._order, self._tenants, self._with_terms, self._floor = order, tenants, with_terms, floor
        self._seen: tuple[Ages, int] | None = None  # what the rest is made from
        self._weighed: Ages
        self._held: npt.NDArray[np.bool_] | None = None
        self._first = -1  # row that has its turn before all others, -1 = none

    def scores(self, ages: Ages, finish_us: IntArray) -> IntArray:
        tenants = self._tenants
        if not (tenants.held or tenants.weight_milli or self._with_terms or self._floor.due(ages.calls, ages.now_us)):
            return self._order.scores(ages, finish_us)
        if self._seen is None or self._seen[0] is not ages or self._seen[1] != tenants.revision:
            self._look(ages)
        scores = self._order.scores(self._weighed, finish_us)
        if self._first >= 0:
            scores = scores.copy()
            scores[self._first] = -NOT_NOW
        return scores if self._held is None else np.where(self._held, NOT_NOW, scores)

    def _look(self, ages: Ages) -> None:
        tenants = self._tenants
        names = [call.workflow.tenant for call in ages.calls]
        milli = np.array([tenants.weight_milli.get(name, MILLI) for name in names], dtype=np.int64)
        if self._with_terms:
            milli = np.clip(milli * _terms_milli(ages) // MILLI, MILLI // WEIGHT_MAX, MILLI * WEIGHT_MAX)
        self._weighed = ages._replace(
            ready_us=_weighed(ages.ready_us, milli, ages.now_us),
            arrival_us=_weighed(ages.arrival_us, milli, ages.now_us),
        )
        self._held = np.array([name in tenants.held for name in names], dtype=bool) if tenants.held else None
        self._first = 0 if self._floor.due(ages.calls, ages.now_us) else -1
        self._seen = ages, tenants.revision


def _terms_milli(ages: Ages) -> IntArray:
    """Of each call its workflow's weight."""
    by_workflow: dict[str, int] = {}
    for call in ages.calls:
        workflow_id = call.call_id.workflow_id
        if workflow_id not in by_workflow:
            by_workflow[workflow_id] = terms_milli(call.workflow, ages.now_us)
    return np.array([by_workflow[call.call_id.workflow_id] for call in ages.calls], dtype=np.int64)


def _weighed(since_us: IntArray, milli: IntArray, now_us: int) -> IntArray:
    """Since when something lasts whose age counts `milli` thousandths."""
    weighed_us: IntArray = now_us - np.minimum((now_us - since_us) * milli // MILLI, LONGEST_US)
    return weighed_us
