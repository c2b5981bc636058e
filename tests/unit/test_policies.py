"""Orders and dispatchers on cases small enough to see the right answer."""

import pathlib

import numpy as np
import pytest

from hexagent.core.errors import NotFound, Unsupported
from hexagent.core.estimate.snapshot import SpeedFactor
from hexagent.core.ids import CallId
from hexagent.core.instance.spec import LinkSpec, Role
from hexagent.core.policy.earliest import smallest
from hexagent.core.policy.profile import DEFAULT
from hexagent.core.policy.registry import RECIPES, known
from hexagent.core.scheduling.effects import Record
from hexagent.core.scheduling.events import Phase, Tick
from hexagent.core.units import PPM
from hexagent.core.workflow.model import CallTimes, Hints
from tests.sim.cases import CAP, MODEL, PROMPT, Desk, decodes, instance, prefills


def busy(policy: str, *gpus: str, prompt: int = 700) -> Desk:
    """Prefill instances that each work on one call of their own."""
    desk = Desk(prefills(*(gpus or ("h100",))) + decodes("h100"), policy)
    for number in range(len(gpus or ("h100",))):
        desk.start(f"busy{number}")
        desk.reveal(f"busy{number}", "x", prompt=prompt)
    assert len(desk.dispatched) == len(gpus or ("h100",))
    return desk


def order_of(desk: Desk, now_us: int) -> list[str]:
    """What starts, one after the other, once the first call has ended: prompts too long to share a batch."""
    done = len(desk.live) - 1
    while done < len(desk.dispatched):
        desk.run(desk.dispatched[done], now_us)
        done += 1
    return desk.calls[1:]


@pytest.mark.parametrize("dispatch", ["", ":least-loaded"])
def test_fcfs_takes_calls_as_they_became_ready(dispatch: str) -> None:
    desk = busy(f"fcfs{dispatch}")
    desk.start("early", 1)
    desk.start("late", 2)
    desk.reveal("late", "a", now_us=3, prompt=8_000)
    desk.reveal("early", "b", now_us=4, prompt=8_000)
    assert order_of(desk, 5) == ["late/a", "early/b"]


@pytest.mark.parametrize("dispatch", ["", ":least-loaded"])
def test_workflow_fcfs_takes_calls_as_their_workflows_arrived(dispatch: str) -> None:
    desk = busy(f"workflow-fcfs{dispatch}")
    desk.start("early", 1)
    desk.start("late", 2)
    desk.reveal("late", "a", now_us=3, prompt=8_000)
    desk.reveal("early", "b", now_us=4, prompt=8_000)
    assert order_of(desk, 5) == ["early/b", "late/a"]


@pytest.mark.parametrize("dispatch", ["", ":least-loaded"])
def test_workflow_llf_takes_the_workflow_with_the_least_time_to_spare(dispatch: str) -> None:
    """At 3 us, of equal calls: `long` has a minute on its horizon behind it and so to spare, `short` has nothing."""
    desk = busy(f"workflow-llf{dispatch}")
    for workflow in ("long", "short"):
        desk.start(workflow, 1)
    desk.tool("long", "t", 60_000_000)
    desk.reveal("long", "a", after=("t",), now_us=2, prompt=8_000)
    desk.reveal("short", "b", now_us=2, prompt=8_000)
    assert order_of(desk, 3) == ["short/b", "long/a"]


def test_workflow_llf_takes_the_longest_revealed_path_of_a_workflow_first() -> None:
    """Of equal prompts the one with another call below it has that call's time less to spare."""
    desk = busy("workflow-llf")
    desk.start("w", 1)
    desk.reveal("w", "a", "b", now_us=2, prompt=8_000)
    desk.reveal("w", "c", after=("b",), now_us=2)
    assert order_of(desk, 3)[:2] == ["w/b", "w/a"]


def served(prefill_us: int, decode_us: int, waited_us: int = 0) -> CallTimes:
    """Of a call that was ready at 0, with a second on the way from prefill to decode."""
    start_us, end_us = waited_us, waited_us + prefill_us
    return CallTimes(
        prefill_start_us=start_us,
        prefill_end_us=end_us,
        transfer_start_us=end_us,
        transfer_end_us=end_us + 1_000_000,
        end_us=end_us + 1_000_000 + decode_us,
    )


def ran(policy: str, **times: CallTimes) -> Desk:
    """A desk with one busy prefill instance after the first call of each workflow has run as told."""
    desk = Desk(prefills("h100") + decodes("h100"), policy)
    for workflow, took in times.items():
        desk.start(workflow)
        desk.reveal(workflow, "first")
        desk.run(desk.dispatched[-1], 0, took)
    desk.start("busy")
    desk.reveal("busy", "x")
    return desk


@pytest.mark.parametrize("dispatch", ["", ":least-loaded"])
def test_atlas_takes_the_program_with_the_shortest_observed_path(dispatch: str) -> None:
    desk = ran(f"atlas{dispatch}", much=served(2_000_000, 3_000_000), little=served(1_000_000, 3_000_000, 500_000))
    before = len(desk.dispatched)
    for workflow in ("much", "little"):
        desk.reveal(workflow, "second", now_us=1, prompt=8_000)
    desk.start("fresh", 2)
    desk.reveal("fresh", "first", now_us=3, prompt=8_000)
    for done in range(before - 1, before + 2):
        desk.run(desk.dispatched[done], 4)
    assert desk.calls[before:] == ["fresh/first", "little/second", "much/second"]


def test_atlas_counts_a_path_not_a_sum() -> None:
    """Two parallel calls of 3 s make a path of 3 s; the call after them joins it."""
    desk = Desk(prefills("h100", "h100") + decodes("h100"), "atlas")
    desk.start("w")
    desk.reveal("w", "a", "b")
    for dispatch in desk.dispatched[:2]:
        desk.run(dispatch, 0, served(1_000_000, 2_000_000))
    desk.reveal("w", "c", after=("a", "b"))
    desk.run(desk.dispatched[2], 0, served(500_000, 500_000))
    service = desk.core.projection.workflows["w"].service
    assert (service.path_us, service.served_us, service.waited_us) == (4_000_000, 7_000_000, 3_000_000)


def test_atlas_promotes_a_program_that_has_waited_ten_times_its_service() -> None:
    for waited_us, first in ((38_999_998, "little/second"), (38_999_999, "much/second")):
        desk = ran(
            "atlas", much=served(2_000_000, 2_000_000, waited_us - 1_000_000), little=served(1_000_000, 2_000_000)
        )
        before = len(desk.dispatched)
        for workflow in ("much", "little"):
            desk.reveal(workflow, "second", now_us=1, prompt=8_000)
        desk.run(desk.dispatched[before - 1], 1_000_002)
        assert desk.calls[before] == first


def test_atlas_least_loaded_keeps_long_prompts_of_a_program_together_and_spreads_short_ones() -> None:
    for prompt, instances in ((2_049, {"p0"}), (2_048, {"p0", "p1"})):
        desk = Desk(prefills("h100", "h100") + decodes("h100"), "atlas:least-loaded")
        desk.start("w")
        for number in range(4):
            desk.reveal("w", f"n{number}", prompt=prompt)
        done = 0
        while done < len(desk.dispatched):
            desk.progress(desk.dispatched[done].ticket, Phase.PREFILLED)
            done += 1
        assert {d.prefill_instance for d in desk.dispatched} == instances


def test_hexagent_takes_the_workflow_that_is_relatively_latest() -> None:
    """Equal ages and calls: the workflow with the shorter horizon is later for its size."""
    desk = busy("hexagent")
    for workflow in ("long", "short"):
        desk.start(workflow, 1)
    desk.tool("long", "t", 60_000_000)
    desk.reveal("long", "a", now_us=2, prompt=8_000)
    desk.reveal("short", "b", now_us=2, prompt=8_000)
    assert order_of(desk, 3) == ["short/b", "long/a"]


def test_hexagent_takes_the_older_of_equal_workflows() -> None:
    desk = busy("hexagent")
    desk.start("old", 1)
    desk.start("young", 5_000_000)
    desk.reveal("young", "a", now_us=5_000_001, prompt=8_000)
    desk.reveal("old", "b", now_us=5_000_002, prompt=8_000)
    assert order_of(desk, 5_000_003) == ["old/b", "young/a"]


@pytest.mark.parametrize(("policy", "first"), [("hexagent", "w/a"), ("hexagent-plus", "w/b")])
def test_of_a_declared_plan_hexagent_plus_takes_the_branch_with_more_behind_it(policy: str, first: str) -> None:
    desk = busy(policy)
    desk.start("w", 1)
    desk.reveal("w", "plan", now_us=2)
    desk.reveal("w", "a", "b", after=("plan",), prompt=8_000)
    desk.reveal("w", "c", after=("b",))
    assert order_of(desk, 3)[:2] == ["w/plan", first]


def test_hexagent_plus_counts_on_a_part_of_what_a_client_says_is_still_to_come() -> None:
    """Equally late: of the one that is said to go on for long that is a smaller part."""
    desk = busy("hexagent-plus")
    desk.start("long", 1, hints=Hints(100_000_000))
    desk.start("short", 1)
    desk.reveal("long", "a", now_us=60_000_000, prompt=8_000)
    desk.reveal("short", "b", prompt=8_000)
    ages = desk.core.waiting[MODEL].ages(60_000_000)
    assert ages.unrevealed_us().tolist() == [pytest.approx(47_950_000 - ages.horizon_us[0], abs=10_000), 0]
    assert order_of(desk, 60_000_001) == ["short/b", "long/a"]


@pytest.mark.parametrize(
    ("policy", "age_s", "first"),
    [("hexagent", 20, "long"), ("hexagent-plus", 20, "short"), ("hexagent-plus", 200, "long")],
)
def test_hexagent_plus_lets_short_prompts_go_before_a_much_longer_one_until_that_is_later_still(
    policy: str, age_s: int, first: str
) -> None:
    """By lateness alone the long one is first each time."""
    desk, arrival_us = busy(policy), (age_s - 1) * 1_000_000
    desk.start("long", 1)
    desk.reveal("long", "a", now_us=2, prompt=60_000)
    for number in range(3):
        desk.start(f"short{number}", arrival_us)
        desk.reveal(f"short{number}", "a", now_us=arrival_us, prompt=6_000)
    assert order_of(desk, age_s * 1_000_000)[0].startswith(first)


class Told:
    """An oracle that knows of each call its output, the path below it in seconds and its workflow's horizon."""

    def __init__(self, **known: tuple[int, int, int]) -> None:
        self.known = known

    def output_tokens(self, call: CallId) -> int:
        return self.known.get(call.workflow_id, (30, 0, 1))[0]

    def below_us(self, call: CallId) -> int:
        return self.known.get(call.workflow_id, (30, 0, 1))[1] * 1_000_000

    def horizon_us(self, workflow_id: str) -> int:
        return self.known.get(workflow_id, (30, 0, 1))[2] * 1_000_000


def test_clairvoyant_takes_the_workflow_that_would_end_with_the_largest_stretch() -> None:
    """A second and what is below it over the horizon: 11/20 of `easy`, 5/5 of `tight`, 36/30 of `deep`."""
    oracle = Told(easy=(30, 10, 20), tight=(30, 4, 5), deep=(30, 35, 30))
    desk = Desk(prefills("h100") + decodes("h100"), "clairvoyant", oracle=oracle)
    desk.start("busy")
    desk.reveal("busy", "x")
    for workflow in oracle.known:
        desk.start(workflow, 1)
    for workflow in oracle.known:
        desk.reveal(workflow, "a", now_us=2, prompt=8_000)
    assert order_of(desk, 3) == ["deep/a", "tight/a", "easy/a"]


def test_true_lengths_take_the_place_of_predictions_in_reserve_and_horizon() -> None:
    desk = Desk(prefills("h100") + decodes("h100", profile="push"), "hexagent", oracle=Told(w=(77, 0, 1)))
    desk.start("w")
    effects = desk.reveal("w", "a", expected=500)
    record = next(e.record for e in effects if isinstance(e, Record))
    assert (record.predicted_output_tokens, record.reserve_output_tokens) == (77, 77)
    assert record.horizon_us == desk.core.estimator.solo_us(MODEL, PROMPT, 77)


def test_a_scheduler_without_an_oracle_refuses_to_be_clairvoyant() -> None:
    with pytest.raises(Unsupported, match="only a simulation knows") as caught:
        Desk(prefills("h100") + decodes("h100"), "clairvoyant")
    assert (caught.value.reason, caught.value.field) == ("SIMULATION_ONLY", "policy")
    with pytest.raises(NotFound, match="aggregated") as unknown:
        Desk(prefills("h100") + decodes("h100"), "clairvoyance")
    assert "clairvoyant" not in str(unknown.value).split("known:")[1]


def test_aggregated_keeps_a_workflow_on_its_instance_until_that_is_overloaded() -> None:
    """Up to 4 calls more than on the least loaded are borne."""
    both = tuple(instance(f"b{i}", "h100", Role.BOTH) for i in range(2))
    desk = Desk(both, "aggregated")
    desk.start("w")
    for number in range(6):
        desk.reveal("w", f"n{number:02}", now_us=number)
        if len(desk.dispatched) > number:
            desk.progress(desk.dispatched[number].ticket, Phase.PREFILLED)
    assert [d.prefill_instance for d in desk.dispatched] == ["b0"] * 5 + ["b1"]
    assert all(d.decode_instance == d.prefill_instance for d in desk.dispatched)
    desk.reveal("w", "moved", now_us=20)
    assert desk.dispatched[-1].prefill_instance == "b1"


def test_what_is_decoded_where_it_was_prefilled_is_reserved_once() -> None:
    desk = Desk((instance("b0", "h100", Role.BOTH),), "fcfs")
    desk.start("w")
    desk.reveal("w", "a")
    here = desk.core.ledger.instances["b0"]
    assert here.spec.kv_tokens - here.kv_free_tokens == PROMPT + CAP
    desk.progress(desk.dispatched[0].ticket, Phase.PREFILLED)
    assert here.spec.kv_tokens - here.kv_free_tokens == PROMPT + CAP
    desk.run(desk.dispatched[0])
    assert desk.ledger_is_empty()


def test_a_call_waits_for_the_fast_gpu_that_finishes_it_earlier_than_an_idle_slow_one() -> None:
    """A prompt of 8,000 takes an A100 1.4 s and an H200 0.5 s; the H200 is free in 50 ms."""
    desk = Desk(prefills("a100", "h200") + decodes("h200"))
    desk.start("w")
    desk.reveal("w", "first", prompt=700)
    assert desk.dispatched[0].prefill_instance == "p1"
    desk.reveal("w", "second", now_us=1_000, prompt=8_000)
    assert len(desk.dispatched) == 1
    desk.progress(desk.dispatched[0].ticket, Phase.PREFILLED, 52_000)
    assert [d.prefill_instance for d in desk.dispatched] == ["p1", "p1"]


def test_it_does_not_wait_where_the_slow_gpu_finishes_it_earlier() -> None:
    """The H200 is busy for two seconds."""
    desk = Desk(prefills("a100", "h200") + decodes("h200"))
    desk.start("w")
    desk.reveal("w", "first", prompt=24_000)
    desk.reveal("w", "second", now_us=1_000, prompt=700)
    assert [d.prefill_instance for d in desk.dispatched] == ["p1", "p0"]


def test_least_loaded_sees_counts_where_predicted_finish_sees_times() -> None:
    for policy, chosen in (("fcfs", "p1"), ("fcfs:least-loaded", "p0")):
        desk = Desk(prefills("a100", "h200") + decodes("h200"), policy)
        desk.start("w")
        desk.reveal("w", "a")
        assert desk.dispatched[0].prefill_instance == chosen


def test_least_loaded_starts_on_an_idle_slow_gpu_what_predicted_finish_lets_wait() -> None:
    desk = Desk(prefills("a100", "h200") + decodes("h200"), "fcfs:least-loaded")
    desk.start("w")
    desk.reveal("w", "first", "second", prompt=8_000)
    assert {d.prefill_instance for d in desk.dispatched} == {"p0", "p1"}


def test_least_loaded_decodes_where_the_fewest_calls_are() -> None:
    desk = Desk(prefills("h100", "h100") + decodes("a100", "h200"), "fcfs:least-loaded")
    desk.start("w")
    desk.reveal("w", "a", "b")
    assert [d.decode_instance for d in desk.dispatched] == ["d0", "d1"]


def test_predicted_finish_uses_learned_speeds() -> None:
    """The H200 turns out to be three times slower than its table, so the H100 is the faster one."""
    desk = Desk(prefills("h100", "h200") + decodes("h100", "h200"))
    desk.learn(SpeedFactor("p1", 3 * PPM, PPM, 9), SpeedFactor("d1", PPM, 3 * PPM, 9))
    desk.start("w")
    desk.reveal("w", "a")
    assert (desk.dispatched[0].prefill_instance, desk.dispatched[0].decode_instance) == ("p0", "d0")


def test_long_outputs_decode_on_the_fast_gpu_and_many_calls_spread() -> None:
    desk = Desk(prefills(*["h200"] * 6) + decodes("a100", "h100", "h200"))
    desk.start("w")
    desk.reveal("w", "a", expected=500)
    assert desk.dispatched[0].decode_instance == "d2"
    for number in range(5):
        desk.start(f"v{number}")
        desk.reveal(f"v{number}", "b", expected=5)
    # Of short outputs the step time matters less than the link, on which transfers wait for each other.
    assert {d.decode_instance for d in desk.dispatched[1:]} >= {"d1", "d2"}


@pytest.mark.parametrize("policy", ["fcfs", "fcfs:least-loaded", "hexagent"])
def test_an_instance_that_does_both_hands_over_to_itself_only(policy: str) -> None:
    both = [instance(f"b{i}", "h200", Role.BOTH) for i in range(2)]
    desk = Desk((*both, *prefills("a100"), *decodes("a100")), policy)
    desk.start("w")
    for number in range(6):
        desk.reveal("w", f"n{number}", prompt=8_000)
    assert len({d.prefill_instance for d in desk.dispatched}) >= 2
    for dispatch in desk.dispatched:
        pair = (dispatch.prefill_instance, dispatch.decode_instance)
        assert pair in (("b0", "b0"), ("b1", "b1"), ("p0", "d0"))


def test_a_slow_link_counts_in_the_predicted_finish() -> None:
    """Moving 4,000 tokens of KV takes 50 ms at 25 GB/s and 1.3 s at 1 GB/s."""
    slow = instance("d1", "h200", Role.DECODE, link=LinkSpec(1_000_000_000, 5_000))
    desk = Desk((*prefills("h200"), *decodes("a100"), slow))
    desk.start("w")
    desk.reveal("w", "short", prompt=4_000, expected=10)
    assert desk.dispatched[0].decode_instance == "d0"
    desk.run(desk.dispatched[0], 5_000_000)
    desk.reveal("w", "long", prompt=4_000, expected=500)
    assert desk.dispatched[1].decode_instance == "d1"


def test_small_prompts_share_a_batch_up_to_a_time() -> None:
    """Each of these adds about 30 ms to the batch, and 200 ms may be added to the first."""
    desk = busy("fcfs")
    desk.start("w")
    for number in range(12):
        desk.reveal("w", f"n{number:02}", now_us=number, prompt=600)
    desk.run(desk.dispatched[0], 1_000)
    batch = len(desk.dispatched) - 1
    assert 5 <= batch <= 9
    desk.tell(Tick(1_001), 1_001)
    assert len(desk.dispatched) == 1 + batch


@pytest.mark.parametrize("policy", known())
def test_a_profile_without_batches_starts_one_prompt_at_a_time(policy: str) -> None:
    desk = Desk(prefills("h100") + decodes("h100"), policy, profile=DEFAULT._replace(batch_us_max=0))
    desk.start("w")
    for number in range(4):
        desk.reveal("w", f"n{number}", now_us=number, prompt=1)
    for number in range(4):
        assert len(desk.dispatched) == number + 1
        desk.run(desk.dispatched[number], 1_000 + number)


def test_least_loaded_leaves_no_instance_idle_before_its_queue() -> None:
    desk = Desk(prefills("a100", "h100", "h200") + decodes("h100"), "fcfs:least-loaded")
    desk.start("w")
    desk.reveal("w", *[f"n{number}" for number in range(9)], prompt=8_000)
    for done in range(9):
        waiting = 9 - len(desk.dispatched)
        idle = [p for p in desk.core.ledger.pool(MODEL)[0] if not p.prefilling]
        assert not idle or waiting <= 3 * (3 - len(idle))  # each got three, so an idle one has started all of its own
        desk.run(desk.dispatched[done], 1_000 + done)


def test_a_batch_is_no_larger_than_one_engine_step() -> None:
    desk = busy("fcfs:least-loaded")
    desk.start("w")
    for number in range(4):
        desk.reveal("w", f"n{number}", now_us=number, prompt=4_000)
    desk.run(desk.dispatched[0], 1_000)
    assert desk.calls[1:] == ["w/n0"]  # two of 4,000 tokens would add more than the limit in time


@pytest.mark.parametrize("policy", ["fcfs", "hexagent"])
def test_more_waiting_calls_than_are_rescored_are_placed_too(policy: str) -> None:
    desk = busy(policy)
    for number in range(100):
        desk.start(f"w{number:03}", 1 + number)
        desk.reveal(f"w{number:03}", "a", now_us=1 + number)
    done = 0
    while done < len(desk.dispatched):
        desk.run(desk.dispatched[done], 1_000_000 + done)
        done += 1
    assert done == 101
    assert desk.calls[1:5] == ["w000/a", "w001/a", "w002/a", "w003/a"]
    assert desk.ledger_is_empty()


def test_every_policy_and_dispatcher_is_documented() -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "policies.md").read_text("utf-8")
    for name, recipe in RECIPES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        first = row.split("|")[4].split(",")[0].strip()
        assert first in (next(iter(recipe.dispatchers)), "the same")
        assert all(f"| `{dispatcher}` |" in text for dispatcher in recipe.dispatchers)


@pytest.mark.parametrize(("count", "values"), [(4, 3), (48, 300), (400, 300), (48, 3_000)])
def test_the_smallest_scores_come_in_order_and_equal_ones_as_they_stand(count: int, values: int) -> None:
    scores = [number * 7_919 % 101 for number in range(values)]
    expected = sorted(range(values), key=scores.__getitem__)[:count]
    assert smallest(np.array(scores, dtype=np.int64), count).tolist() == expected
