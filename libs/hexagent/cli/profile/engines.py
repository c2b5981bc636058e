"""Engines and their step times as rows."""

from itertools import product
from pathlib import Path
from statistics import median
from typing import Final

from hexagent.cli.report import Value
from hexagent.core.errors import HexagentError, InvalidArgument, NotFound
from hexagent.core.estimate.measured import csv_lines
from hexagent.core.estimate.roofline import GPUS, PRECISION_BYTES, TP_SIZES
from hexagent.core.estimate.tables import StepTable, known_gpus, known_models, load_table, model_figures
from hexagent.runtime.measured_files import read_measured

PROMPTS: Final = (512, 4_096, 32_768)
STEPS: Final = ((1, 1_024), (8, 1_024), (32, 8_192))  # batch, mean context


def chosen(file: Path | None, model: str, gpu: str) -> list[StepTable]:
    """Measured tables by engine, a user's before the shipped one. NotFound: UNKNOWN_MODEL, UNKNOWN_GPU."""
    models = (_known_model(model),) if model else known_models()
    gpus = (_known_gpu(gpu),) if gpu else known_gpus()
    own = read_measured(file) if file else ()
    shipped = [
        table
        for engine in product(gpus, models, TP_SIZES, sorted(PRECISION_BYTES))
        if (table := _nominal(*engine)) is not None and table.source == "silicon"
    ]
    mine = [table for table in own if table.gpu_type in gpus and table.model in models]
    return sorted([*mine, *shipped], key=lambda table: (table.model, table.gpu_type, table.tp, table.precision))


def kinds(file: Path | None, model: str, tp: int, precision: str, gpu: str) -> list[StepTable]:
    """Tables of one model on every GPU that can run it so, by GPU; InvalidArgument (NO_ENGINE) if none can."""
    gpus = (_known_gpu(gpu),) if gpu else known_gpus()
    _known_model(model)
    own = [table for table in (read_measured(file) if file else ()) if (table.model, table.tp) == (model, tp)]
    found: list[StepTable] = []
    for gpu_type in gpus:
        found += [table for table in own if table.gpu_type == gpu_type and table.precision == precision]
        nominal = _nominal(gpu_type, model, tp, precision)
        if nominal is not None:
            found.append(nominal)
    if not found:
        text = f"no GPU runs {model} in {precision} on {tp} of its kind"
        raise InvalidArgument(text, reason="NO_ENGINE", field="tp")
    return found


def engine_row(table: StepTable) -> dict[str, Value]:
    """An engine, a prefill of 4,096 tokens and a decode step of 8 calls at 1,024."""
    return {
        "model": table.model,
        "gpu": table.gpu_type,
        "tp": table.tp,
        "precision": table.precision,
        "source": table.source,
        "kv_tokens": table.kv_tokens,
        "prefill_ms": table.prefill_us(4_096) / 1e3,
        "decode_ms": table.decode_us(8, 1_024) / 1e3,
    }


def curve_row(table: StepTable) -> dict[str, Value]:
    """`pN`: a prefill of N tokens, `dBxC`: a decode step of B calls at C tokens; milliseconds."""
    row: dict[str, Value] = {"gpu": table.gpu_type, "source": table.source}
    for prompt in PROMPTS:
        row[f"p{prompt}"] = table.prefill_us(prompt) / 1e3
    for batch, context in STEPS:
        row[f"d{batch}x{context}"] = table.decode_us(batch, context) / 1e3
    return row


def import_row(table: StepTable) -> dict[str, Value]:
    """How many points were made, and the median of their times over the nominal ones."""
    nominal = load_table(*table.engine)
    prefill = list(product(table.prefill.rows, table.prefill.columns))
    decode = list(product(table.decode.rows, table.decode.columns))
    return {
        "model": table.model,
        "gpu": table.gpu_type,
        "tp": table.tp,
        "precision": table.precision,
        "prefill_points": len(prefill),
        "decode_points": len(decode),
        "nominal": nominal.source,
        "prefill_ratio": median(table.prefill_us(*at) / nominal.prefill_us(*at) for at in prefill),
        "decode_ratio": median(table.decode_us(*at) / nominal.decode_us(*at) for at in decode),
    }


def write_tables(tables: tuple[StepTable, ...], path: Path) -> None:
    """InvalidArgument (NOT_WRITABLE)."""
    try:
        path.write_text("".join(f"{line}\n" for line in csv_lines(tables)), encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}", reason="NOT_WRITABLE", field="out") from None


def _nominal(gpu_type: str, model: str, tp: int, precision: str) -> StepTable | None:
    """None where there is no such engine: no such tensor cores, or no room."""
    try:
        return load_table(gpu_type, model, tp, precision)
    except HexagentError as error:
        if error.reason in ("UNSUPPORTED_PRECISION", "MODEL_DOES_NOT_FIT"):
            return None
        raise


def _known_model(model: str) -> str:
    model_figures(model)
    return model


def _known_gpu(gpu: str) -> str:
    if gpu not in GPUS:
        text = f"unknown GPU type {gpu!r}; known: {', '.join(known_gpus())}"
        raise NotFound(text, reason="UNKNOWN_GPU", field="gpu")
    return gpu
