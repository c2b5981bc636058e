"""Running quantiles of output lengths and tool times, by class and role, with cold start from wider groups."""

from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

from hexagent.core.estimate.snapshot import LengthQuantiles, Snapshot, ToolQuantiles

WINDOW = 512  # samples a group remembers: enough for a 99 % quantile, recent enough to follow a change
GROUPS_MAX = 1_000  # groups remembered; later ones fall back to wider groups
TRUSTED_SAMPLES = 5  # below this a group's own quantiles are noise and the next wider group answers
PRIOR_Q50, PRIOR_Q90 = 100, 300  # tokens, before anything was observed


class RunningQuantiles:
    """Exact quantiles of the last `WINDOW` samples."""

    __slots__ = ("_recent", "_sorted", "count", "total")

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self.count = 0  # ever seen
        self.total = 0  # sum over the window

    def add(self, value: int) -> None:
        self.count += 1
        self._recent.append(value)
        insort(self._sorted, value)
        self.total += value
        if len(self._recent) > WINDOW:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self.total -= oldest

    def quantile(self, percent: int) -> int:
        """The smallest sample that is >= `percent` % of the window; the window must not be empty."""
        rank = -(-len(self._sorted) * percent // 100)
        return self._sorted[max(rank, 1) - 1]

    @property
    def mean(self) -> int:
        return self.total // len(self._sorted)


class LengthLearner:
    """Learns what `LengthTable` answers."""

    def __init__(self) -> None:
        self._lengths: dict[tuple[str, str], RunningQuantiles] = {}
        self._tools: dict[str, RunningQuantiles] = {}

    def observe_call(self, workflow_class: str, role: str, output_tokens: int) -> None:
        for group in dict.fromkeys(((workflow_class, role), (workflow_class, ""), ("", ""))):
            quantiles = self._lengths.get(group)
            if quantiles is None:
                if len(self._lengths) >= GROUPS_MAX:
                    continue
                quantiles = self._lengths[group] = RunningQuantiles()
            quantiles.add(output_tokens)

    def observe_tool(self, name: str, duration_us: int) -> None:
        if name in self._tools or len(self._tools) < GROUPS_MAX:
            self._tools.setdefault(name, RunningQuantiles()).add(duration_us)

    def lengths(self) -> tuple[LengthQuantiles, ...]:
        return tuple(
            LengthQuantiles(*group, q.count, q.quantile(50), q.quantile(90), q.quantile(99), q.mean)
            for group, q in sorted(self._lengths.items())
        )

    def tools(self) -> tuple[ToolQuantiles, ...]:
        return tuple(
            ToolQuantiles(name, q.count, q.quantile(50), q.quantile(90)) for name, q in sorted(self._tools.items())
        )


class PredictedLength(NamedTuple):
    q50: int
    q90: int


class LengthTable:
    """Answers from a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._by_group = {(q.workflow_class, q.role): q for q in snapshot.lengths if q.samples >= TRUSTED_SAMPLES}
        self._tools = {q.name: q for q in snapshot.tools}

    def predict(self, workflow_class: str, role: str, max_tokens: int, hint: int) -> PredictedLength:
        """Output tokens, at least 1 and at most `max_tokens`; the client's `hint` only until the class is known."""
        for group in ((workflow_class, role), (workflow_class, "")):
            known = self._by_group.get(group)
            if known is not None:
                return PredictedLength(_within(known.q50, max_tokens), _within(known.q90, max_tokens))
        if hint > 0:
            return PredictedLength(_within(hint, max_tokens), _within(2 * hint, max_tokens))
        known = self._by_group.get(("", ""))
        q50, q90 = (known.q50, known.q90) if known else (PRIOR_Q50, PRIOR_Q90)
        return PredictedLength(_within(q50, max_tokens), _within(q90, max_tokens))

    def tool_us(self, name: str, hint_us: int) -> int:
        known = self._tools.get(name)
        return known.q50_us if known else hint_us


def _within(tokens: int, max_tokens: int) -> int:
    return max(1, min(tokens, max_tokens))
