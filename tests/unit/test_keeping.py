"""`hexagent-plus`: instances of either role that do both phases of a call, and whose turn it is with caches."""

import pytest

from hexagent.core.instance.spec import InstanceSpec, LinkSpec, Role
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.scheduling.effects import Dispatch
from hexagent.core.scheduling.events import Phase
from hexagent.core.workflow.events import NodesRevealed
from hexagent.core.workflow.model import CallSpec, NodeKind, NodeSpec, SegmentRef
from hexagent.sim.clusters import LINK
from tests.sim.cases import CAP, MODEL, Desk, decodes, instance, prefills


def desk(
    specs: tuple[InstanceSpec, ...],
    cached: bool = True,
    profile: str = "trtllm-1.2.1",
    cheap_us: int = DEFAULT.cheap_prefill_us,
) -> Desk:
    specs = tuple(s._replace(prefix_cache=cached, profile=profile) for s in specs)
    return Desk(specs, "hexagent-plus", profile=DEFAULT._replace(cheap_prefill_us=cheap_us))


def reveal(desk: Desk, workflow: str, node: str, *segments: SegmentRef, output_tokens: int = 2) -> None:
    call = CallSpec(MODEL, segments, sum(s.tokens for s in segments), CAP, expected_output_tokens=output_tokens)
    desk.tell(NodesRevealed(workflow, (NodeSpec(node, NodeKind.CALL, "", (), call=call),), desk.now_us))


def say(desk: Desk, node: str, tokens: int = 100, output_tokens: int = 400) -> Dispatch:
    """A call of a prompt of its own; where it was dispatched."""
    reveal(desk, "w", node, SegmentRef(node, tokens), output_tokens=output_tokens)
    return desk.dispatched[-1]


def kept(dispatch: Dispatch) -> bool:
    return dispatch.prefill_instance == dispatch.decode_instance


def test_a_faster_prefill_instance_keeps_a_call_and_reserves_its_output() -> None:
    d = desk(prefills("h200") + decodes("a100"))
    d.start("w")
    first = say(d, "a")
    assert kept(first)
    home = d.core.ledger.instances["p0"]
    assert home.reserved_tokens == 100 + first.reserve_output_tokens
    assert home.pinned_tokens == 0
    d.run(first)
    assert d.ledger_is_empty()


def test_a_faster_decode_instance_gets_the_call() -> None:
    d = desk(prefills("a100") + decodes("h200"))
    d.start("w")
    long = say(d, "a", tokens=DEFAULT.local_prefill_tokens_max + 1)
    assert (long.prefill_instance, long.decode_instance) == ("p0", "d0")


@pytest.mark.parametrize("link", [LINK, LINK._replace(bytes_per_s=LINK.bytes_per_s // 2)])
def test_what_is_short_behind_a_cached_prefix_is_appended_where_that_decodes(link: LinkSpec) -> None:
    """Links of one kind or of two; the prefill instance has no more of the prompt than the decode instance."""
    d = desk((*prefills("a100"), *decodes("h200"), instance("d1", "h200", Role.DECODE, link=link)))
    d.start("w")
    most = DEFAULT.local_prefill_tokens_max
    for node, tokens in (("long", most + 1), ("short", most)):
        said = SegmentRef(f"before {node}", 1_600)
        reveal(d, "w", f"before-{node}", said, output_tokens=400)
        first = d.dispatched[-1]
        assert first.prefill_instance == "p0"
        assert not kept(first)
        d.run(first)
        reveal(d, "w", node, said, SegmentRef(node, tokens), output_tokens=400)
        home = first.decode_instance if node == "short" else "p0"
        assert d.dispatched[-1].prefill_instance == home
        assert kept(d.dispatched[-1]) == (node == "short")
        d.run(d.dispatched[-1])
    assert d.ledger_is_empty()


def test_prefill_avoids_the_instance_where_it_would_hold_up_others() -> None:
    """The prompt is 40 times the other's, and nothing but what it holds up tells the prefill instances apart."""
    d = desk(prefills("h200", "h200") + decodes("a100"))
    d.start("w")
    d.progress(say(d, "a").ticket, Phase.PREFILLED)
    assert say(d, "b", tokens=4_000, output_tokens=2).prefill_instance == "p1"


@pytest.mark.parametrize("busy", [False, True])
def test_a_long_prompt_for_a_short_output_is_kept_only_while_little_else_is_computed(busy: bool) -> None:
    """Work that comes while the prompt is computed would be done before the output, and the link takes less."""
    d = desk(prefills("h200", "h200") + decodes("h200"))
    d.start("w")
    if busy:
        say(d, "a", tokens=8_000)
    assert kept(say(d, "b", tokens=8_000, output_tokens=4)) is not busy


def test_roles_stay_where_nothing_is_cached_or_the_engine_cannot_do_both_phases() -> None:
    for cached, profile in ((False, "trtllm-1.2.1"), (True, "push")):
        d = desk(prefills("h200") + decodes("a100"), cached, profile)
        d.start("w")
        assert not kept(say(d, "a"))


def test_a_prefill_instance_without_room_for_the_output_hands_over() -> None:
    d = desk(tuple(s._replace(kv_blocks=10) for s in prefills("h200")) + decodes("a100"))
    d.start("w")
    assert not kept(say(d, "a"))


@pytest.mark.parametrize(("cached", "cheap_us"), [(True, DEFAULT.cheap_prefill_us), (True, 1 << 36), (False, 1_000)])
def test_of_calls_as_late_the_one_whose_prompt_is_cached_goes_first(cached: bool, cheap_us: int) -> None:
    """By lateness alone it is behind: its workflow has a horizon of two calls."""
    d = desk(prefills("h100") + decodes("h100"), cached=cached, cheap_us=cheap_us)
    for workflow in ("long", "cold", "warm"):
        d.start(workflow)
    said = SegmentRef("said", 16_000)
    reveal(d, "warm", "first", said)
    d.run(d.dispatched[-1])
    reveal(d, "long", "a", SegmentRef("a", 30_000))
    reveal(d, "cold", "b", SegmentRef("b", 16_000))
    reveal(d, "warm", "second", said, SegmentRef("more", 100))
    d.now_us = 8_000_000
    d.run(d.dispatched[-1])
    cheap = cached and cheap_us == DEFAULT.cheap_prefill_us
    assert d.calls[-1] == ("warm/second" if cheap else "cold/b")
