"""Policies by name: an order and a dispatcher. `NAME:least-loaded` is the baseline dispatch of any order."""

from collections.abc import Callable
from typing import NamedTuple

from hexagent.core.errors import NotFound
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.dispatch import Dispatcher, LeastLoaded, PredictedFinish
from hexagent.core.policy.fcfs import Fcfs
from hexagent.core.policy.hexagent import Hexagent
from hexagent.core.policy.order import Order
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.policy.workflow_fcfs import WorkflowFcfs

ORDERS: dict[str, Callable[[], Order]] = {"fcfs": Fcfs, "workflow-fcfs": WorkflowFcfs, "hexagent": Hexagent}
DISPATCHERS: dict[str, Callable[[Estimator, Profile], Dispatcher]] = {
    "predicted-finish": PredictedFinish,
    "least-loaded": LeastLoaded,
}


class Policy(NamedTuple):
    name: str
    order: Order
    dispatcher: Dispatcher


def policy_by_name(name: str, estimator: Estimator, profile: Profile = DEFAULT) -> Policy:
    """The policy `ORDER` or `ORDER:DISPATCHER`; `NotFound` lists the known names."""
    order, _, dispatcher = name.partition(":")
    if order not in ORDERS or (dispatcher or "predicted-finish") not in DISPATCHERS:
        known = ", ".join(ORDERS)
        raise NotFound(
            f"unknown policy {name!r}; known: {known}, each also with :{' or :'.join(DISPATCHERS)}",
            reason="UNKNOWN_POLICY",
            field="policy",
        )
    return Policy(name, ORDERS[order](), DISPATCHERS[dispatcher or "predicted-finish"](estimator, profile))
