"""Predicted output lengths and tool times, with cold start from a role to its class to everything.

The calls of one class and role can be told apart by several views (`features.VIEWS`): what the workflow generated
before, the round of a loop, the size of the prompt. Which of them tells anything differs by workload, so the learner
predicts with each, and the one whose predictions have cost least lately answers. A prediction costs its pinball loss,
which the true quantile minimises: per cent p times what it was too low by, 100 - p times what it was too high by.
"""

from typing import NamedTuple

from hexagent.core.estimate.features import VIEWS, CallFeatures
from hexagent.core.estimate.quantiles import RunningQuantiles
from hexagent.core.estimate.snapshot import LengthQuantiles, Snapshot, ToolQuantiles

GROUPS_MAX = 1_000  # classes and roles remembered; later ones fall back to wider groups
BUCKETS_MAX = 64  # of one view of a class and role
BUCKET_ROWS_MAX = 1_000  # of a snapshot, which every scheduler reads twice a second: 50 KiB
TRUSTED_SAMPLES = 5  # below this a group's own quantiles are noise and the next wider group answers
TRUSTED_BUCKET = 20  # the same for a bucket, which competes with a good answer
PRIOR_Q50, PRIOR_Q90, PRIOR_Q99 = 100, 300, 600  # tokens, before anything was observed
PERCENTS = (50, 90, 99)

SCORED_MIN = 50  # predictions a view must have made before it may answer
GAIN_PERCENT = 2  # what it must save against no view at all, so that chance does not choose
FORGET = 256  # a loss counts 1/e after so many later ones


class PredictedLength(NamedTuple):
    """Output tokens, at least 1, at most what the call allows; q50 <= q90 <= q99."""

    q50: int
    q90: int
    q99: int


class _View:
    """One view of a class and role: quantiles by bucket, and what its predictions have cost lately."""

    __slots__ = ("buckets", "loss")

    def __init__(self) -> None:
        self.buckets: dict[int, RunningQuantiles] = {}
        self.loss = 0

    def observe(self, bucket: int, output_tokens: int, otherwise: RunningQuantiles) -> None:
        """Predict, pay, learn; a bucket that is not trusted yet predicts what `otherwise` does."""
        own = self.buckets.get(bucket)
        trusted = own is not None and own.count >= TRUSTED_BUCKET
        if otherwise.count >= TRUSTED_SAMPLES:
            self.loss += _pinball(own if own is not None and trusted else otherwise, output_tokens)
            self.loss -= self.loss // FORGET
        if own is None and len(self.buckets) < BUCKETS_MAX:
            own = self.buckets[bucket] = RunningQuantiles()
        if own is not None:
            own.add(output_tokens)


class _Role:
    """Everything learned of a class and role."""

    __slots__ = ("all", "loss", "views")

    def __init__(self) -> None:
        self.all = RunningQuantiles()
        self.loss = 0  # of predictions without a view
        self.views = {name: _View() for name in VIEWS}

    def observe(self, features: CallFeatures, output_tokens: int) -> None:
        for name, view in self.views.items():
            view.observe(VIEWS[name](features), output_tokens, self.all)
        if self.all.count >= TRUSTED_SAMPLES:
            self.loss += _pinball(self.all, output_tokens)
            self.loss -= self.loss // FORGET
        self.all.add(output_tokens)

    def rows(self, workflow_class: str, role: str) -> list[LengthQuantiles]:
        """The trusted buckets of the view that answers, if one does."""
        name = min(self.views, key=lambda view: self.views[view].loss)
        enough = self.all.count >= SCORED_MIN + TRUSTED_SAMPLES
        if not enough or self.views[name].loss * 100 >= self.loss * (100 - GAIN_PERCENT):
            return []
        return [
            _row(workflow_class, role, quantiles, name, bucket)
            for bucket, quantiles in self.views[name].buckets.items()
            if quantiles.count >= TRUSTED_BUCKET
        ]


def _pinball(quantiles: RunningQuantiles, value: int) -> int:
    """Loss of predicting the quantiles of `PERCENTS`, in hundredths of a token."""
    loss = 0
    for percent in PERCENTS:
        miss = value - quantiles.quantile(percent)
        loss += percent * miss if miss > 0 else (percent - 100) * miss
    return loss


class LengthLearner:
    """Learns what `LengthTable` answers."""

    def __init__(self) -> None:
        self._roles: dict[tuple[str, str], _Role] = {}
        self._wide: dict[str, RunningQuantiles] = {}  # by class, "" = everything
        self._tools: dict[str, RunningQuantiles] = {}

    def observe_call(self, features: CallFeatures, output_tokens: int) -> None:
        """`features` as they were when the call was revealed."""
        group = (features.workflow_class, features.role)
        if group in self._roles or len(self._roles) < GROUPS_MAX:
            self._roles.setdefault(group, _Role()).observe(features, output_tokens)
        for name in dict.fromkeys((features.workflow_class, "")):
            if name in self._wide or len(self._wide) < GROUPS_MAX:
                self._wide.setdefault(name, RunningQuantiles()).add(output_tokens)

    def observe_tool(self, name: str, duration_us: int) -> None:
        if name in self._tools or len(self._tools) < GROUPS_MAX:
            self._tools.setdefault(name, RunningQuantiles()).add(duration_us)

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
        return tuple(
            ToolQuantiles(name, q.count, q.quantile(50), q.quantile(90)) for name, q in sorted(self._tools.items())
        )


def _row(
    workflow_class: str, role: str, quantiles: RunningQuantiles, view: str = "", bucket: int = 0
) -> LengthQuantiles:
    q50, q90, q99 = (quantiles.quantile(percent) for percent in PERCENTS)
    return LengthQuantiles(workflow_class, role, view, bucket, quantiles.count, q50, q90, q99, quantiles.mean)


class LengthTable:
    """Answers from a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._by_group: dict[tuple[str, str], LengthQuantiles] = {}
        self._view: dict[tuple[str, str], str] = {}
        self._by_bucket: dict[tuple[str, str, int], LengthQuantiles] = {}
        for row in snapshot.lengths:
            if row.view in VIEWS:
                self._view[row.workflow_class, row.role] = row.view
                self._by_bucket[row.workflow_class, row.role, row.bucket] = row
            elif not row.view and row.samples >= TRUSTED_SAMPLES:
                self._by_group[row.workflow_class, row.role] = row
        self._tools = {q.name: q for q in snapshot.tools}

    def predict(self, features: CallFeatures, max_tokens: int, hint: int) -> PredictedLength:
        """Within 1 and `max_tokens`; the client's `hint` only until the class is known."""
        group = (features.workflow_class, features.role)
        known = None
        view = self._view.get(group)
        if view is not None:
            known = self._by_bucket.get((*group, VIEWS[view](features)))
        known = known or self._by_group.get(group) or self._by_group.get((features.workflow_class, ""))
        if known is None and hint > 0:
            return _within(hint, 2 * hint, 4 * hint, max_tokens)
        known = known or self._by_group.get(("", ""))
        if known is None:
            return _within(PRIOR_Q50, PRIOR_Q90, PRIOR_Q99, max_tokens)
        return _within(known.q50, known.q90, known.q99, max_tokens)

    def tool_us(self, name: str, hint_us: int) -> int:
        known = self._tools.get(name)
        return known.q50_us if known else hint_us


def _within(q50: int, q90: int, q99: int, max_tokens: int) -> PredictedLength:
    return PredictedLength(max(1, min(q50, max_tokens)), max(1, min(q90, max_tokens)), max(1, min(q99, max_tokens)))
