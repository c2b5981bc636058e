"""Nominal step times of one engine: bilinear lookup in measured tables, roofline where nothing is measured.

A table holds two grids of integer microseconds. *Prefill*: new tokens by cached prefix tokens of one sequence.
*Decode*: sequences in the step by mean context tokens. Both are non-decreasing along each axis. Between grid points
a query interpolates bilinearly; above the last grid point of an axis it extrapolates the last cell linearly; below
the first it takes the first. Queries use integer arithmetic only, so the same arguments give the same time
on every machine.

The shipped grids are made by `tools/make_tables.py` from NVIDIA's aiconfigurator; NOTICE names the source. A cluster
may bring tables of its own (`measured`), which then stand for the engines they were measured on.
"""

import functools
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.estimate.roofline import GPUS, MODELS, PRECISION_BYTES, TP_SIZES, ModelFigures, Roofline

Source = Literal["silicon", "roofline", "user"]
Engine = tuple[str, str, int, str]  # GPU type, model, tensor-parallel size, precision

_POWERS = tuple(1 << exponent for exponent in range(18))
_ROOFLINE_NEW = tuple(sorted({*_POWERS, *(3 * power // 2 for power in _POWERS[1:17])}))
_ROOFLINE_PREFIX = (0, 1024, 4096, 16384, 65536, 131072)
_ROOFLINE_BATCH = tuple(size for size in _ROOFLINE_NEW if size <= 512)
_ROOFLINE_CONTEXT = (16, 1024, 8192, 32768, 131072)


@dataclass(frozen=True, slots=True)
class Grid:
    """`us[i][j]` is the time at `rows[i]`, `columns[j]`; both axes ascend and have two points or more."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    us: tuple[tuple[int, ...], ...]

    def at(self, row: int, column: int) -> int:
        """Bilinear interpolation, rounded down; see the module for what happens outside the grid."""
        rows, columns, us = self.rows, self.columns, self.us
        i = bisect_right(rows, row, 1, len(rows) - 1) - 1
        upper, lower = us[i], us[i + 1]
        row_span = rows[i + 1] - rows[i]
        down = row - rows[i] if row > rows[i] else 0
        if column <= columns[0]:
            return ((row_span - down) * upper[0] + down * lower[0]) // row_span
        j = bisect_right(columns, column, 1, len(columns) - 1) - 1
        column_span = columns[j + 1] - columns[j]
        right = column - columns[j]
        left = column_span - right
        if not down:
            return (upper[j] * left + upper[j + 1] * right) // column_span
        top = (row_span - down) * (upper[j] * left + upper[j + 1] * right)
        return (top + down * (lower[j] * left + lower[j + 1] * right)) // (row_span * column_span)


@dataclass(frozen=True, slots=True)
class StepTable:
    """Nominal times of one engine: `model` on `tp` GPUs of `gpu_type`, weights, activations and KV in `precision`.

    `kv_tokens` is the engine's KV capacity, `kv_bytes_per_token` the bytes of one token over all layers and KV heads
    (a KV head replicated over several GPUs counts once). `prefill` has rows of new tokens and columns of prefix
    tokens, `decode` rows of batch size and columns of mean context. Arguments are trusted: counts are ints,
    new tokens and batch at least 1, prefix and context at least 0.
    """

    gpu_type: str
    model: str
    tp: int
    precision: str
    source: Source
    kv_tokens: int
    kv_bytes_per_token: int
    prefill: Grid = field(repr=False)
    decode: Grid = field(repr=False)

    @property
    def engine(self) -> Engine:
        return self.gpu_type, self.model, self.tp, self.precision

    def prefill_us(self, new_tokens: int, prefix_tokens: int = 0) -> int:
        """One step that prefills `new_tokens` of one sequence after `prefix_tokens` cached ones."""
        return self.prefill.at(new_tokens, prefix_tokens)

    def batch_prefill_us(self, chunks: Sequence[tuple[int, int]]) -> int:
        """One step that prefills several (new tokens, prefix tokens) chunks; at least one chunk.

        The step has N = sum(n_i) tokens of linear work, and attention proportional to sum(n_i * (p_i + n_i / 2)).
        A single chunk of N tokens has the same attention after p = sum(n_i * (p_i + (n_i - N) / 2)) / N prefix tokens,
        so its time is the answer. p is negative where many short chunks share a step; the time then continues the
        line through p = 0 and p = |p|, and is never below a tenth of `prefill_us(N)`.
        """
        total, pairs = _work(chunks)
        return self.attended_prefill_us(total, pairs)

    def decode_us(self, batch: int, mean_context: int) -> int:
        """One step that decodes one token for each of `batch` sequences of `mean_context` tokens on average."""
        return self.decode.at(batch, mean_context)

    def mixed_us(self, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int) -> int:
        """One step that prefills `chunks` (may be empty) and decodes for `batch` (may be 0) sequences.

        Linear work merges: the step is a prefill of N + batch tokens whose attention is that of the chunks, plus the
        attention of decode. That is what `decode_us(batch, mean_context)` takes beyond the linear work of `batch`
        tokens, whose least bound is their time as a prefill or as a decode step at the grid's shortest context.
        Never below either part alone nor above both in turn. Without both parts the time is 0.
        """
        if not chunks:
            return self.decode_us(batch, mean_context) if batch else 0
        if not batch:
            return self.batch_prefill_us(chunks)
        return self.attended_mixed_us(*_work(chunks), batch, mean_context)

    def attended_mixed_us(self, total: int, pairs: int, batch: int, mean_context: int) -> int:
        """`mixed_us` of chunks of `total` tokens and pairs / 2 (query, key) pairs; both parts at least 1."""
        decode = self.decode.at(batch, mean_context)
        attention = max(decode - min(self.decode.at(batch, 0), self.prefill.at(batch, 0)), 0)
        # Each decoding token counts as a chunk of its own without a prefix: one (query, key) pair.
        merged = self.attended_prefill_us(total + batch, pairs + batch)
        prefill = self.attended_prefill_us(total, pairs)
        return max(min(merged + attention, prefill + decode), prefill, decode)

    def attended_prefill_us(self, total: int, pairs: int) -> int:
        """One step that prefills `total` tokens whose attention is pairs / 2 (query, key) pairs.

        One chunk after p tokens has as many where total * (2 * p + total) = pairs; p may be negative.
        """
        prefix = (pairs // total - total) // 2
        if prefix >= 0:
            return self.prefill.at(total, prefix)
        cold = self.prefill.at(total, 0)
        return max(2 * cold - self.prefill.at(total, -prefix), cold // 10)


def _work(chunks: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Tokens of all chunks, and twice their (query, key) pairs: a chunk of n tokens after p has n * (2 * p + n)."""
    total = pairs = 0
    for new, prefix in chunks:
        total += new
        pairs += new * (2 * prefix + new)
    return total, pairs


def known_gpus() -> tuple[str, ...]:
    """GPU types a table can be had for, ascending."""
    return tuple(sorted(GPUS))


def known_models() -> tuple[str, ...]:
    """Models a table can be had for, ascending."""
    return tuple(sorted(MODELS))


def model_figures(model: str) -> ModelFigures:
    """Shape of `model`, its KV bytes per token and longest context. Raises NotFound (UNKNOWN_MODEL)."""
    try:
        return MODELS[model]
    except KeyError:
        message = f"unknown model {model!r}; known: {', '.join(known_models())}"
        raise NotFound(message, reason="UNKNOWN_MODEL", field="model") from None


def user_table(engine: Engine, kv_tokens: int, prefill: Grid, decode: Grid) -> StepTable:
    """What a user measured of an engine."""
    gpu_type, model, tp, precision = engine
    kv_bytes = model_figures(model).kv_bytes_per_token(precision)
    return StepTable(gpu_type, model, tp, precision, "user", kv_tokens, kv_bytes, prefill, decode)


@functools.cache
def load_table(gpu_type: str, model: str, tp: int, precision: str = "bf16") -> StepTable:
    """The measured table of an engine, or a roofline one where none is measured.

    Raises NotFound (UNKNOWN_GPU, UNKNOWN_MODEL) and InvalidArgument: UNKNOWN_PRECISION, UNSUPPORTED_PRECISION
    (the GPU has no such tensor cores), TP_OUT_OF_RANGE (not 1, 2, 4 or 8), MODEL_DOES_NOT_FIT (no room for KV).
    """
    figures = model_figures(model)
    _check(gpu_type, tp, precision)
    resource = files("hexagent.core.estimate") / "data" / f"{model}.{gpu_type}.tp{tp}.{precision}.json"
    if resource.is_file():
        return _parse(json.loads(resource.read_text(encoding="utf-8")), figures)
    return _roofline_table(gpu_type, model, tp, precision)


def _check(gpu_type: str, tp: int, precision: str) -> None:
    if gpu_type not in GPUS:
        message = f"unknown GPU type {gpu_type!r}; known: {', '.join(known_gpus())}"
        raise NotFound(message, reason="UNKNOWN_GPU", field="gpu_type")
    if tp not in TP_SIZES:
        message = f"tensor-parallel size {tp} is not one of {', '.join(map(str, TP_SIZES))}"
        raise InvalidArgument(message, reason="TP_OUT_OF_RANGE", field="tp")
    if precision not in PRECISION_BYTES:
        message = f"unknown precision {precision!r}; known: {', '.join(sorted(PRECISION_BYTES))}"
        raise InvalidArgument(message, reason="UNKNOWN_PRECISION", field="precision")
    if not GPUS[gpu_type].flops(precision):
        message = f"{gpu_type} has no {precision} tensor cores"
        raise InvalidArgument(message, reason="UNSUPPORTED_PRECISION", field="precision")


def _parse(document: dict[str, Any], figures: ModelFigures) -> StepTable:
    """A StepTable from one data file; the generator has checked its shape and monotonicity."""
    prefill, decode = document["prefill"], document["decode"]
    return StepTable(
        gpu_type=document["gpu_type"],
        model=document["model"],
        tp=document["tp"],
        precision=document["precision"],
        source="silicon",
        kv_tokens=document["kv_tokens"],
        kv_bytes_per_token=figures.kv_bytes_per_token(document["precision"]),
        prefill=Grid(tuple(prefill["new_tokens"]), tuple(prefill["prefix_tokens"]), tuple(map(tuple, prefill["us"]))),
        decode=Grid(tuple(decode["batch"]), tuple(decode["mean_context"]), tuple(map(tuple, decode["us"]))),
    )


def _roofline_table(gpu_type: str, model: str, tp: int, precision: str) -> StepTable:
    figures = MODELS[model]
    roofline = Roofline(GPUS[gpu_type], figures, tp, precision)
    kv_tokens = roofline.kv_tokens()
    if kv_tokens <= 0:
        message = f"{model} in {precision} leaves no room for KV on {tp} x {gpu_type}"
        raise InvalidArgument(message, reason="MODEL_DOES_NOT_FIT", field="tp")
    prefill = tuple(tuple(roofline.prefill_us(new, prefix) for prefix in _ROOFLINE_PREFIX) for new in _ROOFLINE_NEW)
    decode = tuple(tuple(roofline.decode_us(size, ctx) for ctx in _ROOFLINE_CONTEXT) for size in _ROOFLINE_BATCH)
    return StepTable(
        gpu_type=gpu_type,
        model=model,
        tp=tp,
        precision=precision,
        source="roofline",
        kv_tokens=kv_tokens,
        kv_bytes_per_token=figures.kv_bytes_per_token(precision),
        prefill=Grid(_ROOFLINE_NEW, _ROOFLINE_PREFIX, prefill),
        decode=Grid(_ROOFLINE_BATCH, _ROOFLINE_CONTEXT, decode),
    )
