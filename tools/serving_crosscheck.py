"""Closed-loop serving of one simulated instance against measured TensorRT-LLM rows.

    python tools/serving_crosscheck.py SILICON.csv [--json FILE]

SILICON.csv is `systems/silicon_sample.csv` of the wheel aiconfigurator-core (Apache-2.0, 600 MB). Of it the
aggregated TensorRT-LLM rows on H100 and H200 count for which a step-time table is shipped. For each of them as many
clients as the row's concurrency send prompts of its input length to one `InstanceModel` that prefills and decodes,
each the next one when the last has its output, ROUNDS times. Requests a second follow by Little's law from
concurrency and latency on both sides, latency being TTFT + TPOT x (output length - 1).
"""

import argparse
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Final, NamedTuple

from hexagent.core.errors import HexagentError
from hexagent.core.estimate.tables import StepTable, load_table
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import Ended, InstanceEffect, Prefill, PrefillDone, Work
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec, Role
from hexagent.core.units import NEVER_US, PPM

MODELS: Final = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
}
ROUNDS: Final = 10  # requests of each client
PREFILL_FACTORS: Final = tuple(tenths / 10 for tenths in range(6, 26))
BLOCK_TOKENS: Final = 32
MAX_STEP_TOKENS: Final = 8_192  # TensorRT-LLM's own default


class Served(NamedTuple):
    """Means over requests, milliseconds."""

    ttft_ms: float
    tpot_ms: float

    def latency_ms(self, output_tokens: int) -> float:
        return self.ttft_ms + self.tpot_ms * (output_tokens - 1)


class Case(NamedTuple):
    """One measured row."""

    model: str
    gpu: str
    tp: int
    precision: str
    concurrency: int
    input_tokens: int
    output_tokens: int
    silicon: Served

    @property
    def engine(self) -> str:
        return f"{self.model} {self.precision}, {self.gpu} x {self.tp}"


class Compared(NamedTuple):
    case: Case
    sim: Served

    @property
    def throughput(self) -> float:
        """Simulated over measured requests a second."""
        tokens = self.case.output_tokens
        return self.case.silicon.latency_ms(tokens) / self.sim.latency_ms(tokens)

    @property
    def ttft(self) -> float:
        return self.sim.ttft_ms / self.case.silicon.ttft_ms

    @property
    def tpot(self) -> float:
        return self.sim.tpot_ms / self.case.silicon.tpot_ms


def read_cases(path: Path) -> list[Case]:
    """Rows that can be compared: one data-parallel rank, no pipeline, a shipped table."""
    cases: list[Case] = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            gpu = row["system"].removesuffix("_sxm")
            if row["backend"] != "trtllm" or row["mode"] != "agg" or gpu not in ("h100", "h200"):
                continue
            if row["model_path"] not in MODELS or row["pp_size"] != "1" or row["attention_dp_size"] not in ("", "1"):
                continue
            case = Case(
                MODELS[row["model_path"]],
                gpu,
                int(row["tp_size"]),
                row["precision"] or "bf16",
                int(row["batch_size"]),
                int(row["isl"]),
                int(row["osl"]),
                Served(float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"])),
            )
            if table_of(case) is not None:
                cases.append(case)
    return cases


def table_of(case: Case) -> StepTable | None:
    """The measured table of a row's engine, if one is shipped."""
    try:
        table = load_table(case.gpu, case.model, case.tp, case.precision)
    except HexagentError:
        return None
    return table if table.source == "silicon" else None


def compare(cases: Sequence[Case], factors: tuple[float, float] = (1.0, 1.0)) -> list[Compared]:
    """Served with the table's prefill and decode times multiplied by `factors`."""
    prefill_ppm, decode_ppm = (round(factor * PPM) for factor in factors)
    truth = Truth(0, prefill_factor_ppm=prefill_ppm, decode_factor_ppm=decode_ppm)
    return [Compared(case, serve(case, truth)) for case in cases]


def fitted(cases: Sequence[Case]) -> tuple[float, float]:
    """What the table's prefill and decode times of an engine are to be multiplied by, as estimators learn it.

    Decode: the measured TPOT over the table's step where few clients leave little else. Prefill: what then makes
    throughput come out best.
    """
    fewest = min(case.concurrency for case in cases)
    decode = median(case.silicon.tpot_ms / _step_ms(case) for case in cases if case.concurrency == fewest)
    return min(((prefill, decode) for prefill in PREFILL_FACTORS), key=lambda factors: _error(compare(cases, factors)))


def _step_ms(case: Case) -> float:
    """A decode step of the whole concurrency at the mean context, by the table."""
    table = table_of(case)
    assert table is not None
    return table.decode_us(case.concurrency, case.input_tokens + case.output_tokens // 2) / 1e3


def _error(compared: Sequence[Compared]) -> float:
    return mean(abs(c.throughput - 1) for c in compared)


def serve(case: Case, truth: Truth) -> Served:
    """The row's load on one simulated instance without noise."""
    table = table_of(case)
    assert table is not None
    spec = InstanceSpec(
        "one", case.gpu, case.tp, Role.BOTH, case.model, case.precision, case.precision,
        table.kv_tokens // BLOCK_TOKENS, BLOCK_TOKENS, case.concurrency, MAX_STEP_TOKENS, LinkSpec(1, 0),
        "trtllm-1.2.1", False,
    )  # fmt: skip
    model = InstanceModel(spec, PROFILES[spec.profile], table, table.kv_bytes_per_token, truth)
    sent_us: dict[Ticket, int] = {}
    first_us: dict[Ticket, int] = {}
    ttft_us: list[int] = []
    decode_us: list[int] = []

    def prompt(client: str, number: int, now_us: int) -> Prefill:
        ticket = Ticket(CallId(client, str(number)), 1, 1)
        sent_us[ticket] = now_us
        tokens = case.output_tokens
        return Prefill(Work(ticket, (), case.input_tokens, tokens, tokens, tokens), local=True)

    def seen(effects: Iterable[InstanceEffect]) -> list[Prefill]:
        """Note what happened; the requests that follow."""
        following = []
        for effect in effects:
            if isinstance(effect, PrefillDone):
                first_us[effect.ticket] = effect.at_us
                ttft_us.append(effect.at_us - sent_us[effect.ticket])
            elif isinstance(effect, Ended):
                decode_us.append(effect.at_us - first_us[effect.ticket])
                client, number = effect.ticket.call
                if int(number) + 1 < ROUNDS:
                    following.append(prompt(client, int(number) + 1, effect.at_us))
        return following

    inputs = [prompt(f"client-{client}", 0, 0) for client in range(case.concurrency)]
    now_us = 0
    while now_us < NEVER_US:
        inputs = seen(model.handle_all(inputs, now_us) if inputs else model.advance(now_us))
        now_us = now_us if inputs else model.next_due_us()
    return Served(mean(ttft_us) / 1e3, mean(decode_us) / 1e3 / max(case.output_tokens - 1, 1))


def engine_rows(cases: Sequence[Case]) -> list[dict[str, object]]:
    """One row an engine and concurrency, and one an engine; ratios are medians of simulated over measured."""
    rows: list[dict[str, object]] = []
    for engine in sorted({case.engine for case in cases}):
        mine = [case for case in cases if case.engine == engine]
        plain, factors = compare(mine), fitted(mine)
        corrected = compare(mine, factors)
        for concurrency in (*sorted({case.concurrency for case in mine}), 0):
            chosen = [i for i, case in enumerate(mine) if concurrency in (0, case.concurrency)]
            row = _row([plain[i] for i in chosen], [corrected[i] for i in chosen])
            rows.append(
                {
                    "engine": engine,
                    "concurrency": concurrency or "all",
                    **row,
                    "prefill_factor": factors[0],
                    "decode_factor": factors[1],
                }
            )
    return rows


def _row(plain: Sequence[Compared], corrected: Sequence[Compared]) -> dict[str, object]:
    return {
        "rows": len(plain),
        "throughput_ratio": median(c.throughput for c in plain),
        "throughput_error": _error(plain),
        "within_15_pct": mean(abs(c.throughput - 1) <= 0.15 for c in plain),
        "tpot_ratio": median(c.tpot for c in plain),
        "ttft_ratio": median(c.ttft for c in plain),
        "ttft_missing_ms": median(c.case.silicon.ttft_ms - c.sim.ttft_ms for c in plain),
        "error_corrected": _error(corrected),
        "within_15_pct_corrected": mean(abs(c.throughput - 1) <= 0.15 for c in corrected),
        "ttft_ratio_corrected": median(c.ttft for c in corrected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("silicon", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = engine_rows(read_cases(arguments.silicon))
    names = list(rows[0])
    print("|".join(names))
    for row in rows:
        print("|".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
