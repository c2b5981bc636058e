"""Placement that knows prefix caches, and the rows it is priced by."""

import random

import numpy as np
import pytest

from hexagent.core.instance.io import PrefixSegment, salt
from hexagent.core.policy.hits import Found, Hits
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.events import CallProgress, Phase
from hexagent.core.scheduling.ledger import Mixing
from hexagent.core.workflow.events import NodesRevealed
from hexagent.core.workflow.model import CallSpec, NodeKind, NodeSpec, NodeStatus, SegmentRef
from tests.sim.cases import CAP, MODEL, Desk, decodes, prefills


def desk(policy: str, *gpus: str, kv_blocks: int = 10_000) -> Desk:
    specs = prefills(*gpus) + decodes("h100")
    return Desk(tuple(s._replace(prefix_cache=True, kv_blocks=kv_blocks) for s in specs), policy)


def reveal(desk: Desk, workflow: str, node: str, *segments: tuple[str, int]) -> None:
    refs = tuple(SegmentRef(*segment) for segment in segments)
    call = CallSpec(MODEL, refs, sum(ref.tokens for ref in refs), CAP, expected_output_tokens=30)
    desk.tell(NodesRevealed(workflow, (NodeSpec(node, NodeKind.CALL, "", (), call=call),), desk.now_us))


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [("fcfs", "p0"), ("hexagent:cache-aware", "p0"), ("hexagent", "p1"), ("fcfs:predicted-finish", "p1")],
)
def test_a_cached_prompt_goes_to_the_slow_gpu_that_has_it(policy: str, chosen: str) -> None:
    """4,000 tokens take the H200 0.26 s; the last 400 after the rest take the A100 0.11 s."""
    d = desk(policy, "a100", "h200")
    d.start("w")
    cache = d.core.ledger.instances["p0"].cache
    assert cache is not None
    cache.keep((salt("default", MODEL, ""), PrefixSegment("long", 3_600)), 3_600)
    reveal(d, "w", "next", ("long", 3_600), ("more", 400))
    assert d.dispatched[0].prefill_instance == chosen


def test_short_rests_of_long_cached_prompts_share_a_step() -> None:
    """Two prompts of 6,000 tokens are more than a step of 8,192, but not what is left of them."""
    d = desk("fcfs", "h100")
    d.start("w")
    for node in ("a", "b"):
        reveal(d, "w", node, (node, 6_000))
        d.run(d.dispatched[-1])
    reveal(d, "w", "busy", ("x", 700))
    for node in ("a", "b"):
        reveal(d, "w", f"{node}2", (node, 6_000), ("more", 100))
    assert len(d.dispatched) == 3
    d.run(d.dispatched[2], 1_000_000)
    assert len(d.dispatched) == 5


def _times(topology: Topology, found: Found) -> list[tuple[int, int]]:
    """What each instance holds of the prompt, and the table time of the rest."""
    usual_us = [found.nominal_us[kind] for kind in topology.books.kinds]
    return [(found.tokens_on(i), found.others_us.get(i, us)) for i, us in enumerate(usual_us)]


def test_rows_follow_calls_and_beliefs() -> None:
    """Whatever came, went, was committed or evicted: each row is what asking anew would give."""
    rng = random.Random(1)
    d = desk("fcfs", "a100", "h200", kv_blocks=60)
    for number in range(4):
        d.start(f"w{number}")
    waiting_seen = 0
    for number in range(300):
        d.now_us += 1_000
        if rng.random() < 0.6:
            own = [(f"s{rng.randrange(6)}", 64 * rng.randrange(1, 4)) for _ in range(rng.randrange(3))]
            reveal(d, f"w{number % 4}", f"n{number}", ("sys", 96), *own, (f"own{number}", 32))
        elif d.live:
            dispatch = rng.choice(list(d.live.values()))
            attempt = d.core.ledger.attempts[dispatch.ticket]
            if attempt.phase < Phase.PREFILLED:
                found = max(0, attempt.cached_tokens - 64 * rng.randrange(2))
                d.tell(CallProgress(dispatch.ticket, Phase.PREFILLED, "", d.now_us, cached_tokens=found))
            else:
                for phase in (Phase.DECODING, Phase.ENDED):
                    d.progress(dispatch.ticket, phase)
                del d.live[dispatch.ticket.call]
                d.finish(dispatch.ticket.call, NodeStatus.SUCCEEDED)
        waiting = d.core.waiting[MODEL] if d.core.waiting else None
        if waiting:
            topology = d.core._topology(MODEL, Mixing.NONE)
            kept, anew = waiting.hits(topology), Hits(topology, waiting.calls)
            assert kept is not None
            assert [_times(topology, found) for found in kept.found] == [_times(topology, f) for f in anew.found]
            every = np.arange(len(waiting))
            assert (kept.arrays(every) == anew.arrays(every)).all()
            assert kept.least_us.tolist() == anew.least_us.tolist()
            assert (kept.most_us >= anew.most_us).all()
            waiting_seen = max(waiting_seen, len(waiting))
    assert waiting_seen > 64, "rows were added beyond the first ones"
