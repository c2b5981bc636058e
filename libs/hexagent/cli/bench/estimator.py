"""`hexagent bench estimator`: predictions of a simulated scheduler against what came of them."""

from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from pathlib import Path
from typing import Final, NamedTuple

from matplotlib.figure import Figure

from hexagent.cli.report import Row, Value
from hexagent.cli.simulate.pictures import save
from hexagent.core.estimate.lengths import PERCENTS
from hexagent.core.units import PPM, ceil_div
from hexagent.sim.experiment.cell import Cell, check_cell, workload_of
from hexagent.sim.experiment.load import over_again
from hexagent.sim.experiment.run import Run, world_of
from hexagent.sim.experiment.witness import QUANTITIES, Observation, Witness
from hexagent.sim.workloads.model import Workload

WORKFLOWS: Final = {"bfcl": 500, "sharegpt": 1_500, "lats": 60, "mixed": 100}  # a run must outlast its workflows
TRACE_CALLS, TRACE_WORKFLOWS = 3_500, 80  # a trace is run over again until there are so many
ALL: Final = "all"
WITHIN: Final = 2.0  # points of coverage; in cells with few workflows their 99 % band instead
BAND: Final = 2.576  # standard errors
EXACT: Final = "service_us"  # predicted for given lengths and batches: it has an error, but no quantiles


class EstimatorOptions(NamedTuple):
    workloads: tuple[str, ...]
    traces: tuple[Path, ...]
    seeds: tuple[int, ...]
    load: float
    warm_up: int  # calls of a run before predictions are judged
    hints: float  # log error of clients' hints


def cells(options: EstimatorOptions) -> list[Cell]:
    """Arrivals are Poisson, on hetero-1 with its hidden factors and noise. Bad names and values are refused here."""
    usual = Cell("llama-3.1-70b", "hetero-1", "", load=options.load, arrivals="poisson", hints=options.hints)
    found = [usual._replace(workload=name, workflows=WORKFLOWS.get(name, 0)) for name in options.workloads]
    found += [usual._replace(workload=trace.stem, trace=str(trace)) for trace in options.traces]
    for cell in found:
        check_cell(cell)
    return found


def estimator_rows(options: EstimatorOptions, say: Callable[[str], None]) -> list[Row]:
    """Of each cell, over its seeds: a row a quantity, GPU type and quantile, then one a predictor of remaining work."""
    rows: list[Row] = []
    for cell in cells(options):
        observations: list[Observation] = []
        errors: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        for seed in options.seeds:
            say(f"{cell.workload}, seed {seed}")
            world = world_of(Run(cell, "hexagent", seed), workload(cell, seed))
            witness = Witness(world, options.warm_up)
            world.run()
            observations += [seen._replace(workflow=f"{seed}/{seen.workflow}") for seen in witness.observations]
            for error in world.scheduler.projection.work.errors():
                key = (error.workflow_class, error.predictor)
                errors.setdefault(key, []).append((error.workflows, error.log_error_milli, error.counted_ppm))
        rows += quantile_rows(cell.workload, observations)
        rows += [_error_row(cell.workload, *key, records) for key, records in errors.items()]
    return rows


def workload(cell: Cell, seed: int) -> Workload:
    once = workload_of(cell, seed)
    if not cell.trace:
        return once
    calls = sum(len(script.items) for script in once.workflows)
    times = max(ceil_div(TRACE_CALLS, calls), ceil_div(TRACE_WORKFLOWS, len(once.workflows)))
    return over_again(once, times, seed)


def quantile_rows(workload: str, observations: Sequence[Observation]) -> list[Row]:
    rows: list[Row] = []
    for quantity in QUANTITIES:
        of_it = [seen for seen in observations if seen.quantity == quantity]
        for gpu in (*sorted({gpu for seen in of_it for gpu in seen.gpus}), ALL) if of_it else ():
            here = [seen for seen in of_it if gpu in (ALL, *seen.gpus)]
            for place, percent in enumerate(PERCENTS[:1] if quantity == EXACT else PERCENTS):
                rows.append({"workload": workload, "gpu": gpu, "quantity": quantity, **_judged(here, place, percent)})
    return rows


def _judged(seen: Sequence[Observation], place: int, percent: int) -> Row:
    """`coverage` counts what was at or below the quantile, `ties` what was equal: of lengths that take few values a
    true quantile covers up to `ties` too much. `band` is how far from `quantile` both may be."""
    count = len(seen)
    coverage = 100 * sum(one.measured <= one.predicted[place] for one in seen) / count
    ties = 100 * sum(one.measured == one.predicted[place] for one in seen) / count
    band = max(WITHIN, BAND * _clustered_error(seen, place, percent))
    exact = seen[0].quantity == EXACT
    return {
        "quantile": None if exact else percent,
        "coverage": None if exact else coverage,
        "ties": None if exact else ties,
        "band": None if exact else band,
        "covers": None if exact else coverage - ties - band <= percent <= coverage + band,
        "pinball": None if exact else pinball([(one.predicted[place], one.measured) for one in seen], percent),
        "baseline_pinball": None if exact else pinball([(one.baseline[place], one.measured) for one in seen], percent),
        "mape": 100 * sum(abs(one.measured - one.predicted[0]) / max(one.measured, 1) for one in seen) / count,
        "observations": count,
        "workflows": len({one.workflow for one in seen}),
        "log_error": None,
        "counted": None,
    }


def _clustered_error(seen: Sequence[Observation], place: int, percent: int) -> float:
    """Standard error of coverage in points, the calls of one workflow taken as dependent."""
    sums: dict[str, float] = {}
    for one in seen:
        sums[one.workflow] = sums.get(one.workflow, 0.0) + (one.measured <= one.predicted[place]) - percent / 100
    return 100 * sqrt(sum(value * value for value in sums.values())) / len(seen)


def pinball(pairs: Iterable[tuple[int, int]], percent: int) -> float:
    """Mean loss of predicted quantiles, in the unit of what was measured."""
    costs = [
        (percent if measured > predicted else percent - 100) * (measured - predicted) for predicted, measured in pairs
    ]
    return sum(costs) / (100 * len(costs))


def _error_row(workload: str, name: str, predictor: str, records: Sequence[tuple[int, int, int]]) -> Row:
    """The log error of predicted remaining work over seeds; `counted`, how much a predicted total counts by then."""
    workflows = sum(count for count, _, _ in records)
    square = sum(count * milli * milli for count, milli, _ in records) / max(workflows, 1)
    unused = dict.fromkeys(("coverage", "ties", "band", "covers", "pinball", "baseline_pinball", "mape"))
    return {
        "workload": workload,
        "gpu": ALL,
        "quantity": f"unrevealed of {name} by {predictor}",
        "quantile": None,
        **unused,
        "observations": workflows,
        "workflows": workflows,
        "log_error": sqrt(square) / 1_000,
        "counted": sum(counted for _, _, counted in records) / len(records) / PPM,
    }


def shown(rows: Sequence[Row]) -> list[Row]:
    """The same, a row a quantity and GPU type: coverages with an asterisk where they are not right within the band, and
    pinball losses over the baseline's."""
    groups: dict[tuple[Value, ...], list[Row]] = {}
    for row in rows:
        if row["mape"] is not None:
            groups.setdefault((row["workload"], row["gpu"], row["quantity"]), []).append(row)
    return [
        {
            "workload": workload,
            "gpu": gpu,
            "quantity": quantity,
            "coverage": " ".join(
                f"{row['coverage']:.1f}{'' if row['covers'] else '*'}" for row in of_it if _judges(row)
            ),
            "ties": " ".join(f"{row['ties']:.0f}" for row in of_it if _judges(row)),
            "pinball": " ".join(f"{_ratio(row):.2f}" for row in of_it if _judges(row)),
            "mape": of_it[0]["mape"],
            "calls": of_it[0]["observations"],
        }
        for (workload, gpu, quantity), of_it in groups.items()
    ]


def _judges(row: Row) -> bool:
    return row["coverage"] is not None


def _ratio(row: Row) -> float:
    return float(row["pinball"] or 0) / (float(row["baseline_pinball"] or 0) or 1.0)


def draw_reliability(rows: Sequence[Row], path: Path) -> None:
    """Coverage over stated quantile, a panel a workload, a line a quantity and a dot a GPU type."""
    judged = [row for row in rows if _judges(row)]
    workloads = list(dict.fromkeys(row["workload"] for row in judged))
    columns = min(len(workloads), 4)
    lines = -(-len(workloads) // columns)
    figure = Figure((3.2 * columns, 3.0 * lines + 0.5), layout="constrained")
    for number, workload in enumerate(workloads, 1):
        axes = figure.add_subplot(lines, columns, number)
        axes.set_title(str(workload), fontsize=8)
        axes.plot((45, 100), (45, 100), color="#cccccc", linewidth=1)
        for place, quantity in enumerate(QUANTITIES[:-1]):
            here = [row for row in judged if (row["workload"], row["quantity"]) == (workload, quantity)]
            whole = [row for row in here if row["gpu"] == ALL]
            colour = f"C{place}"
            axes.plot(*_points(whole), color=colour, linewidth=1, label=quantity if number == 1 else None)
            axes.plot(*_points(here), ".", color=colour, markersize=4)
        axes.set_xticks(PERCENTS)
        axes.tick_params(labelsize=7)
    figure.supxlabel("stated quantile, %", fontsize=8)
    figure.supylabel("measured at or below it, %", fontsize=8)
    figure.legend(loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    save(figure, path)


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [float(row["quantile"] or 0) for row in rows], [float(row["coverage"] or 0) for row in rows]
