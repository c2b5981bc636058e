"""Times of calls that have a cluster to themselves, from the nominal tables of its instances."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from hexagent.core.estimate.tables import StepTable
from hexagent.core.instance.spec import InstanceSpec, LinkSpec, Role
from hexagent.core.units import US_PER_S, ceil_div

CACHE_MAX: Final = 100_000

Curve = tuple[Sequence[int], Sequence[int]]  # points of an axis, ascending, and the times there
Line = tuple[int, int, int, int]  # start, length and the times at both ends of a piece of a curve


class LeastTime:
    """The least of several curves at each place, as `Grid.at` has each of them.

    Between two points of any of them only the lines are kept that are the lowest somewhere: mostly one.
    """

    def __init__(self, curves: Sequence[Curve]) -> None:
        self._starts = sorted({0, *[point for axis, _ in curves for point in axis]})
        ends = [*self._starts[1:], None]
        self._lines = [
            _lowest([_line(curve, start) for curve in curves], start, end)
            for start, end in zip(self._starts, ends, strict=True)
        ]

    def at(self, place: int) -> int:
        """The time at a place of at least 0, rounded down."""
        lines = self._lines[bisect_right(self._starts, place) - 1]
        if len(lines) == 1:
            start, span, first, last = lines[0]
            right = place - start
            return (first * (span - right) + last * right) // span
        return min(
            [(first * (start + span - place) + last * (place - start)) // span for start, span, first, last in lines]
        )


def _line(curve: Curve, place: int) -> Line:
    """The piece of a curve that reaches from `place` on: flat before its first point, the last piece beyond it."""
    axis, times = curve
    if place < axis[0]:
        return 0, 1, times[0], times[0]
    j = bisect_right(axis, place, 1, len(axis) - 1) - 1
    return axis[j], axis[j + 1] - axis[j], times[j], times[j + 1]


def _lowest(lines: list[Line], start: int, end: int | None) -> list[Line]:
    """Those that no other one is below from `start` to `end`, None = for ever."""

    def ends(line: Line) -> tuple[Fraction, Fraction]:
        begin, span, first, last = line
        slope = Fraction(last - first, span)
        at_start = first + slope * (start - begin)
        return at_start, slope if end is None else at_start + slope * (end - start)

    kept: list[Line] = []
    for line in sorted(lines, key=ends):
        if not kept or ends(line)[1] < ends(kept[-1])[1]:
            kept.append(line)
    return kept


class _Kinds(NamedTuple):
    """Least times of a model by link; None = not disaggregated, so that no KV moves."""

    prefill: dict[LinkSpec | None, LeastTime]
    decode: dict[LinkSpec | None, LeastTime]
    kv_bytes_per_token: int


class SoloTimes:
    """Of the calls of all models."""

    def __init__(self, instances: Iterable[tuple[InstanceSpec, StepTable]]) -> None:
        tables: dict[str, tuple[_Tables, _Tables]] = {}
        for spec, table in instances:
            prefill, decode = tables.setdefault(spec.model, ({}, {}))
            link = None if spec.role is Role.BOTH else spec.link
            # Instances that differ only in name have equal times.
            if spec.role is not Role.DECODE and table not in prefill.setdefault(link, []):
                prefill[link].append(table)
            if spec.role is not Role.PREFILL and table not in decode.setdefault(link, []):
                decode[link].append(table)
        self._kinds = {model: _kinds(*both) for model, both in tables.items() if both[0]}
        self._known: dict[tuple[str, int, int], int] = {}
        self._known_prefill: dict[tuple[str, int], list[tuple[LinkSpec | None, int]]] = {}

    def solo_us(self, model: str, prompt_tokens: int, output_tokens: int) -> int:
        """As `Estimator.solo_us` says."""
        key = (model, prompt_tokens, output_tokens)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= CACHE_MAX:
                self._known.clear()
            known = self._known[key] = self._solo(model, max(prompt_tokens, 1), max(output_tokens, 1))
        return known

    def _solo(self, model: str, prompt_tokens: int, output_tokens: int) -> int:
        kinds = self._kinds.get(model)
        if kinds is None:
            return 0
        prefill_us = self._prefill_us(model, prompt_tokens)
        if output_tokens == 1:
            return min([us for _, us in prefill_us])
        context = prompt_tokens + output_tokens // 2
        decode_us = [(link, (output_tokens - 1) * least.at(context)) for link, least in kinds.decode.items()]
        kv_bytes = prompt_tokens * kinds.kv_bytes_per_token
        times = [
            first_us + rest_us + (_moving_us(source, target, kv_bytes) if source and target else 0)
            for source, first_us in prefill_us
            for target, rest_us in decode_us
            if (source is None) == (target is None)
        ]
        return min(times, default=0)

    def _prefill_us(self, model: str, prompt_tokens: int) -> list[tuple[LinkSpec | None, int]]:
        """Least time of the prompt by link: a call is asked about with its predicted and its true length."""
        known = self._known_prefill.get((model, prompt_tokens))
        if known is None:
            if len(self._known_prefill) >= CACHE_MAX:
                self._known_prefill.clear()
            known = [(link, least.at(prompt_tokens)) for link, least in self._kinds[model].prefill.items()]
            self._known_prefill[model, prompt_tokens] = known
        return known


_Tables = dict[LinkSpec | None, list[StepTable]]


def _kinds(prefill: _Tables, decode: _Tables) -> _Kinds:
    def of_prompt(table: StepTable) -> Curve:
        return table.prefill.rows, [row[0] for row in table.prefill.us]

    def of_one_call(table: StepTable) -> Curve:
        return table.decode.columns, table.decode.us[0]

    return _Kinds(
        {link: LeastTime([of_prompt(table) for table in tables]) for link, tables in prefill.items()},
        {link: LeastTime([of_one_call(table) for table in tables]) for link, tables in decode.items()},
        next(iter(prefill.values()))[0].kv_bytes_per_token,
    )


def _moving_us(source: LinkSpec, target: LinkSpec, kv_bytes: int) -> int:
    rate = min(source.bytes_per_s, target.bytes_per_s)
    return max(source.setup_us, target.setup_us) + ceil_div(kv_bytes * US_PER_S, rate)
