"""Step-time tables: quoted figures, shape of the data, batches and mixed steps, roofline, refusals."""

import json
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.errors import HexagentError, InvalidArgument, NotFound
from hexagent.core.estimate import tables
from hexagent.core.estimate.roofline import GPUS, MODELS, Roofline
from hexagent.core.estimate.tables import Grid, StepTable, known_gpus, known_models, load_table, model_figures

LLAMA_70B = "llama-3.1-70b"
GRID_MAX = 131072
BEYOND_GRID = 2 * GRID_MAX


def shipped() -> Iterator[StepTable]:
    """Every measured table of the package."""
    for resource in sorted((files("hexagent.core.estimate") / "data").iterdir(), key=lambda item: item.name):
        document = json.loads(resource.read_text(encoding="utf-8"))
        yield load_table(document["gpu_type"], document["model"], document["tp"], document["precision"])


SILICON = tuple(shipped())
ROOFLINE = tuple(
    tables._roofline_table(gpu_type, model, 8, "bf16")
    for gpu_type in known_gpus()
    for model in known_models()
    if Roofline(GPUS[gpu_type], MODELS[model], 8, "bf16").kv_tokens() > 0
)
any_table = st.sampled_from(SILICON + ROOFLINE)
new_tokens = st.integers(1, BEYOND_GRID)
prefix_tokens = st.integers(0, BEYOND_GRID)
batches = st.integers(1, 1024)
contexts = st.integers(0, BEYOND_GRID)
chunk_lists = st.lists(st.tuples(st.integers(1, 8192), st.integers(0, GRID_MAX)), min_size=1, max_size=8)


def name(table: StepTable) -> str:
    """A test id."""
    return f"{table.model}.{table.gpu_type}.tp{table.tp}.{table.precision}"


@pytest.mark.parametrize(
    ("gpu_type", "prefill_ms", "decode_ms", "kv_tokens"),
    [
        ("a100", (106, 712, 7634), (26.3, 38.8), 503_000),
        ("h100", (41, 277, 2682), (15.8, 24.5), 503_000),
        ("h200", (39, 264, 2694), (12.2, 19.2), 1_220_000),
    ],
)
def test_the_published_figures_of_llama_70b_on_four_gpus(
    gpu_type: str, prefill_ms: tuple[int, ...], decode_ms: tuple[float, ...], kv_tokens: int
) -> None:
    table = load_table(gpu_type, LLAMA_70B, 4)
    assert table.source == "silicon"
    assert [table.prefill_us(new) / 1000 for new in (512, 4096, 32768)] == pytest.approx(prefill_ms, rel=0.02)
    assert [table.decode_us(1, 1024) / 1000, table.decode_us(32, 8192) / 1000] == pytest.approx(decode_ms, rel=0.02)
    assert table.kv_tokens == pytest.approx(kv_tokens, rel=0.01)
    assert table.kv_bytes_per_token == 327_680


@pytest.mark.parametrize("gpu_type", ["a100", "h100", "h200"])
@pytest.mark.parametrize(
    ("model", "tp"), [("llama-3.1-8b", 1), (LLAMA_70B, 4), ("qwen3-32b", 2), ("qwen3-235b-a22b", 8)]
)
def test_the_paper_fleet_is_measured(gpu_type: str, model: str, tp: int) -> None:
    assert load_table(gpu_type, model, tp).source == "silicon"
    assert load_table(gpu_type, model, tp) is load_table(gpu_type, model, tp)


def test_kv_bytes_per_token_by_model_and_precision() -> None:
    expected = {"llama-3.1-8b": 131_072, LLAMA_70B: 327_680, "qwen3-32b": 262_144, "qwen3-235b-a22b": 192_512}
    assert {model: model_figures(model).kv_bytes_per_token() for model in known_models()} == expected
    assert load_table("h100", LLAMA_70B, 4, "fp8").kv_bytes_per_token == 163_840
    assert model_figures(LLAMA_70B).max_context == 131_072


def rising(values: tuple[int, ...]) -> bool:
    """Whether values never fall."""
    return all(low <= high for low, high in pairwise(values))


@pytest.mark.parametrize("table", SILICON + ROOFLINE, ids=name)
def test_grids_are_whole_and_never_fall(table: StepTable) -> None:
    for grid in (table.prefill, table.decode):
        assert len(set(grid.rows)) == len(grid.rows) >= 2
        assert rising(grid.rows)
        assert len(set(grid.columns)) == len(grid.columns) >= 2
        assert rising(grid.columns)
        assert len(grid.us) == len(grid.rows)
        assert all(len(row) == len(grid.columns) and rising(row) and row[0] > 0 for row in grid.us)
        assert all(rising(column) for column in zip(*grid.us, strict=True))
    assert table.prefill.columns[0] == 0


def test_bilinear_inside_linear_above_and_constant_below_the_grid() -> None:
    grid = Grid((2, 4), (0, 10), ((100, 200), (300, 500)))
    assert [grid.at(row, column) for row in (2, 4) for column in (0, 10)] == [100, 200, 300, 500]
    assert grid.at(3, 5) == 275
    assert grid.at(3, 4) == 260
    assert (grid.at(6, 0), grid.at(2, 20), grid.at(6, 20)) == (500, 300, 1100)
    assert (grid.at(1, 10), grid.at(0, 0), grid.at(3, -5)) == (200, 100, 200)


@given(any_table, new_tokens, prefix_tokens, new_tokens, prefix_tokens)
def test_prefill_never_gets_faster_with_more_work(
    table: StepTable, new: int, prefix: int, new_2: int, prefix_2: int
) -> None:
    least = table.prefill_us(min(new, new_2), min(prefix, prefix_2))
    assert 0 < least <= table.prefill_us(max(new, new_2), max(prefix, prefix_2))


@given(any_table, batches, contexts, batches, contexts)
def test_decode_never_gets_faster_with_more_work(
    table: StepTable, batch: int, ctx: int, batch_2: int, ctx_2: int
) -> None:
    least = table.decode_us(min(batch, batch_2), min(ctx, ctx_2))
    assert 0 < least <= table.decode_us(max(batch, batch_2), max(ctx, ctx_2))


@given(any_table, new_tokens, prefix_tokens)
def test_a_batch_of_one_is_a_single_prefill(table: StepTable, new: int, prefix: int) -> None:
    assert table.batch_prefill_us([(new, prefix)]) == table.prefill_us(new, prefix)


@given(any_table, chunk_lists)
def test_a_batch_costs_no_more_than_its_chunks_in_turn_with_room_for_smoothing(
    table: StepTable, chunks: list[tuple[int, int]]
) -> None:
    alone = sum(table.prefill_us(*chunk) for chunk in chunks)
    assert 0 < table.batch_prefill_us(chunks) <= alone * 1.3
    assert table.batch_prefill_us(chunks) == table.batch_prefill_us(chunks[::-1])


@pytest.mark.parametrize(
    ("count", "chunk", "prefix", "milliseconds"), [(64, 512, 0, 2060.1), (8, 512, 0, 266.8), (4, 2048, 4096, 560.0)]
)
def test_batches_agree_with_the_measured_model(count: int, chunk: int, prefix: int, milliseconds: float) -> None:
    batch_us = load_table("h100", LLAMA_70B, 4).batch_prefill_us([(chunk, prefix)] * count)
    assert batch_us / 1000 == pytest.approx(milliseconds, rel=0.03)


def test_tokens_that_attend_to_nothing_cost_their_linear_work() -> None:
    table = load_table("h100", LLAMA_70B, 4)
    assert table.prefill_us(8192) * 0.9 < table.batch_prefill_us([(1, 0)] * 8192) < table.prefill_us(8192)


@given(any_table, chunk_lists, batches, contexts)
def test_a_mixed_step_costs_at_least_either_part_and_at_most_both(
    table: StepTable, chunks: list[tuple[int, int]], batch: int, context: int
) -> None:
    mixed = table.mixed_us(chunks, batch, context)
    assert mixed >= max(table.batch_prefill_us(chunks), table.decode_us(batch, context))
    assert mixed <= table.batch_prefill_us(chunks) + table.decode_us(batch, context)
    assert table.mixed_us(chunks, 0, context) == table.batch_prefill_us(chunks)
    assert table.mixed_us([], batch, context) == table.decode_us(batch, context)


def test_a_mixed_step_of_nothing_takes_no_time() -> None:
    assert load_table("h100", LLAMA_70B, 4).mixed_us([], 0, 0) == 0


@pytest.mark.parametrize(("context", "milliseconds"), [(2048, 149.67), (4096, 151.79)])
def test_mixed_steps_agree_with_the_measured_model(context: int, milliseconds: float) -> None:
    # aiconfigurator 0.12.0: a prompt of 2,048 tokens beside 32 sequences that decode.
    table = load_table("h100", LLAMA_70B, 4)
    assert table.mixed_us([(2048, 0)], 32, context) / 1000 == pytest.approx(milliseconds, rel=0.02)


@pytest.mark.parametrize("table", SILICON, ids=name)
def test_the_roofline_is_within_a_sane_factor_of_silicon(table: StepTable) -> None:
    roofline = tables._roofline_table(table.gpu_type, table.model, table.tp, table.precision)
    # Where weights fill most of a GPU, a gigabyte of buffers more or less is much of what is left for KV.
    assert 0.9 < roofline.kv_tokens / table.kv_tokens < 1.35
    low, high = factors(table, roofline)
    # Without NVLink the formulas know one all-reduce bandwidth, measurements one for each group size.
    least, most = (0.2, 2.2) if table.gpu_type == "l40s" else (0.40, 1.25)
    assert least < low <= high < most


def factors(silicon: StepTable, roofline: StepTable) -> tuple[float, float]:
    """Least and greatest ratio of roofline to silicon time over usual steps."""
    ratios = [
        roofline.prefill_us(*at) / silicon.prefill_us(*at) for at in ((512, 0), (4096, 0), (32768, 0), (512, 8192))
    ]
    ratios += [
        roofline.decode_us(*at) / silicon.decode_us(*at) for at in ((1, 1024), (8, 1024), (32, 8192), (128, 2048))
    ]
    return min(ratios), max(ratios)


def test_an_engine_nobody_measured_gets_a_roofline_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "files", lambda package: tmp_path)  # as if none were shipped
    table = load_table.__wrapped__("b200", "llama-3.1-8b", 8)
    assert table.source == "roofline"
    assert table.kv_bytes_per_token == 131_072
    assert 0 < table.decode_us(1, 1024) < table.prefill_us(8192)


@pytest.mark.parametrize(
    ("arguments", "error", "reason", "field"),
    [
        (("v100", LLAMA_70B, 4), NotFound, "UNKNOWN_GPU", "gpu_type"),
        (("h100", "gpt-2", 4), NotFound, "UNKNOWN_MODEL", "model"),
        (("h100", LLAMA_70B, 3), InvalidArgument, "TP_OUT_OF_RANGE", "tp"),
        (("h100", LLAMA_70B, 0), InvalidArgument, "TP_OUT_OF_RANGE", "tp"),
        (("h100", LLAMA_70B, 1), InvalidArgument, "MODEL_DOES_NOT_FIT", "tp"),
        (("h100", LLAMA_70B, 4, "int3"), InvalidArgument, "UNKNOWN_PRECISION", "precision"),
        (("a100", LLAMA_70B, 4, "fp8"), InvalidArgument, "UNSUPPORTED_PRECISION", "precision"),
    ],
)
def test_refusals_name_the_field_and_the_cause(
    arguments: tuple[str, str, int], error: type[HexagentError], reason: str, field: str
) -> None:
    with pytest.raises(error) as caught:
        load_table(*arguments)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(NotFound, match="a100, b200, h100, h200, l40s"):
        load_table("v100", LLAMA_70B, 4)
    with pytest.raises(NotFound, match="qwen3-32b"):
        model_figures("gpt-2")
