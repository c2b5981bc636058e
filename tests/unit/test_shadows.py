"""Policies that plan beside the live one: which they may be, and what they say of a call."""

import pytest

from hexagent.core.errors import HexagentError
from hexagent.core.ids import CallId
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.scheduling.effects import Choice, Shadowed
from hexagent.core.scheduling.shadows import ShadowChoice, by_call
from hexagent.sim.clusters import named_cluster
from hexagent_services.scheduler.app import shadow_policies
from hexagent_services.scheduler.settings import SchedulerSettings


def test_what_a_shadow_says_of_each_call() -> None:
    a, b, c = (CallId("w", name) for name in "abc")
    made = (Choice(a, "p0", "d0"), Choice(b, "p1", "d1"))
    would_make = (Choice(b, "p2", "d2"), Choice(c, "p3", "d3"))
    said = by_call(Shadowed("fcfs", 7, made, would_make))
    assert said == {
        a: ShadowChoice("fcfs", 7, True, "", ""),
        b: ShadowChoice("fcfs", 7, True, "p2", "d2"),
        c: ShadowChoice("fcfs", 7, False, "p3", "d3"),
    }


def test_shadows_are_named_by_a_setting() -> None:
    settings = SchedulerSettings(shadow_policies="fcfs:least-loaded, hexagent,fcfs:least-loaded")
    found = shadow_policies(settings, named_cluster("mini"), DEFAULT)
    assert found == (("fcfs:least-loaded", DEFAULT), ("hexagent", DEFAULT))
    assert shadow_policies(SchedulerSettings(), named_cluster("mini"), DEFAULT) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fcfs,atlas,hexagent", "names 3 policies, more than 2"),
        ("fcfs,lifo", "unknown policy 'lifo'; known: fcfs"),
        ("clairvoyant", "is told the future"),
    ],
)
def test_bad_shadows_are_refused_by_the_setting(text: str, said: str) -> None:
    with pytest.raises(HexagentError) as caught:
        shadow_policies(SchedulerSettings(shadow_policies=text), named_cluster("mini"), DEFAULT)
    assert said in caught.value.message
    assert caught.value.field == "shadow_policies"
