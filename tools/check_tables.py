"""Compares the shipped step-time tables with the engines of aiconfigurator that they are sampled from.

    python tools/check_tables.py [--json FILE]

Run where `make_tables.py` runs. Errors are |table / engine - 1| in percent, spikes left out:

- *interpolated*: against the smoothed samples on the dense axes, what thinning the grid costs;
- *prefill*, *decode*: against the engine itself at random points, so with what smoothing costs;
- *batch*, *mixed*: the same for steps of several prompts, and of a prompt beside decoding calls.

Exit status 1 if interpolation costs more than LIMIT in one of a hundred samples of a table.
"""

import argparse
import json
import logging
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from hexagent.core.estimate.smoothing import Floats, monotone
from hexagent.core.estimate.tables import StepTable, load_table
from make_tables import (
    DATA,
    FIRST_CONTEXT,
    LAST_BATCH,
    LAST_TOKENS,
    Engine,
    Sampled,
    compile_engine,
    decode_samples,
    prefill_samples,
)

LIMIT: Final = 0.03


def random_points(first: tuple[int, int], last: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Log-uniform points, the same on every run."""
    draw = random.Random(1)

    def one(low: int, high: int) -> int:
        return round(math.exp(draw.uniform(math.log(low), math.log(high))))

    return [(one(first[0], last[0]), one(first[1], last[1])) for _ in range(count)]


def ratios(table_us: Callable[..., int], time_ms: Callable[..., float], points: list[tuple[int, int]]) -> Floats:
    """Table over engine at points off the grid, less one."""
    return np.array([table_us(*point) / 1000 / time_ms(*point) - 1 for point in points])


def thinning_ratios(table_us: Callable[..., int], sampled: Sampled) -> Floats:
    """Table over the smoothed samples, less one: what interpolation alone costs."""
    table = np.array([[table_us(row, column) / 1000 for column in sampled.columns] for row in sampled.rows])
    return (table / monotone(sampled.ms) - 1).ravel()


def batch_ratios(table: Any, engine: Engine, spiked: Callable[[int], bool]) -> Floats:
    """The same for several equal chunks of 16 to 4,096 tokens in one step of at most 32,768."""
    found = []
    for (chunk, count), (prefix, _) in zip(
        random_points((16, 2), (4096, 32), 300), random_points((1, 1), (16384, 2), 300), strict=True
    ):
        if chunk * count <= 32768 and not spiked(chunk * count):
            truth = engine.handle.predict_prefill_latency(count, chunk + prefix, prefix)
            found.append(table.batch_prefill_us([(chunk, prefix)] * count) / 1000 / truth - 1)
    return np.array(found)


def mixed_ratios(table: Any, engine: Engine, spiked: Callable[[int], bool]) -> Floats:
    """The same for one cold prompt of 64 to 8,192 tokens that rides on a decode batch of up to 256."""
    found = []
    for (chunk, batch), (context, _) in zip(
        random_points((64, 1), (8192, 256), 300), random_points((64, 64), (16384, 65), 300), strict=True
    ):
        if spiked(chunk + batch) or spiked(batch):
            continue
        # The engine takes one input length for both parts, and decode attends isl + osl / 2 tokens.
        isl = min(chunk, context)
        truth = engine.handle.mixed_step_latency(isl, batch, isl, 2 * (context - isl) + 2)
        found.append(table.mixed_us([(isl, 0)], batch, context) / 1000 / truth - 1)
    return np.array(found)


def errors(engine: Engine, table: StepTable) -> dict[str, Floats]:
    """Ratios less one of each kind."""
    prefill, decode = prefill_samples(engine), decode_samples(engine)
    points = [at for at in random_points((1, 1), (LAST_TOKENS, LAST_TOKENS), 2000) if prefill.holds(at[0])]
    steps = [at for at in random_points((1, FIRST_CONTEXT), (LAST_BATCH, LAST_TOKENS), 2000) if decode.holds(at[0])]

    def spiked(tokens: int) -> bool:
        return not prefill.holds(tokens)

    return {
        "prefill interpolated": thinning_ratios(table.prefill_us, prefill),
        "decode interpolated": thinning_ratios(table.decode_us, decode),
        "prefill under 64": ratios(table.prefill_us, engine.prefill_ms, [at for at in points if at[0] < 64]),
        "prefill from 64": ratios(table.prefill_us, engine.prefill_ms, [at for at in points if at[0] >= 64]),
        "decode": ratios(table.decode_us, engine.decode_ms, steps),
        "batch": batch_ratios(table, engine, spiked),
        "mixed": mixed_ratios(table, engine, spiked),
    }


def figures(ratio: Floats) -> dict[str, float]:
    error = np.abs(ratio)
    return {
        "median_pct": round(100 * float(np.median(error)), 2),
        "p99_pct": round(100 * float(np.quantile(error, 0.99)), 2),
        "most_pct": round(100 * float(error.max()), 2),
        "within_3_pct": round(100 * float((error <= 0.03).mean()), 1),
    }


def shipped() -> Iterator[StepTable]:
    for path in sorted(DATA.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        yield load_table(document["gpu_type"], document["model"], document["tp"], document["precision"])


def main() -> None:
    """Checks every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    everything: dict[str, list[Floats]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    for table in shipped():
        for kind, ratio in errors(compile_engine(*table.engine), table).items():
            everything[kind].append(ratio)
            rows.append({"engine": " ".join(map(str, table.engine)), "kind": kind, **figures(ratio)})
            print(" | ".join(map(str, rows[-1].values())), flush=True)
    for kind, ratios_of in everything.items():
        rows.append({"engine": "all", "kind": kind, **figures(np.concatenate(ratios_of))})
        print(" | ".join(map(str, rows[-1].values())))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    failed = [row for row in rows if "interpolated" in row["kind"] and row["p99_pct"] > 100 * LIMIT]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
