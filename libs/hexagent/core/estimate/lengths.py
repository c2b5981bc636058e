"""Predicted output lengths and tool times, with cold start from a role to its class to everything.

A prediction is a quantile of the latest lengths of a class and role, so that stated coverage is real coverage
whatever their distribution (split conformal prediction, see `RunningQuantiles.quantile`).

The calls of one class and role can be told apart by several views (`features.VIEWS`): what the workflow generated
before, the round of a loop, the size of the prompt, the model. A view has a *factor* for each of its buckets: the
bucket's mean over the role's, drawn to one while the bucket has few calls. Its scores are lengths over factors, so that
all buckets lend each other their spread, and a quantile of the scores times the bucket's factor is the prediction.
Which view tells anything differs by workload and by quantile, so the learner predicts with each, and for each quantile
the one whose predictions have cost least lately answers. A prediction costs its pinball loss, which the true quantile
minimises: per cent p times what it was too low by, 100 - p times what it was too high by.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from hexagent.core.estimate.features import MODEL, VIEWS, CallFeatures
from hexagent.core.estimate.quantiles import WINDOW, RunningQuantiles
from hexagent.core.estimate.snapshot import LengthQuantiles, Snapshot, ToolQuantiles
from hexagent.core.units import PPM, ceil_div

GROUPS_MAX: Final = 256  # classes, roles and tools remembered, 32 MiB; later ones fall back to wider groups
BUCKETS_MAX: Final = 64  # of one view of a class and role
BUCKET_ROWS_MAX: Final = 1_000  # of a snapshot, which every scheduler reads twice a second: 50 KiB
TRUSTED_SAMPLES: Final = 5  # below this a group's own quantiles are noise and the next wider group answers
PRIOR: Final = (100, 300, 600)  # tokens, before anything was observed
PERCENTS: Final = (50, 90, 99)
# Where the quantiles of PERCENTS stand among so many values in ascending order, see `RunningQuantiles.quantile`.
_RANKS: Final = [[min(ceil_div((n + 1) * percent, 100), n) - 1 for percent in PERCENTS] for n in range(WINDOW + 1)]
_HAZARDS_PPM: Final = (0, 693_147, 2_302_585, 4_605_170)  # -ln P(L > x) at 0 and at the quantiles of PERCENTS
# The same in the middle of each tenth: -ln(0.95), -ln(0.85), ... -ln(0.05).
_TENTHS_PPM: Final = (
    51_293, 162_519, 287_682, 430_783, 597_837, 798_508, 1_049_822, 1_386_294, 1_897_120, 2_995_732,
)  # fmt: skip

DRAWN: Final = 5  # calls that a factor of one weighs in a bucket's
SCORED_MIN: Final = 50  # predictions a view must have made before it may answer
GAIN_PERCENT: Final = 2  # what it must save against no view at all, so that chance does not choose
FORGET: Final = 256  # a loss counts 1/e after so many later ones
REMEMBER: Final = 2_048  # most calls that a mean is of


class PredictedLength(NamedTuple):
    """Output tokens, at least 1, at most what the call allows; q50 <= q90 <= q99."""

    q50: int
    q90: int
    q99: int

    def after(self, generated: int, max_tokens: int) -> "PredictedLength":
        """The same of an output that has not ended after `generated` tokens: quantiles of L given L > generated.

        The cumulative hazard -ln P(L > x) is taken as linear between 0 and the quantiles, and beyond the last one as
        between the last two, up to `max_tokens`; the tail of a log-normal length is longer than that.
        """
        spent_ppm = self._hazard_ppm(generated)
        quantiles = [max(self._length(spent_ppm + more), generated + 1) for more in _HAZARDS_PPM[1:]]
        return _within(quantiles, max_tokens)

    def expected_after(self, generated: int, max_tokens: int) -> int:
        """E[L | L > generated], as the mean over ten equally likely parts of that distribution."""
        spent_ppm = self._hazard_ppm(generated)
        parts = [max(self._length(spent_ppm + more), generated + 1) for more in _TENTHS_PPM]
        return sum([min(part, max_tokens) for part in parts]) // len(parts)

    def _hazard_ppm(self, tokens: int) -> int:
        """Cumulative hazard at a length, in ppm."""
        low, high, low_ppm, high_ppm = next((p for p in self._pieces() if tokens < p[1]), self._pieces()[-1])
        return low_ppm + (tokens - low) * (high_ppm - low_ppm) // max(high - low, 1)

    def _length(self, hazard_ppm: int) -> int:
        """Where the cumulative hazard reaches a value: the inverse."""
        low, high, low_ppm, high_ppm = next((p for p in self._pieces() if hazard_ppm <= p[3]), self._pieces()[-1])
        return low + ceil_div((hazard_ppm - low_ppm) * (high - low), high_ppm - low_ppm)

    def _pieces(self) -> list[tuple[int, int, int, int]]:
        """Lengths and cumulative hazards at both ends of each linear piece."""
        knots = (0, *self)
        return list(zip(knots, knots[1:], _HAZARDS_PPM, _HAZARDS_PPM[1:], strict=False))


class _Mean:
    """Mean of the latest values."""

    __slots__ = ("count", "total", "weight")

    def __init__(self) -> None:
        self.count = 0  # ever seen
        self.weight = 0
        self.total = 0

    def add(self, value: int) -> None:
        self.count += 1
        self.weight += 1
        self.total += value
        if self.weight == REMEMBER:
            self.weight //= 2
            self.total //= 2


class _View:
    """One view of a class and role: means by bucket, scores, and what predictions have cost lately, by percent."""

    __slots__ = ("buckets", "losses", "scores")

    def __init__(self) -> None:
        self.buckets: defaultdict[int, _Mean] = defaultdict(_Mean)
        self.losses = [0] * len(PERCENTS)
        self.scores = RunningQuantiles()

    def factor_ppm(self, bucket: int, all_calls: _Mean) -> int:
        """What outputs of the bucket are over those of all calls, of which there is at least one."""
        own = self.buckets.get(bucket)
        if own is None:
            return PPM
        mean = own.total * all_calls.weight + DRAWN * all_calls.total
        return max(mean * PPM // ((own.weight + DRAWN) * all_calls.total), 1)

    def observe(self, bucket: int, output_tokens: int, all_calls: _Mean) -> None:
        """Predict, pay, learn."""
        if all_calls.count:
            factor_ppm = self.factor_ppm(bucket, all_calls)
            if self.scores.count >= TRUSTED_SAMPLES:
                _charge(self.losses, self.scores, factor_ppm, output_tokens)
            self.scores.add(-(-output_tokens * PPM // factor_ppm))
        if bucket in self.buckets or len(self.buckets) < BUCKETS_MAX:
            self.buckets[bucket].add(output_tokens)

    def rows(self, key: tuple[str, str, str], all_calls: _Mean, answers: list[bool]) -> list[LengthQuantiles]:
        """The trusted buckets, with those of `PERCENTS` that the view answers for."""
        s50, s90, s99 = [
            self.scores.quantile(percent) if own else 0 for percent, own in zip(PERCENTS, answers, strict=True)
        ]
        rows = []
        for bucket, mean in self.buckets.items():
            if mean.count >= TRUSTED_SAMPLES:
                ppm = self.factor_ppm(bucket, all_calls)
                q50, q90, q99 = s50 * ppm // PPM, s90 * ppm // PPM, s99 * ppm // PPM
                rows.append(LengthQuantiles(*key, bucket, mean.count, q50, q90, q99, mean.total // mean.weight))
        return rows


class _Role:
    """Everything learned of a class and role: at most 120 KiB."""

    __slots__ = ("all", "losses", "mean", "views")

    def __init__(self, views: Sequence[str]) -> None:
        self.all = RunningQuantiles()
        self.mean = _Mean()
        self.losses = [0] * len(PERCENTS)  # of predictions without a view
        self.views = {name: _View() for name in views}

    def observe(self, features: CallFeatures, output_tokens: int) -> None:
        for name, view in self.views.items():
            view.observe(VIEWS[name](features), output_tokens, self.mean)
        if self.all.count >= TRUSTED_SAMPLES:
            _charge(self.losses, self.all, PPM, output_tokens)
        self.all.add(output_tokens)
        self.mean.add(output_tokens)

    def answering(self) -> list[str]:
        """The view that answers for each of `PERCENTS`, "" = none."""
        answering = []
        for place, loss in enumerate(self.losses):
            name = min(self.views, key=lambda view: self.views[view].losses[place])
            gains = self.views[name].losses[place] * 100 < loss * (100 - GAIN_PERCENT)
            answering.append(name if gains and self.all.count >= SCORED_MIN + TRUSTED_SAMPLES else "")
        return answering

    def rows(self, workflow_class: str, role: str) -> list[LengthQuantiles]:
        """The trusted buckets of the views that answer."""
        answering = self.answering()
        return [
            row
            for name in sorted({name for name in answering if name})
            for row in self.views[name].rows((workflow_class, role, name), self.mean, [name == of for of in answering])
        ]


def _charge(losses: list[int], scores: RunningQuantiles, factor_ppm: int, value: int) -> None:
    """Add the pinball loss of each of `PERCENTS`, in hundredths of a token, and forget some of the older ones."""
    values = scores.ascending
    ranks = _RANKS[len(values)]
    for place, percent in enumerate(PERCENTS):
        miss = value - values[ranks[place]] * factor_ppm // PPM
        cost = percent * miss if miss > 0 else (percent - 100) * miss
        losses[place] += cost - losses[place] // FORGET


class LengthLearner:
    """Learns what `LengthTable` answers, of a cluster with several models or a single one."""

    def __init__(self, several_models: bool = False) -> None:
        views = [name for name in VIEWS if name != MODEL or several_models]
        self._roles: defaultdict[tuple[str, str], _Role] = defaultdict(lambda: _Role(views))
        self._wide: defaultdict[str, RunningQuantiles] = defaultdict(RunningQuantiles)  # by class, "" = everything
        self._tools: defaultdict[str, RunningQuantiles] = defaultdict(RunningQuantiles)

    def observe_call(self, features: CallFeatures, output_tokens: int) -> None:
        """`features` as they were when the call became ready, which is when its length is predicted."""
        group = (features.workflow_class, features.role)
        if group in self._roles or len(self._roles) < GROUPS_MAX:
            self._roles[group].observe(features, output_tokens)
        for name in dict.fromkeys((features.workflow_class, "")):
            if name in self._wide or len(self._wide) < GROUPS_MAX:
                self._wide[name].add(output_tokens)

    def observe_tool(self, name: str, duration_us: int) -> None:
        if name in self._tools or len(self._tools) < GROUPS_MAX:
            self._tools[name].add(duration_us)

    def lengths(self) -> tuple[LengthQuantiles, ...]:
        """Of each class and role all calls, and buckets, those with the most calls first while there is room."""
        rows = [_row(name, "", quantiles) for name, quantiles in self._wide.items()]
        rows += [_row(*group, role.all) for group, role in self._roles.items() if group[1]]
        left = BUCKET_ROWS_MAX
        for group, role in sorted(self._roles.items(), key=lambda item: (-item[1].all.count, item[0])):
            buckets = role.rows(*group)
            if len(buckets) <= left:
                rows += buckets
                left -= len(buckets)
        return tuple(sorted(rows))

    def tools(self) -> tuple[ToolQuantiles, ...]:
        return tuple(ToolQuantiles(name, tool.count, *_three(tool)) for name, tool in sorted(self._tools.items()))


def _row(workflow_class: str, role: str, lengths: RunningQuantiles) -> LengthQuantiles:
    return LengthQuantiles(workflow_class, role, "", 0, lengths.count, *_three(lengths), lengths.mean)


def _three(values: RunningQuantiles) -> tuple[int, int, int]:
    """Those of `PERCENTS`."""
    ascending = values.ascending
    r50, r90, r99 = _RANKS[len(ascending)]
    return ascending[r50], ascending[r90], ascending[r99]


class LengthTable:
    """Answers from a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._by_group: dict[tuple[str, str], LengthQuantiles] = {}
        self._views: dict[tuple[str, str], dict[str, dict[int, LengthQuantiles]]] = {}  # by group, name and bucket
        for row in snapshot.lengths:
            group = (row.workflow_class, row.role)
            if row.view in VIEWS:
                self._views.setdefault(group, {}).setdefault(row.view, {})[row.bucket] = row
            elif not row.view and row.samples >= TRUSTED_SAMPLES:
                self._by_group[group] = row
        self._tools = {q.name: q for q in snapshot.tools}

    def predict(self, features: CallFeatures, max_tokens: int, hint: int) -> PredictedLength:
        """Within 1 and `max_tokens`; the client's `hint` only until the class is known."""
        group = (features.workflow_class, features.role)
        known = self._by_group.get(group) or self._by_group.get((features.workflow_class, ""))
        if known is None and hint > 0:
            return _within([hint, 2 * hint, 4 * hint], max_tokens)
        known = known or self._by_group.get(("", ""))
        if known is None:
            return _within(PRIOR, max_tokens)
        quantiles = [known.q50, known.q90, known.q99]
        for name, buckets in self._views.get(group, {}).items():
            row = buckets.get(VIEWS[name](features))
            if row is not None:
                quantiles = [own or other for own, other in zip((row.q50, row.q90, row.q99), quantiles, strict=True)]
        return _within(quantiles, max_tokens)

    def tool_us(self, name: str, hint_us: int) -> int:
        known = self._tools.get(name)
        return known.q50_us if known else hint_us


def _within(quantiles: Sequence[int], max_tokens: int) -> PredictedLength:
    """At least 1 and at most `max_tokens`; ascending, which those of different views need not be."""
    return PredictedLength(*[max(1, min(tokens, max_tokens)) for tokens in accumulate(quantiles, max)])
