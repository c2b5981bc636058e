"""Our online correction of step times against NVIDIA's, on one stream of engine steps.

    python tools/correction_crosscheck.py [--json FILE]

Run in an environment that has aiconfigurator-core (600 MB, NVIDIA, Apache-2.0) and numpy, `libs` on the path. An
emulated instance of Llama-3.1-70B on four H100 serves Poisson arrivals; every step it ends is first predicted by both
sides and then told to both: `SpeedLearner` over the shipped table here, `RustForwardPassPerfModel` with
`tune_with_fpms` there. The instance has a hidden factor, noise of 7 % a step, one step that takes twenty times as
long, and from half of its steps on it is 1.5 times as slow. Nominal step times are those of the shipped table in one
half of the runs and those of `RustForwardPassPerfModel` itself in the other, so that neither base has the advantage.
"""

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from time import process_time_ns
from typing import Any, Final, NamedTuple, Protocol

from hexagent.core.estimate.speeds import SpeedLearner
from hexagent.core.estimate.tables import StepTable, load_table
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import Prefill, StepDone, Work
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.samples import SampleBuffer
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec, Role
from hexagent.core.instance.times import StepTimes
from hexagent.core.units import NEVER_US, PPM

MODEL: Final = "llama-3.1-70b"
ENGINE: Final = {
    "schema_version": 1,
    "model_name": "meta-llama/Meta-Llama-3.1-70B",
    "system_name": "h100_sxm",
    "backend": "trtllm",
    "backend_version": "current",
    "tp_size": 4,
    "pp_size": 1,
}
BLOCK_TOKENS: Final = 32
REQUESTS: Final = 400
NOISE_PPM: Final = 70_000
SLOWER_PPM: Final = 1_500_000
OUTLIER: Final = 20
AFTER_CHANGE: Final = 60  # steps: "right after" the slow-down
AFTER_OUTLIER: Final = 30
WARM: Final = 100  # steps that are told before errors count
SEEDS: Final = 6


class Load(NamedTuple):
    name: str
    rate_per_s: float
    most_output_tokens: int  # 1: the instance only prefills


LOADS: Final = (Load("prefill", 4.0, 1), Load("aggregated", 3.0, 512))


class Side(Protocol):
    """Who predicts the next step and is told what it took."""

    def predict_us(self, chunks: Sequence[tuple[int, int]], batch: int, context: int) -> float: ...

    def tell(self, done: StepDone) -> None: ...


class Native:
    """NVIDIA's model as step times, and as what it has learned."""

    def __init__(self) -> None:
        from aiconfigurator_core.sdk import RustForwardPassPerfModel  # type: ignore[import-not-found]

        self._model: Any = RustForwardPassPerfModel.from_native(ENGINE)

    def predict_us(self, chunks: Sequence[tuple[int, int]], batch: int, context: int) -> float:
        return float(self._model.estimate_forward_pass_time_ms(_forward_pass(chunks, batch, context))) * 1e3

    def tell(self, done: StepDone) -> None:
        observed = _forward_pass(done.prefill_chunks, done.decode_batch, done.mean_context)
        self._model.tune_with_fpms({**observed, "wall_time": done.duration_us / done.steps / 1e6})

    # --- StepTimes ---
    def batch_prefill_us(self, chunks: Sequence[tuple[int, int]]) -> int:
        return round(self.predict_us(chunks, 0, 0))

    def decode_us(self, batch: int, mean_context: int) -> int:
        return round(self.predict_us((), batch, mean_context))

    def mixed_us(self, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int) -> int:
        return round(self.predict_us(chunks, batch, mean_context))


def _forward_pass(chunks: Sequence[tuple[int, int]], batch: int, context: int) -> dict[str, Any]:
    return {
        "version": 1,
        "scheduled_requests": {
            "num_prefill_requests": len(chunks),
            "sum_prefill_tokens": sum(new for new, _ in chunks),
            "sum_prefill_kv_tokens": sum(prefix for _, prefix in chunks),
            "num_decode_requests": batch,
            "sum_decode_kv_tokens": batch * context,
        },
    }


class Ours:
    """What an estimator knows of one instance."""

    def __init__(self, table: StepTable) -> None:
        self._table = table
        self._learner = SpeedLearner()
        self._samples = SampleBuffer()
        self._ppm = (PPM, PPM)

    def predict_us(self, chunks: Sequence[tuple[int, int]], batch: int, context: int) -> float:
        """Of a mixed step decode scales as decode does, and what the prompts add as prefill does."""
        prefill_ppm, decode_ppm = self._ppm
        decode = self._table.decode_us(batch, context) if batch else 0
        return (decode * decode_ppm + (self._table.mixed_us(chunks, batch, context) - decode) * prefill_ppm) / PPM

    def tell(self, done: StepDone) -> None:
        self._samples.step(done)
        for sample in self._samples.take().steps:
            self._learner.observe("one", self._table, sample)
        for factor in self._learner.factors():
            self._ppm = (factor.prefill_ppm, factor.decode_ppm)


class Observed(NamedTuple):
    done: StepDone
    kind: str  # prefill, decode or mixed
    phase: str  # of the stream: warm-up, steady, outlier, after outlier, after slow-down, slow


def steps(load: Load, seed: int, nominal: StepTimes, table: StepTable) -> Iterator[tuple[StepDone, bool]]:
    """The steps of one instance in order, and whether it is slow by then: from half of the requests on."""
    draw = random.Random(seed)
    truth = Truth(seed, draw.randrange(800_000, 1_300_000), NOISE_PPM)
    spec = InstanceSpec(
        "one", table.gpu_type, table.tp, Role.BOTH, MODEL, "bf16", "bf16", table.kv_tokens // BLOCK_TOKENS,
        BLOCK_TOKENS, 128, 8_192, LinkSpec(1, 0), "trtllm-1.2.1", False,
    )  # fmt: skip
    model = InstanceModel(spec, PROFILES[spec.profile], nominal, table.kv_bytes_per_token, truth)
    now_us = 0
    for number in range(REQUESTS):
        slow = number >= REQUESTS // 2
        if number == REQUESTS // 2:
            model.retune(replace(truth, hidden_factor_ppm=truth.hidden_factor_ppm * SLOWER_PPM // PPM))
        now_us += round(draw.expovariate(load.rate_per_s) * 1e6)
        prompt = round(2 ** draw.uniform(8, 12))
        output = round(2 ** draw.uniform(0, load.most_output_tokens.bit_length() - 1))
        work = Work(Ticket(CallId("call", str(number)), 1, 1), (), prompt, output, output, output)
        for effect in model.advance(now_us) + model.handle(Prefill(work, local=True), now_us):
            if isinstance(effect, StepDone):
                yield effect, slow
    while (due_us := model.next_due_us()) < NEVER_US:
        for effect in model.advance(due_us):
            if isinstance(effect, StepDone):
                yield effect, True


def observed(load: Load, seed: int, nominal: StepTimes, table: StepTable) -> list[Observed]:
    """The stream as both sides see it; one step of each kind, halfway to the slow-down, is the outlier."""
    stream: list[Observed] = []
    found = [(done, slow, _kind(done)) for done, slow in steps(load, seed, nominal, table)]
    fast = Counter(kind for _, slow, kind in found if not slow)
    seen: Counter[tuple[str, bool]] = Counter()
    for done, slow, kind in found:
        position = seen[kind, slow]
        seen[kind, slow] += 1
        since_outlier = position - max(fast[kind] // 2, WARM)
        if slow:
            phase = "after slow-down" if position < AFTER_CHANGE else "slow"
        elif since_outlier == 0:
            phase, done = "outlier", done._replace(duration_us=done.duration_us * OUTLIER)
        elif 0 < since_outlier <= AFTER_OUTLIER:
            phase = "after outlier"
        else:
            phase = "steady" if position >= WARM else "warm-up"
        stream.append(Observed(done, kind, phase))
    return stream


def _kind(done: StepDone) -> str:
    if done.prefill_chunks:
        return "mixed" if done.decode_batch else "prefill"
    return "decode"


def errors(load: Load, seed: int, by_table: bool, spent: Counter[str]) -> Iterator[tuple[str, str, str, float]]:
    """(kind, phase, side, relative error) of each prediction of one run; adds nanoseconds of CPU to `spent`."""
    table = load_table("h100", MODEL, 4)
    sides: dict[str, Side] = {"ours": Ours(table), "theirs": Native()}
    for done, kind, phase in observed(load, seed, table if by_table else Native(), table):
        for name, side in sides.items():
            start_ns = process_time_ns()
            predicted_us = side.predict_us(done.prefill_chunks, done.decode_batch, done.mean_context)
            side.tell(done)
            spent[name] += process_time_ns() - start_ns
            yield kind, phase, name, abs(predicted_us * done.steps / done.duration_us - 1)
        spent["steps"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    spent: Counter[str] = Counter()
    found: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for by_table in (True, False):
        for load in LOADS:
            for seed in range(SEEDS):
                for kind, phase, side, error in errors(load, seed, by_table, spent):
                    found["table" if by_table else "theirs", kind, phase, side].append(error)
    rows = []
    for truth, kind, phase in sorted({key[:3] for key in found}):
        if phase not in ("warm-up", "outlier"):
            ours, theirs = (found[truth, kind, phase, side] for side in ("ours", "theirs"))
            rows.append(
                {
                    "nominal": truth,
                    "kind": kind,
                    "phase": phase,
                    "steps": len(ours),
                    "ours_mape": round(100 * mean(ours), 2),
                    "theirs_mape": round(100 * mean(theirs), 2),
                }
            )
    for row in rows:
        print(" | ".join(map(str, row.values())))
    for side in ("ours", "theirs"):
        print(f"{side}: {spent[side] / spent['steps'] / 1e3:.0f} us of CPU a step, predicted and told")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
