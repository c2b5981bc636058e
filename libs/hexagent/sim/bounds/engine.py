"""The fastest an instance can truly work: least times of a call, greatest rates over all batches.

A step of N prefill tokens with twice their (query, key) pairs, `pairs` = sum of n * (2 * prefix + n) over its chunks,
takes T(N, prefix) by the table, where prefix = (pairs / N - N) / 2 up to rounding. For fixed N both T and `pairs` are
linear in prefix between grid points, so their ratio and their difference are extreme at grid points or at the ends of
what is feasible. Decode steps are treated alike over (batch, mean context). True steps take scale * (T - slack) or
more: the scale is that of the phase with the hidden factor and the least noise, the slack covers all roundings down.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hexagent.core.estimate.tables import Grid, StepTable
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec
from hexagent.core.units import PPM
from hexagent.sim.conditions import CONDITIONS, Conditions

FloatArray = npt.NDArray[np.float64]

ROUNDING_US = 2.0  # of the table's value; the true step is rounded once more
CONTEXT_STEP = 64  # contexts are rounded down to it where the least time of a decode step is looked up


class Reach(NamedTuple):
    """What the calls of a workload are: no batch holds others."""

    longest: int  # tokens of prompt and output
    shortest: int  # tokens of a prompt
    shared_kv: bool  # contexts of a batch may share blocks, so that together they exceed the capacity


class Engine(NamedTuple):
    """One instance as it truly is at its luckiest."""

    spec: InstanceSpec
    table: StepTable
    prefill_scale: float  # true time by table time, the least
    decode_scale: float
    slack_us: float
    truth: Truth

    @classmethod
    def of(cls, cluster: ClusterSpec, spec: InstanceSpec, conditions: Conditions = CONDITIONS) -> "Engine":
        factors = (conditions.prefill_factor_ppm, conditions.decode_factor_ppm)
        truth = Truth.drawn(cluster, spec.instance_id, *factors)
        noise = truth.least_noise_ppm / PPM
        # Of a step with both the decode part scales as decode does, the rest as prefill does.
        prefill, decode = noise * min(truth.prefill_ppm, truth.decode_ppm) / PPM, noise * truth.decode_ppm / PPM
        table = table_of(spec, cluster.tables)
        return cls(spec, table, prefill, decode, ROUNDING_US + 1 / prefill, truth)

    @property
    def prefill_weight(self) -> float:
        """What a pair costs beside a token in the largest prefill steps."""
        budget = self.spec.max_step_tokens
        return self._attention_us / max(self.table.prefill.at(budget, 0) / budget - budget * self._attention_us, 1e-3)

    @property
    def decode_weight(self) -> float:
        """What a token of context costs beside a call in the largest decode steps."""
        batch, context = self.spec.max_batch, self.table.decode.columns[-1]
        least_us = self.table.decode.at(batch, 0)
        return (self.table.decode.at(batch, context) - least_us) / context / least_us

    def prefill_rate(self, kappa: float, reach: Reach) -> float:
        """Greatest (tokens + kappa * pairs) a microsecond of any step."""
        steps = _prefill_steps(self.table, self.spec.max_step_tokens, self.spec.max_batch, reach.longest)
        return float(((steps.tokens + kappa * steps.pairs) / self._true_us(steps.us, self.prefill_scale)).max())

    def decode_rate(self, kappa: float, reach: Reach) -> float:
        """Greatest (calls + kappa * their contexts) a microsecond of any step that fits into KV."""
        batch = np.arange(1, self.spec.max_batch + 1, dtype=np.float64)[:, None]
        most = np.full_like(batch, reach.longest) if reach.shared_kv else self.spec.kv_tokens / batch
        most = np.minimum(most, reach.longest)
        feasible = most[:, 0] >= reach.shortest
        if not feasible.any():
            return 0.0
        batch, most = batch[feasible], most[feasible]
        columns = np.array([0, *self.table.decode.columns, reach.longest], dtype=np.float64)
        context = np.clip(columns[None, :], reach.shortest, most)
        us = self._true_us(lookup(self.table.decode, np.broadcast_to(batch, context.shape), context), self.decode_scale)
        return float((batch * (1 + kappa * context) / us).max())

    def least_prefill_us(self, tokens: FloatArray, pairs: FloatArray, reach: Reach) -> FloatArray:
        """Least time in which these prompt tokens, at least one, with these pairs can be computed one after another.

        Every step takes e(n) + mu * pairs or more, e(n) the least of T - mu * pairs over steps of n or more tokens; of
        steps of at most x tokens, n of them take n * min e(m) / m over m <= min(n, x) or more. Any mu will do.
        """
        budget = self.spec.max_step_tokens
        steps = _prefill_steps(self.table, budget, self.spec.max_batch, reach.longest)
        least = np.zeros_like(tokens)
        for mu in (0.0, self._attention_us):
            beyond = (steps.us - self.slack_us - mu * steps.pairs).min(axis=1)
            beyond = np.minimum.accumulate(beyond[::-1])[::-1]
            per_token = np.minimum.accumulate(beyond / steps.tokens[:, 0])
            chunk = np.minimum(tokens, budget).astype(np.int64)
            least = np.maximum(least, tokens * per_token[chunk - 1] + mu * pairs)
        return least * self.prefill_scale

    def least_step_us(self, context: FloatArray, reach: Reach) -> FloatArray:
        """Least time of a step that gives a token to a call with so much context, whatever decodes beside it."""
        rounded, back = np.unique(np.floor(context / CONTEXT_STEP) * CONTEXT_STEP, return_inverse=True)
        batch = np.arange(1, self.spec.max_batch + 1, dtype=np.float64)[:, None]
        mean = (rounded + (batch - 1) * reach.shortest) / batch
        us = self._true_us(lookup(self.table.decode, np.broadcast_to(batch, mean.shape), mean), self.decode_scale)
        found: FloatArray = us.min(axis=0)[back]
        return found

    @property
    def _attention_us(self) -> float:
        """Table time of one pair in the largest prefill steps."""
        budget, prefix = self.spec.max_step_tokens, self.table.prefill.columns[1]
        return (self.table.prefill.at(budget, prefix) - self.table.prefill.at(budget, 0)) / (2 * budget * prefix)

    def _true_us(self, table_us: FloatArray, scale: float) -> FloatArray:
        return scale * np.maximum(table_us - self.slack_us, 1e-3)


class Steps(NamedTuple):
    """Extreme prefill steps, arrays that broadcast to (tokens of the step, extremes)."""

    tokens: FloatArray
    pairs: FloatArray
    us: FloatArray


@lru_cache(maxsize=64)
def _prefill_steps(table: StepTable, budget: int, chunks_max: int, longest: int) -> Steps:
    """All N up to the budget at the prefixes where something is extreme.

    The table is asked at (pairs // N - N) // 2, at most one token less than the real prefix. Chunks of equal length
    have the fewest pairs, N * N / chunks_max; the prefix of such a step is negative.
    """
    tokens = np.arange(1, budget + 1, dtype=np.float64)[:, None]
    columns = [float(column) for column in table.prefill.columns]
    places = np.array([-float(budget), *(-c for c in reversed(columns[1:])), *columns, float(longest)])
    lowest = (np.maximum(tokens / chunks_max, 1.0) - tokens) / 2 - 1
    prefix = np.clip(places[None, :], lowest, float(longest))
    rows = np.broadcast_to(tokens, prefix.shape)
    us = lookup(table.prefill, rows, np.abs(prefix))
    us = np.where(prefix < 0, 2 * lookup(table.prefill, rows, np.zeros_like(prefix)) - us, us)
    return Steps(tokens, tokens * (2 * (prefix + 1) + tokens), us)


def lookup(grid: Grid, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """`Grid.at` for arrays of one shape, without its rounding."""
    row_axis, column_axis = np.array(grid.rows, dtype=np.float64), np.array(grid.columns, dtype=np.float64)
    us = np.array(grid.us, dtype=np.float64)
    i = np.clip(np.searchsorted(row_axis, rows, side="right") - 1, 0, len(row_axis) - 2)
    j = np.clip(np.searchsorted(column_axis, columns, side="right") - 1, 0, len(column_axis) - 2)
    down = np.maximum(rows - row_axis[i], 0) / (row_axis[i + 1] - row_axis[i])
    right = np.maximum(columns - column_axis[j], 0) / (column_axis[j + 1] - column_axis[j])
    top = us[i, j] * (1 - right) + us[i, j + 1] * right
    found: FloatArray = top + down * (us[i + 1, j] * (1 - right) + us[i + 1, j + 1] * right - top)
    return found
