"""Policies that plan on the live state without acting, held against the one that acts."""

from collections.abc import Callable
from typing import Final, NamedTuple

from hexagent.core.ids import CallId
from hexagent.core.policy.dispatch import Plan
from hexagent.core.policy.registry import Policy
from hexagent.core.scheduling.effects import Choice, Shadowed

SHADOWS_MAX: Final = 2  # beside a live scheduler


class Agreement:
    """Of one shadow: points at which it or the acting policy started calls."""

    __slots__ = ("elsewhere", "other", "same")

    def __init__(self) -> None:
        self.same = 0  # the same calls at the same places
        self.elsewhere = 0  # the same calls, one of them at another place
        self.other = 0  # other calls


class ShadowChoice(NamedTuple):
    """What a shadow would have done with a call at a point at which it or the acting policy started it."""

    policy: str
    at_us: int
    made: bool  # the acting policy started the call then
    prefill_instance: str  # "" = the shadow would not have started it then
    decode_instance: str


class Shadows:
    """Plans at one of `every` points where the acting policy plans; the state is left as it is."""

    def __init__(self, policies: tuple[Policy, ...], every: int) -> None:
        self.agreement = {policy.name: Agreement() for policy in policies}
        self._policies = policies
        self._every = every
        self._points = 0

    def compared(self, plan: Plan, planned: Callable[[Policy], Plan], now_us: int) -> list[Shadowed]:
        """One for each shadow, if it or the acting policy starts something here."""
        self._points += 1
        if not self._policies or self._points % self._every:
            return []
        made = choices(plan)
        found = [Shadowed(policy.name, now_us, made, choices(planned(policy))) for policy in self._policies]
        found = [one for one in found if one.made or one.would_make]
        for one in found:
            self._count(one)
        return found

    def _count(self, found: Shadowed) -> None:
        agreement = self.agreement[found.policy]
        if not found.differs:
            agreement.same += 1
        elif [choice.call for choice in found.made] == [choice.call for choice in found.would_make]:
            agreement.elsewhere += 1
        else:
            agreement.other += 1


def choices(plan: Plan) -> tuple[Choice, ...]:
    """The calls that the plan would start, in its order."""
    return tuple(
        Choice(d.placed.call.call_id, d.placed.chosen.prefill_instance, d.placed.chosen.decode_instance)
        for d in plan.decisions
    )


def by_call(found: Shadowed) -> dict[CallId, ShadowChoice]:
    """What was found, for each call that either would start."""
    made, would = ({choice.call: choice for choice in side} for side in (found.made, found.would_make))
    return {
        call: ShadowChoice(found.policy, found.at_us, call in made, *(would[call][1:] if call in would else ("", "")))
        for call in [*made, *(call for call in would if call not in made)]
    }
