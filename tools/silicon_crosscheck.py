"""Step-time tables against measured TPOT and TTFT of TensorRT-LLM.

    python tools/silicon_crosscheck.py SILICON.csv [--json FILE]

SILICON.csv is `systems/silicon_sample.csv` of the wheel aiconfigurator-core (Apache-2.0, 600 MB); the rows are those of
`serving_crosscheck.py`. Each predictor says a row's TPOT and TTFT from the shipped table:

- `merged`, `summed`: in closed form. c calls decode at a time, as many as KV holds. While a call gets its output,
  each of the others has its prompt prefilled once: TPOT = decode(c, input + output / 2) + (c - 1) / output * prompt,
  where a prompt costs what it adds to a mixed step, or a prefill step of its own. They have no TTFT.
- `simulated`: one simulated instance under the row's load, as in `serving_crosscheck.py`.

Errors are means of |predicted / measured - 1| over all rows, raw, and after factors learned from a third of each
engine's rows and tested on the rest: `one`, the median of measured over predicted; `two`, one on decode and one on the
prompts of others, as an estimator learns them; `chosen`, one factor, and for each model the closed form whose errors
are smaller on its known thirds. The thirds are drawn by name, THIRDS times, and the errors averaged.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hexagent.core.estimate.tables import StepTable
from hexagent.core.instance.noise import Truth
from serving_crosscheck import Case, read_cases, serve, table_of

THIRDS: Final = 20
DECODE_FACTORS: Final = np.arange(0.60, 1.50, 0.02)
PREFILL_FACTORS: Final = np.arange(0.40, 2.50, 0.04)

Floats = NDArray[np.float64]


class Parts(NamedTuple):
    """TPOT in closed form, milliseconds."""

    decode_ms: float
    prompts_ms: float


def closed_form(case: Case, prompt_us: Callable[[StepTable, Case, int], int]) -> Parts:
    table = table_of(case)
    assert table is not None
    batch = max(1, min(case.concurrency, table.kv_tokens // (case.input_tokens + case.output_tokens)))
    share = (batch - 1) / case.output_tokens
    return Parts(table.decode_us(batch, _context(case)) / 1e3, share * prompt_us(table, case, batch) / 1e3)


def merged_us(table: StepTable, case: Case, batch: int) -> int:
    context = _context(case)
    return table.mixed_us([(case.input_tokens, 0)], batch, context) - table.decode_us(batch, context)


def summed_us(table: StepTable, case: Case, batch: int) -> int:
    del batch
    return table.prefill_us(case.input_tokens)


CLOSED_FORMS: Final = {"merged": merged_us, "summed": summed_us}


def _context(case: Case) -> int:
    return case.input_tokens + case.output_tokens // 2


def third(engine: str, number: int, rows: int) -> list[int]:
    """Indices of the rows of an engine that factors are learned from."""
    return sorted(random.Random(f"third {number} of {engine}").sample(range(rows), rows // 3))


def one_factor(predicted: Floats, measured: Floats, known: Sequence[int]) -> Floats:
    """Errors of the rows that are not `known`."""
    factor = median((measured / predicted)[known])
    return np.delete(np.abs(predicted * factor / measured - 1), known)


def two_factors(decode: Floats, prompts: Floats, measured: Floats, known: Sequence[int]) -> Floats:
    """The same with the two factors that fit the known rows best."""
    share, extra = decode / measured, prompts / measured
    fitted = np.abs(
        DECODE_FACTORS[:, None, None] * share[known] + PREFILL_FACTORS[:, None] * extra[known] - 1
    ).mean(axis=2)  # fmt: skip
    i, j = np.unravel_index(fitted.argmin(), fitted.shape)
    return np.delete(np.abs(DECODE_FACTORS[i] * share + PREFILL_FACTORS[j] * extra - 1), known)


def chosen_error(engines: Sequence[Sequence[Case]]) -> float:
    """Error in percent of a model's rows after the choice of a closed form and one factor an engine."""
    errors = []
    for number in range(THIRDS):
        known: dict[str, list[float]] = {}
        rest: dict[str, list[float]] = {}
        for cases in engines:
            third_of_it = third(cases[0].engine, number, len(cases))
            tpot = np.array([case.silicon.tpot_ms for case in cases])
            for name, prompt_us in CLOSED_FORMS.items():
                predicted = np.array([sum(closed_form(case, prompt_us)) for case in cases])
                error = np.abs(predicted * median((tpot / predicted)[third_of_it]) / tpot - 1)
                known.setdefault(name, []).extend(error[third_of_it])
                rest.setdefault(name, []).extend(np.delete(error, third_of_it))
        errors.append(mean(rest[min(known, key=lambda name: mean(known[name]))]))
    return 100 * mean(errors)


def engine_errors(cases: Sequence[Case]) -> dict[str, float]:
    """Errors in percent of the rows of one engine."""
    engine = cases[0].engine
    thirds = [third(engine, number, len(cases)) for number in range(THIRDS)]
    tpot = np.array([case.silicon.tpot_ms for case in cases])
    ttft = np.array([case.silicon.ttft_ms for case in cases])
    errors: dict[str, float] = {}

    def add(name: str, predicted: Floats, measured: Floats) -> None:
        errors[f"{name}_raw"] = 100 * float(np.abs(predicted / measured - 1).mean())
        errors[f"{name}_one"] = 100 * mean(one_factor(predicted, measured, known).mean() for known in thirds)

    for name, prompt_us in CLOSED_FORMS.items():
        parts = np.array([closed_form(case, prompt_us) for case in cases])
        add(f"tpot_{name}", parts.sum(axis=1), tpot)
        errors[f"tpot_{name}_two"] = 100 * mean(
            two_factors(parts[:, 0], parts[:, 1], tpot, known).mean() for known in thirds
        )
    simulated = [serve(case, Truth(0)) for case in cases]
    add("tpot_simulated", np.array([s.tpot_ms for s in simulated]), tpot)
    add("ttft_simulated", np.array([s.ttft_ms for s in simulated]), ttft)
    return errors


def error_rows(cases: Sequence[Case]) -> list[dict[str, object]]:
    """One row an engine, then one a model; a model's errors are those of its engines, weighted by rows."""
    by_engine: dict[tuple[str, str], tuple[int, dict[str, float]]] = {}
    for engine in sorted({case.engine for case in cases}):
        mine = [case for case in cases if case.engine == engine]
        by_engine[mine[0].model, engine] = (len(mine), engine_errors(mine))
    rows: list[dict[str, object]] = [
        {"engine": engine, "rows": count, **errors} for (_, engine), (count, errors) in by_engine.items()
    ]
    for model in sorted({model for model, _ in by_engine}):
        parts = [part for (name, _), part in by_engine.items() if name == model]
        total = sum(count for count, _ in parts)
        errors = {key: sum(count * each[key] for count, each in parts) / total for key in parts[0][1]}
        engines = [[case for case in cases if case.engine == engine] for name, engine in by_engine if name == model]
        errors["tpot_chosen"] = chosen_error(engines)
        rows.append({"engine": model, "rows": total, **errors})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("silicon", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = error_rows(read_cases(arguments.silicon))
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
