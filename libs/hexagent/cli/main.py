"""The `hexagent` command: parsing, help, exit statuses. What commands do is in the modules beside this one."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from hexagent import __version__
from hexagent.cli.bench.commands import bench
from hexagent.cli.failures import EXIT_FAILED, EXIT_USAGE, exit_status, failure_text, usage
from hexagent.cli.options import Cluster, Json, Policy, TimeScale, examples, words
from hexagent.cli.profile.commands import profile
from hexagent.cli.simulate.commands import sim
from hexagent.cli.simulate.questions import ADVISE_EXAMPLES, advise
from hexagent.core.errors import HexagentError

app = typer.Typer(
    name="hexagent",
    help="A control plane that serves agent workflows on mixed GPU fleets.",
    rich_markup_mode="rich",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PORT_HELP: Final = "Port of the dag-tracker; the scheduler, the estimator and the agents follow. 0 takes free ones."

TraceFile = Annotated[
    Path | None, typer.Option("--trace-file", metavar="FILE", help="Write the spans of workflows there as JSON lines.")
]
PrefixCache = Annotated[
    bool | None, typer.Option(help="Engines reuse the KV of shared prefixes; default: the cluster file's.")
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"hexagent {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    epilog=examples(
        "hexagent up",
        "hexagent up --cluster hetero-1 --policy fcfs --time-scale 5",
        "hexagent up --data ./stack --port 7400      (stop it and start it again: it resumes)",
    )
)
def up(
    cluster: Cluster = "demo",
    policy: Policy = "",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder to keep state in; default: a temporary one.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help=_PORT_HELP)] = 7_400,
    time_scale: TimeScale = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the emulated engines' speeds.")] = None,
    host: Annotated[str, typer.Option("--host", help="Interface to listen on.")] = "127.0.0.1",
    prefix_cache: PrefixCache = None,
    gateway: Annotated[bool, typer.Option(help="Serve an OpenAI-compatible endpoint as well.")] = True,
    trace_file: TraceFile = None,
) -> None:
    """Run a whole stack on this machine until Ctrl-C.

    nats-server, dag-tracker, estimator, scheduler and worker-agents with emulated engines, each as a process of its
    own. One that dies is started again on the same port and data.
    """
    from hexagent.cli.report import check_writable
    from hexagent.cli.stack import StackOptions
    from hexagent.cli.up import run_up

    check_writable(trace_file, "trace_file")
    options = StackOptions(cluster, policy, data, port, time_scale, seed, host, prefix_cache, gateway, trace_file)
    asyncio.run(run_up(options))


@app.command(
    epilog=examples(
        "hexagent serve nats --data ./nats --port 4222",
        "HEXAGENT_NATS_URL=nats://10.0.0.1:4222 HEXAGENT_LISTEN_PORT=7401 hexagent serve scheduler",
    )
)
def serve(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="dag-tracker, estimator, scheduler, worker-agent, gateway or nats.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Data folder of nats.")] = Path(".hexagent/nats"),
    host: Annotated[str, typer.Option("--host", help="Interface nats listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port of nats; 0: a free one, kept.")] = 0,
) -> None:
    """Run one process of a stack in the foreground.

    Services read their settings from HEXAGENT_* environment variables; nats takes the options below.
    """
    from hexagent.cli.serve import NATS, serve_nats, serve_service

    if name != NATS:
        serve_service(name)
    raise typer.Exit(asyncio.run(serve_nats(data, host, port)))


@app.command(
    epilog=examples(
        "hexagent run bfcl --workflows 20",
        "hexagent run mixed --rate 5 --arrivals poisson --policy fcfs --json rows.json",
        "hexagent run --trace FILE.jsonl --limit 20 --cluster hetero-1",
        "hexagent run lats --workflows 3 --address 127.0.0.1:7400",
    )
)
def run(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="sharegpt, bfcl, lats, mixed, ...")] = "",
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Recorded workflows, JSON lines; docs/traces.md.")
    ] = None,
    trace_format: Annotated[
        str, typer.Option("--trace-format", help="recorded, mooncake, agentic or otel; default: recognised.")
    ] = "",
    workflows: Annotated[int, typer.Option("--workflows", min=0, help="How many; 0: the workload's own.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Read this many of a trace; 0: all.")] = 0,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Arrivals a second of model time; 0: its own.")] = 0.0,
    arrivals: Annotated[str, typer.Option("--arrivals", help="fixed, poisson, gamma or gamma:CV.")] = "fixed",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the workload and the engines.")] = 1,
    gap_limit: Annotated[float, typer.Option("--gap-limit", help="Cut recorded pauses to so many seconds.")] = 30.0,
    models: Annotated[
        str, typer.Option("--models", help="Of the calls, evenly: MODEL, MODEL:ADAPTER, each may end with @PRECISION.")
    ] = "",
    slo_scale: Annotated[float | None, typer.Option("--slo-scale", help="SLO scale that workflows ask for.")] = None,
    policy: Policy = "",
    cluster: Cluster = "demo",
    prefix_cache: PrefixCache = None,
    time_scale: TimeScale = None,
    address: Annotated[str, typer.Option("--address", help="dag-tracker of a running stack; default: start one.")] = "",
    trace_file: TraceFile = None,
    json_file: Json = None,
) -> None:
    """Run scripted workflows live, as client programs would, and say how long they took.

    Each call is revealed only when what it waits for has ended; tools run in model time; output lengths are known to
    the emulated engine alone. Exit status 1 if a workflow did not complete.
    """
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.run import RunOptions, all_completed, run_on_stack, run_rows, show
    from hexagent.cli.stack import StackOptions
    from hexagent.cli.workload import WorkloadOptions, load

    check_writable(json_file)
    check_writable(trace_file, "trace_file")
    for option, value in (("policy", policy), ("trace_file", trace_file)):
        if address and value:
            raise usage(option, "is the running stack's own; leave it out with --address")
    loaded = load(
        WorkloadOptions(workload, trace, workflows, limit, rate, arrivals, seed, gap_limit, trace_format, models)
    )
    stack = StackOptions(cluster, policy, None, 0, time_scale, seed, prefix_cache=prefix_cache, trace_file=trace_file)
    if trace_file is not None:
        trace_file.unlink(missing_ok=True)  # of an earlier run; the services of this one append
    done = asyncio.run(run_on_stack(RunOptions(stack, address, slo_scale), loaded, loaded.name))
    show(done, loaded)
    write_json(json_file, "run", seed, run_rows(done))
    if not all_completed(done):
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog=examples(
        "hexagent demo",
        "hexagent demo --quick --policies fcfs,hexagent --seed 7",
        "hexagent demo --json demo.json",
    )
)
def demo(
    policies: Annotated[
        str, typer.Option("--policies", help="To compare, in this order.")
    ] = "fcfs,hexagent,hexagent-plus",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the workload and the engines.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A third of the workload: shows the way, not the gain.")
    ] = False,
    cluster: Cluster = "demo",
    time_scale: Annotated[float, typer.Option("--time-scale", help="Model seconds a wall second.")] = 2.5,
    prefix_cache: Annotated[bool, typer.Option(help="Engines reuse the KV of shared prefixes.")] = False,
    json_file: Json = None,
) -> None:
    """Compare policies on the same overloaded workload, each on a fresh local stack.

    Prints the SLO scale that 50, 95 and 99 % of workflows meet under each policy: lower is better. Exit status 1 if
    a workflow did not complete.
    """
    from hexagent.cli.demo import DemoOptions, demo_completed, demo_rows, run_demo, show_demo
    from hexagent.cli.report import check_writable, write_json

    check_writable(json_file)
    names = words(policies, "policies")
    runs = asyncio.run(run_demo(DemoOptions(names, cluster, seed, quick, time_scale, prefix_cache)))
    show_demo(runs)
    write_json(json_file, "demo", seed, demo_rows(runs))
    if not demo_completed(runs):
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog=examples(
        "hexagent explain bfcl-s1-000003/c4",
        "hexagent explain bfcl-s1-000003",
        "hexagent explain bfcl-s1-000003/c4 --address 127.0.0.1:7500 --json why.json",
    )
)
def explain(
    call: Annotated[str, typer.Argument(metavar="CALL", help="WORKFLOW/NODE, or WORKFLOW.")],
    address: Annotated[str, typer.Option("--address", help="The stack's dag-tracker.")] = "127.0.0.1:7400",
    scheduler: Annotated[str, typer.Option("--scheduler", help="Its scheduler; default: the port after that.")] = "",
    estimator: Annotated[str, typer.Option("--estimator", help="Its estimator; default: the port after that.")] = "",
    json_file: Json = None,
) -> None:
    """Say why a call ran where and when it ran, what was predicted, and what happened.

    Of a workflow say how it stands and when it ends.
    """
    from hexagent.cli.explain import explanation_rows, parsed_call, scheduler_address, show_explanation
    from hexagent.cli.explain_workflow import run_explain_workflow
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.top import stack_addresses
    from hexagent.client.explain import explain_call

    check_writable(json_file)
    if "/" not in call:
        row = asyncio.run(run_explain_workflow(call, stack_addresses(address, scheduler, estimator)))
        write_json(json_file, "explain", None, [row])
        return
    parsed = parsed_call(call)
    explanation = asyncio.run(explain_call(parsed, address, scheduler_address(address, scheduler)))
    show_explanation(explanation)
    write_json(json_file, "explain", None, explanation_rows(explanation))


@app.command(
    epilog=examples(
        "hexagent top",
        "hexagent top --once --json now.json",
        "hexagent top --address 127.0.0.1:7500 --interval 5",
    )
)
def top(
    address: Annotated[str, typer.Option("--address", help="The stack's dag-tracker.")] = "127.0.0.1:7400",
    scheduler: Annotated[str, typer.Option("--scheduler", help="Its scheduler; default: the port after that.")] = "",
    estimator: Annotated[str, typer.Option("--estimator", help="Its estimator; default: the port after that.")] = "",
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, help="Wall seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one look and end; rates are over one interval.")] = False,
    json_file: Json = None,
) -> None:
    """Show a running stack: instances, workflows in flight, tenants, estimates. Ctrl-C ends it.

    Rates of instances are a second of model time. With --json the file holds the latest look.
    """
    from hexagent.cli.report import check_writable
    from hexagent.cli.top import TopOptions, run_top, stack_addresses

    check_writable(json_file)
    options = TopOptions(stack_addresses(address, scheduler, estimator), interval, once, json_file)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_top(options))


@app.command(epilog=examples("hexagent drain d-h100-0", "hexagent drain d-h100-0 --undo"))
def drain(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="As `hexagent up` and `explain` name it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take calls again.")] = False,
    address: Annotated[str, typer.Option("--address", help="The stack's dag-tracker.")] = "127.0.0.1:7400",
    scheduler: Annotated[str, typer.Option("--scheduler", help="Its scheduler; default: the port after that.")] = "",
    json_file: Json = None,
) -> None:
    """Take an instance out of service: it gets no new calls, and this ends when its calls have ended.

    Interrupted, the instance stays closed; it also does when the scheduler is started again.
    """
    from hexagent.cli.drain import run_drain
    from hexagent.cli.explain import scheduler_address
    from hexagent.cli.report import check_writable, write_json

    check_writable(json_file)
    rows = asyncio.run(run_drain(instance, scheduler_address(address, scheduler), undo))
    write_json(json_file, "drain", None, rows)


@app.command(epilog=examples("hexagent flip p-h100-0 --role decode", "hexagent flip p-h100-0 --role prefill"))
def flip(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="As `hexagent up` and `explain` name it.")],
    role: Annotated[str, typer.Option("--role", help="What it shall be: prefill or decode.")],
    address: Annotated[str, typer.Option("--address", help="The stack's dag-tracker.")] = "127.0.0.1:7400",
    scheduler: Annotated[str, typer.Option("--scheduler", help="Its scheduler; default: the port after that.")] = "",
    json_file: Json = None,
) -> None:
    """Give an instance the other role: it gets no new calls, changes when those it has have ended, then gets calls.

    Interrupted, or when the scheduler or the instance's agent is started again, the change goes on. With the role that
    it has, an instance that has not changed yet stays as it is.
    """
    from hexagent.cli.explain import scheduler_address
    from hexagent.cli.flip import run_flip
    from hexagent.cli.report import check_writable, write_json

    check_writable(json_file)
    rows = asyncio.run(run_flip(instance, role, scheduler_address(address, scheduler)))
    write_json(json_file, "flip", None, rows)


@app.command(epilog=examples("hexagent doctor", "hexagent doctor --cluster my-cluster.toml"))
def doctor(cluster: Cluster = "demo", json_file: Json = None) -> None:
    """Check what this machine has of what HexAGenT needs. Exit status 1 if something is missing that it must have."""
    from hexagent.cli.doctor import findings, show_findings
    from hexagent.cli.report import check_writable, write_json

    check_writable(json_file)
    found = list(findings(cluster))
    show_findings(found)
    write_json(json_file, "doctor", None, [finding.row() for finding in found])
    if any(finding.status == "fail" for finding in found):
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog=examples(
        "hexagent replay .hexagent/journal/scheduler-00000001.journal",
        "hexagent replay FILE --policy fcfs --json points.json",
        "hexagent replay FILE --profile tuned.toml",
    )
)
def replay(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="A scheduler's journal file.")],
    policy: Annotated[str, typer.Option("--policy", help="Also say where this policy would have differed.")] = "",
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Also say where these numbers would have differed.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Decide again from what a scheduler recorded. Exit status 1 if the same policy does not decide the same."""
    from hexagent.cli.replay import run_replay
    from hexagent.cli.report import check_writable

    check_writable(json_file)
    if not run_replay(journal, policy, profile, json_file):
        raise typer.Exit(EXIT_FAILED)


app.command("advise", epilog=ADVISE_EXAMPLES)(advise)
app.add_typer(profile)
app.add_typer(sim)
app.add_typer(bench)


def main() -> None:
    """Run the command line of this process and exit: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """The exit status of one command line; errors are one line on stderr."""
    try:
        status = app(arguments, prog_name="hexagent", standalone_mode=False)
    except HexagentError as error:
        print(f"hexagent: {failure_text(error)}", file=sys.stderr)
        return exit_status(error)
    except typer.TyperException as error:
        print(f"hexagent: {error.format_message()}", file=sys.stderr)
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return EXIT_FAILED
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
