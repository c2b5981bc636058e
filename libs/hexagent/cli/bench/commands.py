"""`hexagent bench`: parsing and help; what is measured, and how, is in the modules beside this one."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from hexagent.cli.failures import EXIT_FAILED, options_named, usage
from hexagent.cli.options import Cluster, Json, Policy, TimeScale, examples, whole_numbers, words
from hexagent.cli.simulate.commands import CAPACITY_EXAMPLES, PAPER_EXAMPLES, bench_capacity, bench_paper

bench = typer.Typer(
    name="bench", help="Measure the live system, policies in simulation, and what is possible.", no_args_is_help=True
)
bench.command("paper", epilog=PAPER_EXAMPLES)(bench_paper)
bench.command("capacity", epilog=CAPACITY_EXAMPLES)(bench_capacity)


@bench.command("control-plane", epilog=examples("hexagent bench control-plane --json rows.json"))
def bench_control_plane(
    rates: Annotated[str, typer.Option("--rates", help="Calls a second offered, comma-separated.")] = "25,50,100,200",
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=600, help="Wall time of each rate.")] = 10.0,
    cluster: Cluster = "hetero-1",
    policy: Policy = "hexagent",
    json_file: Json = None,
) -> None:
    """CPU a call by service, throughput, and added time to first token, with an engine that is all but instant."""
    from hexagent.cli.bench.control_plane import ControlPlaneOptions, parsed_rates, run_control_plane
    from hexagent.cli.report import check_writable, console, error_console, table_of, write_json

    check_writable(json_file)
    options = ControlPlaneOptions(parsed_rates(rates), seconds, cluster, policy)
    rows = asyncio.run(run_control_plane(options, error_console().print))
    console().print(table_of("control plane", rows))
    write_json(json_file, "bench control-plane", None, rows)


@bench.command("restart", epilog=examples("hexagent bench restart --rounds 30 --json rows.json"))
def bench_restart(
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Kills.")] = 30,
    every: Annotated[float, typer.Option("--every", min=0.1, max=600, help="Wall seconds between kills.")] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which processes are drawn.")] = 1,
    nats: Annotated[bool, typer.Option("--nats", help="Kill nats-server too.")] = False,
    cluster: Cluster = "demo",
    time_scale: TimeScale = 5.0,
    json_file: Json = None,
) -> None:
    """Kill processes at random under load; count what was lost or repeated. Exit status 1 if anything was."""
    from hexagent.cli.bench.restart import RestartOptions, nothing_lost, run_restart_on_stack
    from hexagent.cli.report import check_writable, console, error_console, table_of, write_json
    from hexagent.cli.stack import StackOptions

    check_writable(json_file)
    options = RestartOptions(rounds=rounds, every_s=every, seed=seed, nats=nats)
    stack = StackOptions(cluster, time_scale=time_scale)
    rows = asyncio.run(run_restart_on_stack(stack, options, error_console().print))
    console().print(table_of("restart", rows[:-1]), table_of("all", rows[-1:]))
    write_json(json_file, "bench restart", seed, rows)
    if not nothing_lost(rows):
        raise typer.Exit(EXIT_FAILED)


@bench.command("kills", epilog=examples("hexagent bench kills --json rows.json"))
def bench_kills(
    workload: Annotated[str, typer.Option("--workload", help="What runs.")] = "bfcl",
    workflows: Annotated[int, typer.Option("--workflows", min=1, max=100_000, help="How many.")] = 200,
    rate: Annotated[float, typer.Option("--rate", min=0.001, help="Arrivals a second of model time.")] = 2.0,
    every: Annotated[float, typer.Option("--every", min=0.1, max=600, help="Wall seconds between kills.")] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of workload, engines and kills.")] = 1,
    time_scale: TimeScale = 1.0,
    json_file: Json = None,
) -> None:
    """Workflows on eight agent processes, without kills and with: what they add to completion times.

    Exit status 1 if a workflow did not complete.
    """
    from hexagent.cli.bench.kills import KillsOptions, all_done, run_kills
    from hexagent.cli.report import check_writable, console, table_of, write_json

    check_writable(json_file)
    rows = asyncio.run(run_kills(KillsOptions(workload, workflows, rate, every, time_scale, seed)))
    console().print(table_of("kills", rows))
    write_json(json_file, "bench kills", seed, rows)
    if not all_done(rows):
        raise typer.Exit(EXIT_FAILED)


@bench.command("bounds", epilog=examples("hexagent bench bounds", "hexagent bench bounds --noise 0 --json rows.json"))
def bench_bounds(
    cells: Annotated[
        str, typer.Option("--cells", help="WORKLOAD:WORKFLOWS, comma-separated.")
    ] = "bfcl:10,mixed:10,lats:3,sharegpt:10",
    cluster: Annotated[str, typer.Option("--cluster", help="A cluster of the benchmark.")] = "mini",
    rate: Annotated[float, typer.Option("--rate", min=0.001, help="Arrivals a second.")] = 40.0,
    seed_list: Annotated[str, typer.Option("--seeds", help="Of workloads and engines, such as 1-5 or 1,3,7.")] = "1,2",
    noise: Annotated[float, typer.Option("--noise", min=0, max=0.3, help="Of true step times, log-normal.")] = 0.07,
    tries: Annotated[int, typer.Option("--tries", min=20, max=100_000, help="Schedules tried a cell.")] = 60,
    json_file: Json = None,
) -> None:
    """How near to each other the certified bound, the best schedule found offline and two policies are, simulated.

    The columns are the SLO scale 95 % of the workflows need. Cells have at most ten workflows.
    """
    from hexagent.cli.bench.bounds import BoundsOptions, bounds_rows, parsed_cells
    from hexagent.cli.report import check_writable, console, table_of, write_json
    from hexagent.cli.simulate.axes import seeds

    check_writable(json_file)
    options = BoundsOptions(parsed_cells(cells), cluster, rate, seeds(seed_list), noise, tries)
    with options_named({"workload": "cells"}):
        rows = bounds_rows(options)
    console().print(table_of("bounds", rows))
    write_json(json_file, "bench bounds", None, rows)


@bench.command(
    "simulator",
    epilog=examples(
        "hexagent bench simulator --large --json rows.json",
        "hexagent bench simulator --policies hexagent --workloads lats --profile",
    ),
)
def bench_simulator(
    policies: Annotated[str, typer.Option("--policies", help="Comma-separated.")] = "fcfs,workflow-fcfs,atlas,hexagent",
    workloads: Annotated[str, typer.Option("--workloads", help="Comma-separated.")] = "bfcl,lats",
    workflows: Annotated[int, typer.Option("--workflows", min=1, max=100_000, help="Of each workload.")] = 100,
    cluster: Annotated[str, typer.Option("--cluster", help="A cluster of the benchmark.")] = "hetero-1",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of workloads and engines.")] = 1,
    large: Annotated[
        bool, typer.Option("--large", help="Also the first policy on 1,000 instances with 10,000 workflows.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show instead where the time goes, by part.")] = False,
    json_file: Json = None,
) -> None:
    """Simulated LLM calls a second of CPU, on one core.

    Seconds are those of this process's CPU, so that a busy machine counts less.
    """
    from hexagent.cli.bench.simulator import SimulatorOptions, profile_rows, speed_rows
    from hexagent.cli.report import check_writable, console, error_console, table_of, write_json

    check_writable(json_file)
    options = SimulatorOptions(
        words(policies, "policies"), words(workloads, "workloads"), workflows, cluster, seed, large
    )
    with options_named({"policy": "policies", "workload": "workloads"}):
        rows = profile_rows(options) if profile else speed_rows(options, error_console().print)
    console().print(table_of("profile" if profile else "simulator", rows))
    write_json(json_file, "bench simulator", seed, rows)


@bench.command(
    "decisions",
    epilog=examples(
        "hexagent bench decisions --json rows.json --picture decisions.png",
        "hexagent bench decisions --policies fcfs,hexagent --instances 100 --ready-calls 1000",
    ),
)
def bench_decisions(
    policies: Annotated[
        str, typer.Option("--policies", help="Comma-separated; by default all, with their first dispatch.")
    ] = "",
    worlds: Annotated[
        str, typer.Option("--worlds", help="policy-only, full with prefix caches, or both.")
    ] = "policy-only,full",
    instances: Annotated[
        str, typer.Option("--instances", help="Sizes of the cluster: 10, or multiples of 20, comma-separated.")
    ] = "10,20,100,1000",
    ready_calls: Annotated[
        str, typer.Option("--ready-calls", help="Lengths of the queue, comma-separated.")
    ] = "10,100,1000,10000",
    decisions: Annotated[int, typer.Option("--decisions", min=1, max=100_000, help="Timed in each case.")] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sizes of calls.")] = 1,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw how they grow, as .png.")
    ] = None,
    json_file: Json = None,
) -> None:
    """CPU time of the scheduler's decisions, the queue held at a length, and how it grows.

    A decision is one event handled while a prefill instance is idle, so that a call may start there: all that the
    scheduler does with it, the record of the decision included. Seconds are those of this process's CPU.
    """
    from hexagent.cli.bench.decisions import DecisionOptions, decision_rows, draw
    from hexagent.cli.report import check_writable, console, error_console, table_of, write_json
    from hexagent.core.policy.registry import RECIPES

    check_writable(json_file)
    check_writable(picture, "picture")
    names = policies or ",".join(name for name, recipe in RECIPES.items() if not recipe.clairvoyant)
    options = DecisionOptions(
        words(names, "policies"),
        words(worlds, "worlds"),
        whole_numbers(instances, "instances"),
        whole_numbers(ready_calls, "ready-calls"),
        decisions,
        seed,
    )
    with options_named({"policy": "policies"}):
        rows = decision_rows(options, error_console().print)
    console().print(table_of("decisions", rows))
    write_json(json_file, "bench decisions", seed, rows)
    if picture is not None:
        draw(rows, picture)


@bench.command(
    "fidelity",
    epilog=examples(
        "hexagent bench fidelity --json fidelity.json --picture fidelity.png",
        "hexagent bench fidelity --workloads bfcl --policies hexagent --workflows 40",
    ),
)
def bench_fidelity(
    workloads: Annotated[str, typer.Option("--workloads", help="bfcl, lats, or both.")] = "bfcl,lats",
    policies: Annotated[str, typer.Option("--policies", help="Comma-separated.")] = "fcfs,hexagent",
    workflows: Annotated[int, typer.Option("--workflows", min=0, help="Of each workload; 0: as in the tables.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the workload and the engines.")] = 1,
    cluster: Cluster = "demo",
    time_scale: Annotated[float, typer.Option("--time-scale", help="Model seconds a wall second, at most 2.")] = 1.0,
    prefix_cache: Annotated[bool, typer.Option(help="Engines reuse the KV of shared prefixes.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw the distributions, as .png or .svg.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Run the same workload live and in the simulator, and compare completion times.

    Both drivers run the same cores on the same cluster, seed and hidden truth; the simulator is given the control
    latencies measured in the live run. It is a check of the two drivers against each other. Exit status 1 if a
    workflow did not complete.
    """
    from hexagent.cli.bench import fidelity
    from hexagent.cli.report import check_writable, write_json

    check_writable(json_file)
    check_writable(picture, "picture")
    if picture is not None and picture.suffix not in fidelity.PICTURES:
        raise usage("picture", f"must end in {' or '.join(fidelity.PICTURES)}")
    names, orders = words(workloads, "workloads"), words(policies, "policies")
    options = fidelity.FidelityOptions(names, orders, cluster, workflows, seed, time_scale, prefix_cache)
    pairs = asyncio.run(fidelity.run_fidelity(options))
    rows = fidelity.fidelity_rows(pairs)
    fidelity.show(rows)
    write_json(json_file, "bench fidelity", seed, rows)
    if picture is not None:
        fidelity.draw(pairs, picture)
    if not fidelity.completed(pairs):
        raise typer.Exit(EXIT_FAILED)


@bench.command(
    "estimator",
    epilog=examples(
        "hexagent bench estimator --json rows.json --picture reliability.png",
        "hexagent bench estimator --workloads bfcl --traces FILE.jsonl --seeds 1",
    ),
)
def bench_estimator(
    workloads: Annotated[
        str, typer.Option("--workloads", help="Comma-separated; empty: only traces.")
    ] = "bfcl,sharegpt,lats,mixed",
    traces: Annotated[str, typer.Option("--traces", help="Files of recorded workflows, comma-separated.")] = "",
    seed_list: Annotated[str, typer.Option("--seeds", help="Such as 1-5; 1-99 are for tuning.")] = "101-102",
    load: Annotated[float, typer.Option("--load", help="Of the phase that is the bottleneck.")] = 0.9,
    warm_up: Annotated[int, typer.Option("--warm-up", min=0, help="Calls of a run that are not judged.")] = 500,
    hints: Annotated[float, typer.Option("--hints", help="Log error of the horizon that each client hints.")] = 0.1,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw reliability diagrams, as .png.")
    ] = None,
    json_file: Json = None,
) -> None:
    """How often what was measured was at or below the quantiles that were predicted for it, by GPU type.

    Runs are simulated on hetero-1: hidden factors on every instance, noise on every step. `covers` says whether
    coverage is right within `band`; the baseline is the quantiles of the latest measurements of the class.
    """
    from hexagent.cli.bench.estimator import EstimatorOptions, draw_reliability, estimator_rows, shown
    from hexagent.cli.report import check_writable, console, error_console, table_of, write_json
    from hexagent.cli.simulate.axes import seeds

    check_writable(json_file)
    check_writable(picture, "picture")
    names = words(workloads, "workloads") if workloads else ()
    paths = tuple([Path(word) for word in words(traces, "traces")]) if traces else ()
    options = EstimatorOptions(names, paths, seeds(seed_list), load, warm_up, hints)
    with options_named({"workload": "workloads", "trace": "traces"}):
        rows = estimator_rows(options, error_console().print)
    console().print(table_of("coverage of 50, 90 and 99 % quantiles; pinball over the baseline's", shown(rows)))
    columns = ("workload", "quantity", "workflows", "log_error", "counted")
    remaining = [{column: row[column] for column in columns} for row in rows if row["log_error"] is not None]
    console().print(table_of("remaining work", remaining))
    write_json(json_file, "bench estimator", options.seeds[0], rows)
    if picture is not None:
        draw_reliability(rows, picture)
