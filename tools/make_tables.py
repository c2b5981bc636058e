"""Makes the step-time tables under `hexagent/core/estimate/data` from NVIDIA's aiconfigurator.

Run in an environment that has the `tables` dependency group (about 600 MB) and this package, from anywhere:

    python tools/make_tables.py            writes one JSON file an engine
    python tools/make_tables.py --missing  only those that are not there

For each engine the measured model is sampled on dense axes, made non-decreasing along both, and thinned to the fewest
grid lines that keep bilinear interpolation within TOLERANCE of the samples. Three kinds of flaw are removed on the way:

- *Spikes*: a probe above SPIKE times the least of all later probes is a bad measurement. Everything between its good
  neighbours is left out, so that interpolation bridges it; at the low end the first good point stands for it.
- *Humps*: what is still above SPIKE times the least of all with more work, is held at that.
- *Wiggles*: elsewhere the grid becomes the geometric mean of its least monotone majorant and its greatest monotone
  minorant, which is monotone and nearest in ratio.
"""

import argparse
import importlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hexagent.core.estimate.smoothing import SPIKE, Floats, extendable, monotone

DATA = Path(__file__).resolve().parents[1] / "libs/hexagent/core/estimate/data"
SYSTEMS = {"a100": "a100_sxm", "b200": "b200_sxm", "h100": "h100_sxm", "h200": "h200_sxm", "l40s": "l40s"}
PATHS = {
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
TP_SIZES = (1, 2, 4, 8)
PRECISIONS = {"a100": ("bf16",)}
QUANTIZATION = {
    "bf16": {},
    "fp8": dict.fromkeys(("gemm_quant_mode", "moe_quant_mode", "kvcache_quant_mode", "fmha_quant_mode"), "fp8"),
}
MAX_STEP_TOKENS = 8192
MAX_BATCH = 256
FREE_MEMORY_FRACTION = 0.9
# A prefix shorter than this is not a grid line: the slope over a shorter span is mostly measurement noise.
FIRST_PREFIX = 256
FIRST_CONTEXT = 16
LAST_TOKENS = 131072
LAST_BATCH = 512
RATIO = 1.06
TOLERANCE = 0.010
MAX_LINES = 64


class Engine(NamedTuple):
    """One engine of aiconfigurator and the names its table goes by."""

    gpu_type: str
    model: str
    tp: int
    precision: str
    handle: Any

    def prefill_ms(self, new_tokens: int, prefix_tokens: int) -> float:
        """One sequence; the engine counts the prefix into the input length."""
        return float(self.handle.predict_prefill_latency(1, new_tokens + prefix_tokens, prefix_tokens))

    def decode_ms(self, batch: int, mean_context: int) -> float:
        """One token for each of `batch` sequences; two output tokens make the step the first one."""
        return float(self.handle.decode_step_latency(batch, mean_context, 2))


class Sampled(NamedTuple):
    """Times in ms, `ms[i, j]` at `rows[i]`, `columns[j]`; no row lies inside one of the `skipped` open intervals."""

    rows: list[int]
    columns: list[int]
    ms: Floats
    skipped: list[tuple[int, int]]

    def holds(self, row: int) -> bool:
        """Whether `row` lies outside every spike."""
        return not any(low < row < high for low, high in self.skipped)


def parallelism(model: str, tp: int, precision: str) -> dict[str, Any]:
    """aiconfigurator's arguments of an engine; experts are spread over the tensor-parallel group."""
    experts = {"moe_tp_size": 1, "moe_ep_size": tp} if model == "qwen3-235b-a22b" else {}
    return {"tp_size": tp, **experts, **QUANTIZATION[precision]}


def kv_tokens(gpu_type: str, model: str, tp: int, precision: str) -> int:
    """KV capacity of an engine in tokens; 0 where the weights leave no room."""
    sdk = importlib.import_module("aiconfigurator_core.sdk")
    arguments = parallelism(model, tp, precision)
    try:
        estimate = sdk.estimate_kv_cache(
            PATHS[model],
            SYSTEMS[gpu_type],
            "trtllm",
            "current",
            max_num_tokens=MAX_STEP_TOKENS,
            max_batch_size=MAX_BATCH,
            memory_fraction_kind="of_free",
            memory_fraction_value=FREE_MEMORY_FRACTION,
            **arguments,
        )
    except ValueError as error:
        if "no KV budget" not in str(error):
            raise
        return 0
    return int(estimate["total_kv_size_tokens"])


def compile_engine(gpu_type: str, model: str, tp: int, precision: str) -> Engine:
    """The measured model of an engine, at the newest complete TensorRT-LLM version of its GPU."""
    sdk = importlib.import_module("aiconfigurator_core.sdk")
    arguments = parallelism(model, tp, precision)
    handle = sdk.EngineHandle.compile(PATHS[model], SYSTEMS[gpu_type], "trtllm", backend_version="current", **arguments)
    return Engine(gpu_type, model, tp, precision, handle)


def backend_version(gpu_type: str) -> str:
    """The TensorRT-LLM version the tables of a GPU were measured with."""
    database = importlib.import_module("aiconfigurator_core.sdk.perf_database")
    return str(database.resolve_query_version(SYSTEMS[gpu_type], "trtllm", "current"))


def dense_axis(first: int, last: int) -> list[int]:
    """Geometric points of RATIO, with powers of two, their halfway points and the point after each.

    Kernels change at powers of two, so a step shows between one and the next token.
    """
    points = {first, last}
    value = float(first)
    while value < last:
        points.add(round(value))
        value = max(value * RATIO, value + 1)
    for exponent in range(18):
        for point in (1 << exponent, 3 << exponent):
            points.update((point, point + 1))
    return sorted(point for point in points if first <= point <= last)


def probes(last: int) -> list[int]:
    """Where spikes are looked for: powers of two and halfway points, the grid kernels are measured on."""
    points = {base << exponent for exponent in range(18) for base in (1, 3)}
    return sorted(point for point in points if point <= last)


def spans_to_skip(time_at: Callable[[int], float], last: int) -> list[tuple[int, int]]:
    """Open intervals of the row axis to leave out, each around probes that are spikes."""
    points = probes(last)
    times = [time_at(point) for point in points]
    floor = [min(times[i:]) for i in range(len(times))]
    good = [point for point, time, least in zip(points, times, floor, strict=True) if time <= SPIKE * least]
    edges = [0, *good]
    bad = set(points) - set(good)
    return [(low, high) for low, high in zip(edges, good, strict=False) if any(low < point < high for point in bad)]


def sample(time_ms: Callable[[int, int], float], rows: list[int], columns: list[int]) -> Sampled:
    """Samples of a step on the given axes, rows inside a spike left out."""
    skipped = spans_to_skip(lambda row: time_ms(row, columns[0]), rows[-1])
    kept = [row for row in rows if not any(low < row < high for low, high in skipped)]
    return Sampled(kept, columns, np.array([[time_ms(row, column) for column in columns] for row in kept]), skipped)


def thinned(axis: Sequence[int], ms: Floats) -> list[int]:
    """Indices of the grid lines to keep: greedily those where linear interpolation along `axis` errs most.

    The last span stays at least a quarter of the axis long, so that extrapolation follows a trend and not noise.
    """
    points = np.asarray(axis, dtype=float)
    allowed = points <= 0.75 * points[-1]
    kept = [0, len(axis) - 1]
    while len(kept) < min(MAX_LINES, len(axis)):
        line = np.stack([np.interp(points, points[kept], column) for column in ms[kept].T], axis=1)
        error = np.where(allowed, np.abs(line / ms - 1).max(axis=1), 0)
        worst = int(error.argmax())
        if error[worst] <= TOLERANCE:
            break
        kept = sorted({*kept, worst})
    return kept


def grid(sampled: Sampled) -> Sampled:
    """The monotone, thinned grid of a step in whole microseconds (held as floats)."""
    smooth = monotone(sampled.ms)
    rows = thinned(sampled.rows, smooth)
    columns = thinned(sampled.columns, smooth.T)
    microseconds = extendable(np.rint(smooth[np.ix_(rows, columns)] * 1000))
    kept_rows, kept_columns = [sampled.rows[i] for i in rows], [sampled.columns[j] for j in columns]
    return Sampled(kept_rows, kept_columns, microseconds, sampled.skipped)


def prefill_samples(engine: Engine) -> Sampled:
    """Prefill times over new tokens by prefix tokens."""
    columns = [0, *dense_axis(FIRST_PREFIX, LAST_TOKENS)]
    return sample(engine.prefill_ms, dense_axis(1, LAST_TOKENS), columns)


def decode_samples(engine: Engine) -> Sampled:
    """Decode times over batch by mean context."""
    return sample(engine.decode_ms, dense_axis(1, LAST_BATCH), dense_axis(FIRST_CONTEXT, LAST_TOKENS))


def document(engine: Engine, capacity: int, prefill: Sampled, decode: Sampled) -> dict[str, Any]:
    """The content of one data file."""
    return {
        "decode": {"batch": decode.rows, "mean_context": decode.columns, "us": decode.ms.astype(int).tolist()},
        "gpu_type": engine.gpu_type,
        "kv_tokens": capacity,
        "model": engine.model,
        "precision": engine.precision,
        "prefill": {
            "new_tokens": prefill.rows,
            "prefix_tokens": prefill.columns,
            "us": prefill.ms.astype(int).tolist(),
        },
        "source": {
            "aiconfigurator_core": version("aiconfigurator-core"),
            "model_path": PATHS[engine.model],
            "system": SYSTEMS[engine.gpu_type],
            "tensorrt_llm": backend_version(engine.gpu_type),
        },
        "tp": engine.tp,
    }


def dump(value: Any, indent: str = "") -> str:
    """JSON with sorted keys and one line for each list of numbers."""
    deeper = indent + " "
    if isinstance(value, dict):
        items = (f"{deeper}{json.dumps(key)}: {dump(item, deeper)}" for key, item in sorted(value.items()))
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(deeper + dump(item) for item in value) + f"\n{indent}]"
    return json.dumps(value, separators=(",", ":"))


def make(gpu_type: str, model: str, tp: int, precision: str, path: Path) -> None:
    """Writes the table of one engine to `path` and prints a line about it; nothing where the model does not fit."""
    capacity = kv_tokens(gpu_type, model, tp, precision)
    if not capacity:
        return
    engine = compile_engine(gpu_type, model, tp, precision)
    prefill, decode = prefill_samples(engine), decode_samples(engine)
    provenance = engine.handle.last_provenance()
    if provenance is not None:
        raise SystemExit(f"{gpu_type} {model} tp{tp} {precision}: not measured but {provenance}")
    content = document(engine, capacity, grid(prefill), grid(decode))
    path.write_text(dump(content) + "\n", encoding="utf-8")
    spikes = f"spikes in prefill {prefill.skipped}, decode {decode.skipped}"
    print(f"{path.name}: {path.stat().st_size} B, {spikes}")


def main() -> None:
    """Makes every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--missing", action="store_true", help="make no table again that is there")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for gpu_type in sorted(SYSTEMS):
        for model in sorted(PATHS):
            for tp in TP_SIZES:
                for precision in PRECISIONS.get(gpu_type, ("bf16", "fp8")):
                    path = arguments.out / f"{model}.{gpu_type}.tp{tp}.{precision}.json"
                    if not (arguments.missing and path.exists()):
                        make(gpu_type, model, tp, precision, path)


if __name__ == "__main__":
    main()
