"""Policies by name: an order and a dispatcher. `NAME:DISPATCHER` is another dispatch of the same order."""

from collections.abc import Callable
from typing import Final, NamedTuple

from hexagent.core.errors import NotFound, Unsupported
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.policy.affinity import PrefixAffinity
from hexagent.core.policy.atlas import Atlas
from hexagent.core.policy.clairvoyant import Clairvoyant
from hexagent.core.policy.dispatch import Dispatcher, LeastLoaded, PredictedFinish
from hexagent.core.policy.fcfs import Fcfs
from hexagent.core.policy.hexagent import Hexagent
from hexagent.core.policy.hexagent_plus import HexagentPlus
from hexagent.core.policy.home import AtHome
from hexagent.core.policy.interleaving import Interleaving
from hexagent.core.policy.keeping import Keeping
from hexagent.core.policy.order import Order
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.policy.sticky import ConversationSticky
from hexagent.core.policy.workflow_fcfs import WorkflowFcfs
from hexagent.core.policy.workflow_llf import WorkflowLlf
from hexagent.core.scheduling.ledger import Mixing

NEVER_FULL = 1 << 31  # calls


class Policy(NamedTuple):
    name: str
    order: Order
    dispatcher: Dispatcher


Dispatchers = dict[str, Callable[[Estimator, Profile], Dispatcher]]


class Recipe(NamedTuple):
    """How a policy is made; its first dispatcher is the one meant when none is named."""

    order: Callable[[Estimator, Profile], Order]
    dispatchers: Dispatchers
    clairvoyant: bool = False  # works only with an oracle
    aggregated: bool = False  # on instances that are not disaggregated


def _clairvoyant(estimator: Estimator, profile: Profile) -> Order:
    if estimator.oracle is None:
        raise Unsupported(
            "policy 'clairvoyant' is told the future, which only a simulation knows; a live scheduler cannot run it",
            reason="SIMULATION_ONLY",
            field="policy",
        )
    return Clairvoyant(estimator.oracle)


# What the paper gives its own policy comes first for it; every other has the strongest dispatch by default.
PAPER: Final[Dispatchers] = {
    "predicted-finish": lambda estimator, profile: Interleaving(PredictedFinish(estimator, profile), estimator),
    "cache-aware": lambda estimator, profile: Interleaving(PredictedFinish(estimator, profile, True), estimator, True),
    "least-loaded": lambda _, profile: LeastLoaded(profile),
}
EITHER: Final[Dispatchers] = {"cache-aware": PAPER["cache-aware"]} | PAPER
ATLAS: Final[Dispatchers] = EITHER | {
    "least-loaded": lambda _, profile: AtHome(profile, profile.atlas_spread_tokens, NEVER_FULL),
}
KEEPING: Final[Dispatchers] = {
    "keeping": lambda estimator, profile: Interleaving(Keeping(estimator, profile), estimator, True),
}
AFFINITY: Final[Dispatchers] = {"prefix-affinity": lambda _, profile: PrefixAffinity(profile)}
CONVERSATION: Final[Dispatchers] = {"conversation-sticky": lambda _, profile: ConversationSticky(profile)}
STICKY: Final[Dispatchers] = {"sticky": lambda _, profile: AtHome(profile, 0, profile.sticky_excess_calls)}
RECIPES: Final[dict[str, Recipe]] = {
    "fcfs": Recipe(lambda _, __: Fcfs(), EITHER),
    "workflow-fcfs": Recipe(lambda _, __: WorkflowFcfs(), EITHER),
    "workflow-llf": Recipe(lambda _, __: WorkflowLlf(), EITHER),
    "atlas": Recipe(lambda _, profile: Atlas(profile), ATLAS),
    "prefix-affinity": Recipe(lambda _, __: Fcfs(), AFFINITY),
    "conversation-sticky": Recipe(lambda _, __: Fcfs(), CONVERSATION),
    "aggregated": Recipe(lambda _, __: Fcfs(), STICKY, aggregated=True),
    "hexagent": Recipe(lambda _, __: Hexagent(), PAPER),
    "hexagent-plus": Recipe(lambda _, profile: HexagentPlus(profile), KEEPING),
    "clairvoyant": Recipe(_clairvoyant, KEEPING, clairvoyant=True),
}


def policy_by_name(name: str, estimator: Estimator, profile: Profile = DEFAULT) -> Policy:
    """The policy `NAME` or `NAME:DISPATCHER`; `NotFound` lists the known names.

    `Unsupported` (SIMULATION_ONLY) for `clairvoyant` where `estimator` has no oracle.
    """
    recipe, make = _recipe(name, estimator.oracle is not None)
    return Policy(name, recipe.order(estimator, profile), make(estimator, profile))


def is_clairvoyant(name: str) -> bool:
    """Whether the policy works only with an oracle."""
    return _recipe(name, True)[0].clairvoyant


def is_aggregated(name: str) -> bool:
    """Whether the policy runs on instances that are not disaggregated."""
    return _recipe(name, True)[0].aggregated


def keeps_roles(name: str, cluster: ClusterSpec) -> bool:
    """Whether under the policy prefill instances of `cluster` only prefill and decode instances only decode."""
    recipe, make = _recipe(name, True)
    cached = any(spec.prefix_cache for spec in cluster.instances)
    kept = (Mixing.NONE,) if cached else (Mixing.NONE, Mixing.EITHER)
    return not recipe.aggregated and make(Estimator(cluster), DEFAULT).mixing in kept


def _recipe(name: str, clairvoyant: bool) -> tuple[Recipe, Callable[[Estimator, Profile], Dispatcher]]:
    order, _, dispatcher = name.partition(":")
    recipe = RECIPES.get(order)
    make = recipe and recipe.dispatchers.get(dispatcher or next(iter(recipe.dispatchers)))
    if recipe is None or make is None:
        names = ", ".join(known(clairvoyant))
        raise NotFound(f"unknown policy {name!r}; known: {names}", reason="UNKNOWN_POLICY", field="policy")
    return recipe, make


def known(clairvoyant: bool = False) -> tuple[str, ...]:
    """Every name there is, the short form of a policy's first dispatch; those that need an oracle only if asked for."""
    return tuple(
        name if number == 0 else f"{name}:{dispatcher}"
        for name, recipe in RECIPES.items()
        for number, dispatcher in enumerate(recipe.dispatchers)
        if clairvoyant or not recipe.clairvoyant
    )
