"""`hexagent sim run`, `sim compare`, `bench paper` and `bench capacity`: parsing and help."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from hexagent.cli.options import Json, examples, words
from hexagent.cli.simulate.options import Axes, EngineProfile, Model, takes_axes

sim = typer.Typer(
    name="sim", help="Run scheduling policies in the simulator: no GPU, no services.", no_args_is_help=True
)

PAPER_EXAMPLES: Final = examples(
    "hexagent bench paper",
    "hexagent bench paper --world both --engine-profile trtllm-1.2.1,ideal --traces DIR --json rows.json",
    "hexagent bench paper --pool 1000 --policies atlas,hexagent,hexagent-plus,clairvoyant",
    "hexagent bench paper --full --out results      (again after Ctrl-C: it goes on)",
)

CAPACITY_EXAMPLES: Final = examples(
    "hexagent bench capacity --json rows.json",
    "hexagent bench capacity --cluster hetero-1 --workload mixed --duration 300 --policies fcfs,hexagent-plus",
)

_SEEDS: Final = "1-99 are for tuning, 100 and up for reporting"

Processes = Annotated[int, typer.Option("--processes", min=1, help="Runs at a time.")]

_PROCESSES: Final = os.cpu_count() or 1


@sim.command(
    "run",
    epilog=examples(
        "hexagent sim run --workload bfcl",
        "hexagent sim run --workload mixed --policy fcfs:least-loaded --cluster hetero-2 --gantt gantt.png",
        "hexagent sim run --workload bfcl --world full --policy hexagent-plus --placements placements.png",
        "hexagent sim run --trace FILE.jsonl --load 0.9 --arrivals poisson",
        "hexagent sim run --workload bfcl --tenants a:1,b:1x8",
    ),
)
@takes_axes
def sim_run(
    axes: Axes,
    policy: Annotated[str, typer.Option("--policy", help="NAME or NAME:DISPATCH.")] = "hexagent",
    seed: Annotated[int, typer.Option("--seed", min=0, max=1_000_000, help=f"{_SEEDS}.")] = 1,
    gantt: Annotated[Path, typer.Option("--gantt", metavar="FILE", help="Picture of what each instance did.")] = Path(
        ".hexagent/gantt.png"
    ),
    placements: Annotated[
        Path | None,
        typer.Option("--placements", metavar="FILE", help="Also a picture of which GPU types got which calls."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Simulate one workload under one policy; say how late workflows were, by class, and draw what instances did."""
    from hexagent.cli.failures import usage
    from hexagent.cli.report import check_writable, made_folder, write_json
    from hexagent.cli.simulate.axes import cells, policies
    from hexagent.cli.simulate.run import run_one
    from hexagent.sim.experiment.run import Run

    check_writable(json_file)
    found = cells(axes)
    names = policies(policy, found[0], "--policy")
    if len(found) > 1 or len(names) != 1:
        raise usage("sim run", "takes one value for each option; sim compare takes several")
    made_folder(gantt.parent, "gantt")
    check_writable(gantt, "gantt")
    check_writable(placements, "placements")
    write_json(json_file, "sim run", seed, [run_one(Run(found[0], names[0], seed), gantt, placements)])


@sim.command(
    "compare",
    epilog=examples(
        "hexagent sim compare --workload bfcl --policies fcfs,fcfs:least-loaded,hexagent --seeds 1-3",
        "hexagent sim compare --workload bfcl --load 0.3,0.6,0.9,1.2 --duration 300 --arrivals poisson",
        "hexagent sim compare --trace FILE.jsonl --cluster hetero-1,hetero-2 --noise 0,0.1,0.3 --json rows.json",
    ),
)
@takes_axes
def sim_compare(
    axes: Axes,
    names: Annotated[str, typer.Option("--policies", help="NAME or NAME:DISPATCH; default: all of the world.")] = "",
    seed_list: Annotated[str, typer.Option("--seeds", help=f"Such as 1-5 or 1,3,7. {_SEEDS}.")] = "1-3",
    processes: Processes = _PROCESSES,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Finished runs, tables and pictures; runs there are not repeated."),
    ] = Path(".hexagent/compare"),
    json_file: Json = None,
) -> None:
    """Simulate workloads under several policies and say which SLO scale each needs, with intervals.

    All that says what is simulated, but for --trace, --profile, --tenants, --models, --duration and --workflows, takes
    several values with commas between; every combination is a cell.
    """
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.simulate.axes import cells, policies, seeds
    from hexagent.cli.simulate.compare import Plan, run_plans
    from hexagent.sim.experiment.paper import Experiment

    check_writable(json_file)
    given = seeds(seed_list)
    plans = [Plan(Experiment(cell, given), policies(names, cell)) for cell in cells(axes)]
    write_json(json_file, "sim compare", given[0], run_plans(plans, out, processes))


def bench_paper(
    world: Annotated[str, typer.Option("--world", help="policy-only, full or both.")] = "policy-only",
    full: Annotated[
        bool,
        typer.Option("--full", help="Also --pool 5000, homogeneous clusters, arrivals, loads, noise, links."),
    ] = False,
    names: Annotated[str, typer.Option("--policies", help="Comma-separated; default: all of the world.")] = "",
    seed_list: Annotated[str, typer.Option("--seeds", help=f"{_SEEDS}.")] = "101-102",
    pool: Annotated[
        int,
        typer.Option(
            "--pool",
            min=0,
            max=100_000,
            help="Workflows a cell, over as many seeds from the first on; 0: --seeds as they are.",
        ),
    ] = 0,
    engine_profiles: Annotated[
        str,
        typer.Option(
            "--engine-profile",
            help="What engines can do; of several, such as trtllm-1.2.1,ideal, policy-only takes one.",
        ),
    ] = "trtllm-1.2.1",
    traces: Annotated[
        Path | None, typer.Option("--traces", metavar="DIR", help="Also each *.jsonl of recorded workflows there.")
    ] = None,
    processes: Processes = _PROCESSES,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Finished runs, tables and pictures; runs there are not repeated."),
    ] = Path(".hexagent/paper"),
    json_file: Json = None,
) -> None:
    """The paper's evaluation: 2 models, 2 heterogeneous clusters, 4 workloads, every policy with both dispatches.

    Tables of Req with intervals, changes from the strongest baseline beside the paper's, the gap to the clairvoyant
    that is closed, and pictures. Under NAME+hints clients hint horizons, with a log error of 0.1. Ctrl-C keeps finished
    runs; the same command goes on.
    """
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.simulate.axes import policies, seeds, settings, trace_files
    from hexagent.cli.simulate.compare import Plan, run_plans
    from hexagent.sim.experiment.cell import check_cell
    from hexagent.sim.experiment.paper import FULL_POOL, experiments, recorded

    check_writable(json_file)
    given, files = seeds(seed_list), trace_files(traces)
    found = [
        experiment
        for setting in settings(world, engine_profiles)
        for experiment in (
            *experiments(*setting, given, pool or (FULL_POOL if full else 0), full),
            *recorded(*setting, given, files),
        )
    ]
    for cell, _ in found:
        check_cell(cell)
    plans = [Plan(experiment, policies(names, experiment.cell)) for experiment in found]
    write_json(json_file, "bench paper", given[0], run_plans(plans, out, processes))


def bench_capacity(
    workload: Annotated[str, typer.Option("--workload", help="sharegpt, bfcl, lats, mixed, ...")] = "bfcl,sharegpt",
    cluster: Annotated[
        str, typer.Option("--cluster", help="hetero-1, hetero-2, homogeneous, mixed-3 or mini.")
    ] = "mixed-3",
    model: Model = "llama-3.1-70b",
    world: Annotated[str, typer.Option("--world", help="policy-only or full.")] = "full",
    engine_profile: EngineProfile = "trtllm-1.2.1",
    names: Annotated[
        str, typer.Option("--policies", help="NAME or NAME:DISPATCH, comma-separated.")
    ] = "hexagent-plus,hexagent,conversation-sticky,prefix-affinity,aggregated",
    alpha: Annotated[float, typer.Option("--alpha", min=1, max=1_000, help="SLO scale.")] = 3.0,
    arrivals: Annotated[str, typer.Option("--arrivals", help="fixed, poisson, gamma or gamma:CV.")] = "poisson",
    duration: Annotated[
        float, typer.Option("--duration", min=1, help="Seconds of arrivals, the first tenth not judged.")
    ] = 60.0,
    seed_list: Annotated[str, typer.Option("--seeds", help=f"{_SEEDS}.")] = "101-102",
    processes: Processes = _PROCESSES,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Finished runs and the picture; runs there are not repeated.")
    ] = Path(".hexagent/capacity"),
    json_file: Json = None,
) -> None:
    """The largest steady rate of arrivals at which 99 % of the workflows end within alpha times their horizon.

    By bisection over load, to 5 %, every policy with the same workflows and arrivals. `ratio_to_best` is to the best of
    conversation-sticky, prefix-affinity and aggregated; a priced GPU-hour is one of an A100.
    """
    from hexagent.cli.failures import options_named
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.simulate.axes import policies, seeds
    from hexagent.cli.simulate.capacity import CapacityOptions, run_capacity
    from hexagent.sim.experiment.cell import Cell, check_cell

    check_writable(json_file)
    given = seeds(seed_list)
    cells = tuple(
        [
            Cell(model, where, what, world, engine_profile, arrivals=arrivals, duration_s=duration)
            for where in words(cluster, "cluster")
            for what in words(workload, "--workload")
        ]
    )
    with options_named({"workload": "--workload"}):
        for cell in cells:
            check_cell(cell)
        options = CapacityOptions(cells, policies(names, cells[0]), given, alpha, processes)
        rows = run_capacity(options, out)
    write_json(json_file, "bench capacity", given[0], rows)
