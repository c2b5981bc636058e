"""Policies by name: an order and a dispatcher. `NAME:DISPATCHER` is another dispatch of the same order."""

from collections.abc import Callable
from typing import Final, NamedTuple

from hexagent.core.errors import NotFound
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.policy.atlas import Atlas
from hexagent.core.policy.dispatch import Dispatcher, LeastLoaded, PredictedFinish
from hexagent.core.policy.fcfs import Fcfs
from hexagent.core.policy.hexagent import Hexagent
from hexagent.core.policy.home import AtHome
from hexagent.core.policy.order import Order
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.policy.workflow_fcfs import WorkflowFcfs
from hexagent.core.policy.workflow_llf import WorkflowLlf

NEVER_FULL = 1 << 31  # calls


class Policy(NamedTuple):
    name: str
    order: Order
    dispatcher: Dispatcher


Dispatchers = dict[str, Callable[[Estimator, Profile], Dispatcher]]


class Recipe(NamedTuple):
    """How a policy is made; its first dispatcher is the one meant when none is named."""

    order: Callable[[Profile], Order]
    dispatchers: Dispatchers


EITHER: Final[Dispatchers] = {
    "predicted-finish": PredictedFinish,
    "least-loaded": lambda _, profile: LeastLoaded(profile),
}
ATLAS: Final[Dispatchers] = EITHER | {
    "least-loaded": lambda _, profile: AtHome(profile, profile.atlas_spread_tokens, NEVER_FULL),
}
RECIPES: Final[dict[str, Recipe]] = {
    "fcfs": Recipe(lambda _: Fcfs(), EITHER),
    "workflow-fcfs": Recipe(lambda _: WorkflowFcfs(), EITHER),
    "workflow-llf": Recipe(lambda _: WorkflowLlf(), EITHER),
    "atlas": Recipe(Atlas, ATLAS),
    "hexagent": Recipe(lambda _: Hexagent(), EITHER),
}


def policy_by_name(name: str, estimator: Estimator, profile: Profile = DEFAULT) -> Policy:
    """The policy `NAME` or `NAME:DISPATCHER`; `NotFound` lists the known names."""
    order, _, dispatcher = name.partition(":")
    recipe = RECIPES.get(order)
    make = recipe and recipe.dispatchers.get(dispatcher or next(iter(recipe.dispatchers)))
    if recipe is None or make is None:
        raise NotFound(f"unknown policy {name!r}; known: {', '.join(known())}", reason="UNKNOWN_POLICY", field="policy")
    return Policy(name, recipe.order(profile), make(estimator, profile))


def known() -> tuple[str, ...]:
    """Every name there is, the short form of a policy's first dispatch."""
    return tuple(
        name if number == 0 else f"{name}:{dispatcher}"
        for name, recipe in RECIPES.items()
        for number, dispatcher in enumerate(recipe.dispatchers)
    )
