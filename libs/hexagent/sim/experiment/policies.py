"""Which policies an experiment compares, and which of them are whose baselines."""

from collections.abc import Sequence
from typing import Final

from hexagent.core.policy.registry import RECIPES

_PAPER: Final = ("fcfs", "workflow-fcfs", "workflow-llf", "atlas")  # the paper's baselines
THE_PAPERS: Final = "hexagent"
CLAIRVOYANT: Final = "clairvoyant"
HINTED: Final = "+hints"  # after a name: clients hint their workflow's horizon
HINT_ERROR: Final = 0.1  # log error of these hints


def _paper(dispatch: str) -> tuple[str, ...]:
    """Each baseline of the paper with placement by count, which the paper seems to use, and with `dispatch`."""
    return tuple(f"{name}:{each}" for each in ("least-loaded", dispatch) for name in _PAPER)


PRACTICE: Final = ("conversation-sticky", "prefix-affinity", "aggregated")  # what is in use elsewhere
_OURS: Final = (THE_PAPERS, "hexagent-plus", f"hexagent-plus{HINTED}")
POLICIES: Final = {  # compared by default, by world
    "policy-only": (*_paper("predicted-finish"), "aggregated", *_OURS, CLAIRVOYANT),
    "full": (
        *_paper("cache-aware"),
        *PRACTICE,
        *(THE_PAPERS, f"{THE_PAPERS}:cache-aware", *_OURS[1:], CLAIRVOYANT),
    ),
}


def dispatch_of(policy: str) -> str:
    """How calls are placed, as the policy's name says or as it is meant when it does not say."""
    order, _, dispatch = unhinted(policy).partition(":")
    return dispatch or next(iter(RECIPES[order].dispatchers))


def unhinted(policy: str) -> str:
    """The policy's name in the registry, whether clients hint or not."""
    return policy.removesuffix(HINTED)


def predicts(policy: str) -> bool:
    """Whether calls go where they are predicted to finish first, or nearly so."""
    return dispatch_of(policy) in ("predicted-finish", "cache-aware", "keeping")


def published(policies: Sequence[str]) -> list[str]:
    """The paper's baselines as it seems to have run them."""
    return [name for name in strong(policies) if dispatch_of(name) == "least-loaded"]


def strong(policies: Sequence[str]) -> list[str]:
    """The paper's baselines with every dispatch."""
    return [name for name in policies if name.partition(":")[0] in _PAPER]


def every(policies: Sequence[str]) -> list[str]:
    """All that is not of this project or told the future."""
    return [name for name in policies if not name.startswith(THE_PAPERS) and name != CLAIRVOYANT]


def the_papers(policies: Sequence[str]) -> list[str]:
    """The paper's own policy."""
    return [name for name in policies if name == THE_PAPERS]


def ours(policies: Sequence[str]) -> list[str]:
    """The others, whose reductions are stated."""
    baselines = every(policies)
    return [name for name in policies if name not in baselines]
