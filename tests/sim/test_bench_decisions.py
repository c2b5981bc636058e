"""What `bench decisions` measures: a scheduler whose queue keeps its length."""

from collections import Counter
from pathlib import Path

import pytest

from hexagent.cli.bench.decisions import DecisionOptions, cases, decision_rows, draw, items, sized
from hexagent.cli.bench.held_queue import HeldQueue
from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.spec import Role
from hexagent.core.policy.registry import known
from hexagent.core.scheduling.effects import Effect, Record
from hexagent.core.scheduling.events import SchedulerEvent

OPTIONS = DecisionOptions(("fcfs", "hexagent"), ("policy-only", "full"), (10,), (1, 100), 20, 1)


def test_a_row_a_case_and_a_picture_of_them(tmp_path: Path) -> None:
    rows = decision_rows(OPTIONS, lambda _: None)
    assert [(row["policy"], row["world"], row["instances"], row["ready_calls"]) for row in rows] == cases(OPTIONS)
    assert len(rows) == 8
    for row in rows:
        assert 0 < float(str(row["p50_ms"])) <= float(str(row["p99_ms"]))
    draw(rows, tmp_path / "decisions.png")
    assert (tmp_path / "decisions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("policy", known())
def test_every_live_policy_can_be_timed(policy: str) -> None:
    assert len(HeldQueue(sized(10), policy, items(1)[:100], 12).decide(5)) == 5


def test_a_case_has_neither_far_too_few_nor_far_too_many_calls() -> None:
    options = OPTIONS._replace(
        policies=("fcfs",), worlds=("full",), instances=(10, 1_000), ready_calls=(1, 10, 100, 1_000, 10_000)
    )
    assert [(case.instances, case.ready_calls) for case in cases(options)] == [
        *[(10, ready_calls) for ready_calls in (1, 10, 100, 1_000)],
        *[(1_000, ready_calls) for ready_calls in (100, 1_000, 10_000)],
    ]


def test_decisions_are_timed_with_the_queue_at_its_length() -> None:
    queue = HeldQueue(sized(10), "hexagent", items(1), 70)
    handle = queue.core.handle
    lengths: list[int] = []

    def handled(event: SchedulerEvent, now_us: int) -> tuple[Effect, ...]:
        effects = handle(event, now_us)
        lengths.extend(effect.record.waiting for effect in effects if isinstance(effect, Record))
        return effects

    queue.core.handle = handled  # type: ignore[method-assign]
    assert len(queue.decide(50)) == 50
    assert sum(len(waiting) for waiting in queue.core.waiting.values()) == 70
    assert lengths.count(70) > 0.8 * len(lengths) > 20


@pytest.mark.parametrize("instances", [10, 20, 60])
def test_half_of_the_instances_prefill(instances: int) -> None:
    roles = Counter(spec.role for spec in sized(instances).instances)
    assert roles == {Role.PREFILL: instances // 2, Role.DECODE: instances // 2}


def test_in_the_full_world_most_prompts_are_found_on_a_few_instances() -> None:
    queue = HeldQueue(sized(40, "full"), "fcfs", items(1), 60)
    queue.decide(20)
    [waiting] = queue.core.waiting.values()
    caches = [instance.cache for instance in queue.core.ledger.instances.values()]
    found = [
        sum(2 * cache.match(call.chain, call.prompt_tokens) > call.prompt_tokens for cache in caches if cache)
        for call in waiting.calls
    ]
    assert sum(2 <= places < 20 for places in found) > 30


def test_other_worlds_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="known: policy-only, full"):
        cases(OPTIONS._replace(worlds=("fuller",)))


def test_other_sizes_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="multiple of 20"):
        sized(30)
