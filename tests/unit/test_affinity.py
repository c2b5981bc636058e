"""Routing by cached prefixes, and conversations that stay where their KV is."""

from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.effects import Dispatch
from hexagent.core.scheduling.events import InstanceDown, InstanceUp
from hexagent.core.workflow.events import NodesRevealed
from hexagent.core.workflow.model import CallSpec, NodeKind, NodeSpec, SegmentRef
from tests.sim.cases import CAP, MODEL, Desk, decodes, instance, prefills


def desk(policy: str, p: int = 2, d: int = 2, profile: str = "trtllm-1.2.1") -> Desk:
    specs = prefills(*["h100"] * p) + decodes(*["h100"] * d)
    return Desk(tuple(s._replace(prefix_cache=True, profile=profile) for s in specs), policy)


def say(desk: Desk, workflow: str, node: str, *segments: tuple[str, int], model: str = MODEL) -> Dispatch:
    """A call of one prompt; where it was dispatched."""
    refs = tuple(SegmentRef(*segment) for segment in segments)
    call = CallSpec(model, refs, sum(ref.tokens for ref in refs), CAP, expected_output_tokens=30)
    desk.tell(NodesRevealed(workflow, (NodeSpec(node, NodeKind.CALL, "", (), call=call),), desk.now_us))
    return desk.dispatched[-1]


def pair(dispatch: Dispatch) -> tuple[str, str]:
    return (dispatch.prefill_instance, dispatch.decode_instance)


def test_affinity_waits_for_the_prefix_unless_the_load_there_is_more() -> None:
    """2,100 tokens, 2,000 of them cached on p0, wait there behind 500 others but not behind 6,000."""
    for busy, chosen in ((500, "p0"), (6_000, "p1")):
        d = desk("prefix-affinity")
        d.start("w")
        d.run(say(d, "w", "a", ("doc", 2_000)))
        running = say(d, "w", "b", ("other", busy))
        assert [x.prefill_instance for x in d.dispatched] == ["p0", "p0"]
        say(d, "w", "c", ("doc", 2_000), ("own", 100))
        assert len(d.dispatched) == (2 if chosen == "p0" else 3)
        d.run(running)
        assert d.dispatched[2].prefill_instance == chosen


def test_affinity_balances_decode_by_context() -> None:
    d = desk("prefix-affinity", p=3)
    d.start("w")
    assert [say(d, "w", node, (node, size)).decode_instance for node, size in (("a", 4_000), ("b", 100))] == [
        "d0",
        "d1",
    ]
    d.start("v")
    assert say(d, "v", "c", ("c", 1_000)).decode_instance == "d1"


def test_a_conversation_stays_and_prefills_there_what_is_short() -> None:
    d = desk("conversation-sticky")
    d.start("w")
    first = say(d, "w", "a", ("doc", 2_000))
    assert first.prefill_instance == "p0"
    home = first.decode_instance
    d.run(first)
    short = say(d, "w", "b", ("doc", 2_000), ("ask", 200))
    assert pair(short) == (home, home)
    assert d.core.ledger.instances[home].pinned_tokens == 0
    assert d.core.ledger.instances[home].local_us > 0
    d.run(short)
    assert d.ledger_is_empty()
    long = say(d, "w", "c", ("doc", 2_000), ("ask", 200), ("result", 1_000))
    assert pair(long) == ("p0", home), "the prefill instance that has the document"


def test_a_conversation_has_a_home_for_each_model() -> None:
    d = desk("conversation-sticky")
    for other in prefills("h100") + decodes("h100"):
        name = f"small-{other.instance_id}"
        d.tell(InstanceUp(other._replace(instance_id=name, model="llama-3.1-8b", tp=1), (), 0))
    d.start("v")
    d.start("w")
    before = say(d, "v", "a", ("ask", 2_000))
    first = say(d, "w", "a", ("doc", 2_000))
    assert (before.decode_instance, first.decode_instance) == ("d0", "d1")
    for dispatch in (before, first):
        d.run(dispatch)
    d.run(say(d, "w", "b", ("doc", 2_000), model="llama-3.1-8b"))
    assert pair(say(d, "w", "c", ("doc", 2_000), ("ask", 200))) == ("d1", "d1")


def test_a_conversation_without_room_at_home_moves() -> None:
    specs = [s._replace(prefix_cache=True) for s in prefills("h100") + decodes("h100", "h100", kv_blocks=100)]
    d = Desk(tuple(specs), "conversation-sticky")
    d.start("w")
    d.run(say(d, "w", "a", ("doc", 1_000)))
    assert pair(say(d, "w", "b", ("doc", 1_000), ("ask", 100))) == ("d0", "d0")
    moved = say(d, "w", "c", ("doc", 1_000), ("more", 700))
    assert pair(moved) == ("p0", "d1")


def test_a_home_that_is_down_is_left() -> None:
    d = desk("conversation-sticky")
    d.start("w")
    first = say(d, "w", "a", ("doc", 2_000))
    d.run(first)
    d.tell(InstanceDown(first.decode_instance, 0))
    after = say(d, "w", "b", ("doc", 2_000), ("ask", 200))
    assert after.prefill_instance == "p0"
    assert after.decode_instance not in ("", first.decode_instance)


def test_an_engine_without_local_prefill_gets_none() -> None:
    d = desk("conversation-sticky", profile="push")
    d.start("w")
    first = say(d, "w", "a", ("doc", 2_000))
    d.run(first)
    assert pair(say(d, "w", "b", ("doc", 2_000), ("ask", 200))) == ("p0", first.decode_instance)


def test_other_policies_leave_prefill_to_prefill_instances() -> None:
    for policy in ("fcfs", "hexagent", "prefix-affinity", "fcfs:least-loaded"):
        d = desk(policy, p=1)
        d.start("w")
        for number in range(6):
            say(d, "w", f"n{number}", (f"s{number}", 50))
        assert {x.prefill_instance for x in d.dispatched} == {"p0"}


def test_with_every_prefill_instance_gone_decode_instances_do_what_they_can() -> None:
    d = Desk((instance("d0", "h100", Role.DECODE, prefix_cache=True),), "conversation-sticky")
    d.start("w")
    assert pair(say(d, "w", "a", ("doc", 4_000))) == ("d0", "d0")
