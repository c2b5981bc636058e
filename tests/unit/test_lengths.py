"""Predicted output lengths: cold start, views that pay, views that do not."""

import random
from collections.abc import Callable

import pytest

from hexagent.core.estimate import lengths
from hexagent.core.estimate.features import CallFeatures, OwnOutputs, half_octave
from hexagent.core.estimate.lengths import (
    BUCKETS_MAX,
    PERCENTS,
    PRIOR,
    TRUSTED_SAMPLES,
    LengthLearner,
    LengthTable,
    PredictedLength,
)
from hexagent.core.estimate.snapshot import Snapshot

CAP = 4_096
Draw = Callable[[random.Random, CallFeatures], int]


def features(role: str = "step", prompt: int = 500, round_: int = 0, own: OwnOutputs = OwnOutputs()) -> CallFeatures:
    return CallFeatures("agent", role, prompt, round_, own)


def table(learner: LengthLearner) -> LengthTable:
    return LengthTable(Snapshot(1, 0, lengths=learner.lengths()))


def trained(draw: Draw, calls: int, seed: int = 1) -> tuple[LengthLearner, list[tuple[CallFeatures, int]]]:
    """A learner that has seen `calls`, and as many further ones; workflows have six calls each."""
    rng = random.Random(seed)
    seen: list[tuple[CallFeatures, int]] = []
    while len(seen) < 2 * calls:
        own = OwnOutputs()
        habit = rng.choice((20, 200, 1_000))
        for round_ in range(6):
            call = features(prompt=rng.choice((100, 1_000, 10_000)), round_=round_, own=own)
            tokens = draw(rng, call._replace(own=own._replace(last=habit)))
            seen.append((call, tokens))
            own = own.then(tokens)
    learner = LengthLearner()
    for call, tokens in seen[:calls]:
        learner.observe_call(call, tokens)
    return learner, seen[calls:]


def pinball(predicted: PredictedLength, tokens: int) -> int:
    misses = [(percent, tokens - q) for percent, q in zip(PERCENTS, predicted, strict=True)]
    return sum(percent * miss if miss > 0 else (percent - 100) * miss for percent, miss in misses)


def around(rng: random.Random, mean: int) -> int:
    return max(1, int(mean * rng.lognormvariate(0, 0.4)))


@pytest.mark.parametrize(
    ("view", "draw"),
    [
        ("own", lambda rng, call: around(rng, call.own.last)),
        ("prompt", lambda rng, call: around(rng, call.prompt_tokens // 10)),
        ("round", lambda rng, call: around(rng, 30 * (call.round + 1) ** 2)),
    ],
)
def test_the_view_that_tells_something_answers(view: str, draw: Draw) -> None:
    learner, later = trained(draw, 1_500)
    assert {row.view.split("-")[0] for row in learner.lengths()} == {"", view}
    with_view = table(learner)
    without = LengthTable(Snapshot(1, 0, lengths=tuple(row for row in learner.lengths() if not row.view)))
    losses = [
        sum(pinball(answers.predict(call, CAP, 0), tokens) for call, tokens in later)
        for answers in (with_view, without)
    ]
    assert losses[0] < 0.8 * losses[1]
    for place, percent in enumerate(PERCENTS):
        below = sum(tokens <= with_view.predict(call, CAP, 0)[place] for call, tokens in later)
        assert abs(100 * below / len(later) - percent) < 5


@pytest.mark.parametrize("seed", range(5))
def test_no_view_answers_where_none_tells_anything(seed: int) -> None:
    learner, _ = trained(lambda rng, call: around(rng, 100), 1_500, seed)
    assert {row.view for row in learner.lengths()} == {""}


def test_answers_come_from_the_narrowest_group_that_is_known() -> None:
    learner = LengthLearner()
    assert table(learner).predict(features(), CAP, 0).q50 == PRIOR[0]
    assert table(learner).predict(features(), CAP, 70) == (70, 140, 280)
    for _ in range(10):
        learner.observe_call(features("plan"), 300)
    assert table(learner).predict(features("plan"), CAP, 70).q50 == 300
    assert table(learner).predict(features("other"), CAP, 70).q50 == 300
    assert table(learner).predict(CallFeatures("stranger", "", 10), CAP, 0).q50 == 300
    assert table(learner).predict(CallFeatures("stranger", "", 10), CAP, 70).q50 == 70
    assert table(learner).predict(features("plan"), 128, 0) == (128, 128, 128)


def test_half_octaves_ascend_two_a_doubling() -> None:
    buckets = [half_octave(tokens) for tokens in range(1, 10_000)]
    assert buckets == sorted(buckets)
    assert all(half_octave(2 * tokens) == half_octave(tokens) + 2 for tokens in range(1, 1_000))


def told_by_prompt(learner: LengthLearner, role: str, buckets: int, calls: int) -> None:
    """Outputs that the size of the prompt tells, so many calls for each size."""
    for number in range(buckets * calls):
        learner.observe_call(features(role, prompt=1 << number % buckets), 1 + number % buckets)


def test_buckets_of_a_role_are_bounded() -> None:
    learner = LengthLearner()
    told_by_prompt(learner, "step", BUCKETS_MAX + 6, 3 * TRUSTED_SAMPLES)
    assert len([row for row in learner.lengths() if row.view == "prompt"]) == BUCKETS_MAX


def test_buckets_of_a_snapshot_are_bounded_and_go_to_the_roles_with_most_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "BUCKET_ROWS_MAX", 9)
    learner = LengthLearner()
    for role, buckets, calls in (("few", 5, 40), ("most", 5, 80), ("small", 4, 40), ("many", 5, 60)):
        told_by_prompt(learner, role, buckets, calls)
    assert [row.role for row in learner.lengths() if row.view] == ["most"] * 5 + ["small"] * 4


@pytest.mark.parametrize("generated", [0, 20, 100, 250])
def test_what_is_left_of_an_output_that_goes_on(generated: int) -> None:
    """Log-normal lengths of which three quantiles are known, which says little of how they are spread between."""
    rng = random.Random(7)
    drawn = sorted(int(100 * rng.lognormvariate(0, 0.8)) + 1 for _ in range(200_000))
    whole = PredictedLength(*[drawn[len(drawn) * percent // 100] for percent in PERCENTS])
    left = [tokens for tokens in drawn if tokens > generated]
    predicted = whole.after(generated, CAP)
    for percent, quantile in zip(PERCENTS, predicted, strict=True):
        below = 100 * sum(tokens <= quantile for tokens in left) / len(left)
        assert abs(below - percent) < {50: 10, 90: 4, 99: 2}[percent]
    assert whole.expected_after(generated, CAP) == pytest.approx(sum(left) / len(left), rel=0.25)


def test_outputs_that_outlast_every_prediction_end_at_what_they_may_generate() -> None:
    whole = PredictedLength(100, 200, 300)
    assert whole.after(0, CAP) == whole
    assert whole.after(90, CAP).q50 > 100
    assert whole.after(5_000, CAP) == (CAP, CAP, CAP)
    assert whole.expected_after(CAP - 1, CAP) == CAP
    told = PredictedLength(50, 50, 50)
    assert told.after(10, CAP) == told
    assert told.after(60, CAP).q50 == 61


def test_models_of_one_role_are_told_apart_where_there_are_several() -> None:
    rng = random.Random(3)
    learner = LengthLearner(several_models=True)
    for _ in range(400):
        for model, mean in (("short", 40), ("long", 600)):
            learner.observe_call(features()._replace(model=model), around(rng, mean))
    known = table(learner)
    short, long, other = [known.predict(features()._replace(model=m), CAP, 0) for m in ("short", "long", "other")]
    assert 25 < short.q50 < 60
    assert 400 < long.q50 < 900
    assert short.q50 < other.q50 < long.q50
