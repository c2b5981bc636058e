"""Short prompts beside long ones, on engines where prompts advance equally."""

import pytest

from hexagent.core.instance.needs import Needs
from hexagent.core.instance.spec import Lora, Role
from tests.sim.cases import Desk, decodes, prefills

LONG, SHORT, SECOND_US = 100_000, 500, 1_000_000


def desk(*gpus: str, profile: str = "trtllm-equal-progress", policy: str = "hexagent") -> Desk:
    """Workflow `long` has a long prompt under way on p0, a second ago begun; `w` has none yet."""
    cached = policy == "hexagent-plus"
    specs = [s._replace(profile=profile, prefix_cache=cached) for s in prefills(*gpus) + decodes("h200")]
    d = Desk(tuple(specs), policy)
    d.start("long")
    d.start("w")
    d.reveal("long", "n", prompt=LONG)
    d.now_us = SECOND_US
    return d


@pytest.mark.parametrize("policy", ["fcfs", "atlas", "hexagent", "hexagent-plus"])
def test_a_short_prompt_shares_the_steps_of_a_long_one(policy: str) -> None:
    d = desk("h100", policy=policy)
    p0 = d.core.ledger.instances["p0"]
    (long,) = p0.prefilling.values()
    free_us, spare_us, end_us = p0.prefill_free_us, p0.spare_us, long.prefill_end_us
    d.reveal("w", "a", prompt=SHORT)
    assert d.calls == ["long/n", "w/a"]
    added_us = p0.prefill_free_us - free_us
    assert 0 < added_us < SECOND_US // 10
    assert (spare_us - p0.spare_us, long.prefill_end_us - end_us) == (added_us, added_us)
    assert SECOND_US < p0.prefilling[d.dispatched[-1].ticket].prefill_end_us < 4 * SECOND_US
    for dispatch in reversed(d.dispatched):
        d.run(dispatch)
    assert d.ledger_is_empty()


def test_it_waits_where_the_oldest_prompt_goes_first() -> None:
    d = desk("h100", profile="trtllm-1.2.1")
    d.reveal("w", "a", prompt=SHORT)
    assert d.calls == ["long/n"]


def test_a_prompt_that_is_not_much_shorter_waits() -> None:
    d = desk("h100")
    d.reveal("w", "a", prompt=LONG * 2 // 3)
    assert d.calls == ["long/n"]
    d.run(d.dispatched[0])
    assert d.calls == ["long/n", "w/a"]


def test_it_waits_for_an_instance_that_computes_it_earlier() -> None:
    d = desk("h100", "h200")
    d.reveal("w", "a", prompt=SHORT * 8)
    assert d.dispatched[-1].prefill_instance != d.dispatched[0].prefill_instance
    d.reveal("w", "b", prompt=SHORT)
    assert d.calls == ["long/n", "w/a"], "it would share steps of thousands of tokens with the long one"


def test_it_does_not_wait_for_an_idle_instance_that_serves_it_not() -> None:
    sql = (Lora("sql", 16),)
    specs = [s._replace(profile="trtllm-equal-progress", loras=sql) for s in prefills("h200") + decodes("h200")]
    d = Desk((*specs, specs[1]._replace(instance_id="p1", role=Role.PREFILL, gpu_type="a100", loras=())), "hexagent")
    d.start("long")
    d.start("w")
    d.reveal("long", "n", prompt=LONG)
    d.reveal("w", "a", prompt=SHORT, needs=Needs("sql"), now_us=SECOND_US)
    assert [dispatch.prefill_instance for dispatch in d.dispatched] == ["p0", "p0"]


def test_short_prompts_delay_a_long_one_by_no_more_than_its_own_time() -> None:
    d = desk("h100")
    p0 = d.core.ledger.instances["p0"]
    alone_us = p0.spare_us
    d.reveal("w", *[f"n{number:03}" for number in range(400)], prompt=4 * SHORT)
    delayed_us = p0.prefill_free_us - alone_us
    assert 0 <= p0.spare_us < alone_us // 10
    assert alone_us * 9 // 10 < delayed_us <= alone_us
    assert len(d.calls) < 401
