"""Step-time tables against steps timed on a GPU by `gpu_steps.py`.

    PYTHONPATH=libs python tools/gpu_crosscheck.py FOLDER [--json FILE]

FOLDER holds GPU-steps.csv and GPU-mixed.csv of one or more types of GPU. Printed are the median and the range, over an
engine's steps, of its measured times as multiples of other times:

- `decode`, `prefill`, `prefixed` (behind a cached prefix), `mixed`: of the shipped table's;
- `merged`: mixed steps, of what `mixed_us` makes of the engine's own measured prefills and decode steps, so whether
  linear work merges as it says; `summed`: of a prefill and a decode step in turn;

and how much sooner one type of GPU is than another, measured and by the tables.

KV is of bf16 under weights of fp8 too, so such tables are taken with KV of bf16; their attention in prefill is of fp8.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from hexagent.core.estimate.tables import Engine, StepTable, load_table
from hexagent.core.estimate.variants import variant
from hexagent.runtime.measured_files import read_measured

COLUMNS: Final = "decode", "prefill", "prefixed", "mixed", "merged", "summed"
ENGINE: Final = "gpu", "model", "tp", "precision"
FASTER, SLOWER = "h200", "h100"


class Step(NamedTuple):
    """A prompt of `new` tokens behind `cached` ones, and `batch` calls that decode at `context` tokens; 0 for none."""

    new: int = 0
    cached: int = 0
    batch: int = 0
    context: int = 0

    @property
    def kind(self) -> str:
        if not self.new:
            return "decode"
        return "mixed" if self.batch else "prefixed" if self.cached else "prefill"

    def by(self, table: StepTable) -> int:
        """Its time by a table, microseconds."""
        return table.mixed_us([(self.new, self.cached)] if self.new else [], self.batch, self.context)

    def parts(self) -> tuple["Step", "Step"]:
        """The prompt alone, and the calls."""
        return self._replace(batch=0, context=0), self._replace(new=0, cached=0)


Times = dict[Step, float]


def read_times(paths: Iterable[Path]) -> dict[Engine, Times]:
    """Measured microseconds of each engine's steps."""
    times: dict[Engine, Times] = defaultdict(dict)
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                counts = (int(row[name] or 0) for name in ("new_tokens", "cached_tokens", "batch", "context"))
                engine = row["gpu"], row["model"], int(row["tp"]), row["precision"]
                times[engine][Step(*counts)] = float(row["time_us"])
    return times


def spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-"


def compared(times: Times, table: StepTable, own: StepTable) -> dict[str, list[float]]:
    """Ratios of measured times, by what they are to."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for step, us in times.items():
        ratios[step.kind].append(us / step.by(table))
        if step.kind == "mixed":
            ratios["merged"].append(us / step.by(own))
            ratios["summed"].append(us / sum(part.by(own) for part in step.parts()))
    return ratios


def print_speedups(times: dict[Engine, Times], shipped: dict[Engine, StepTable]) -> None:
    """How much sooner FASTER is than SLOWER with the same steps of the same engine."""
    for engine in sorted(engine for engine in times if engine[0] == FASTER):
        other = SLOWER, *engine[1:]
        for kind in ("decode", "prefill"):
            both = [step for step in times[engine] if step.kind == kind and step in times.get(other, {})]
            if both:
                measured = spread([times[other][step] / times[engine][step] for step in both])
                stated = spread([step.by(shipped[other]) / step.by(shipped[engine]) for step in both])
                print(f"{FASTER} over {SLOWER}, {engine[1:]}, {kind}: {measured}, by the tables {stated}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    times = read_times(sorted(arguments.folder.glob("*.csv")))
    measured = [read_measured(path) for path in sorted(arguments.folder.glob("*-steps.csv"))]
    own = {table.engine: table for tables in measured for table in tables}
    shipped = {engine: variant(load_table(*engine), "bf16", None) for engine in times}
    print("| engine | " + " | ".join(COLUMNS) + " |")
    for engine in sorted(times):
        ratios = compared(times[engine], shipped[engine], own[engine])
        print(f"| {' '.join(map(str, engine))} | " + " | ".join(spread(ratios[column]) for column in COLUMNS) + " |")
    print_speedups(times, shipped)
    if arguments.json is not None:
        rows = [
            {**dict(zip(ENGINE, engine, strict=True)), **step._asdict(), "measured_us": us, "table_us": step.by(table)}
            for engine, table in sorted(shipped.items())
            for step, us in times[engine].items()
        ]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
