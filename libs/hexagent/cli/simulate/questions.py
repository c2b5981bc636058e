"""`hexagent sim whatif` and `hexagent advise`, which ask about a recorded history: parsing and help."""

from pathlib import Path
from typing import Annotated, Final

import typer

from hexagent.cli.options import Json, examples
from hexagent.cli.simulate.commands import sim
from hexagent.cli.simulate.options import EngineProfile, Model

ADVISE_EXAMPLES: Final = examples(
    "hexagent advise spans.jsonl",
    "hexagent advise spans.jsonl --cluster my-cluster.toml --baseline conversation-sticky --json rows.json",
    "hexagent advise FILE.jsonl --rate x2 --worst 5",
)

Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="Recorded workflows; docs/traces.md has the formats.")]
Rate = Annotated[
    str, typer.Option("--rate", help="Arrivals a second, or x1.5 times the recorded ones; default: as recorded.")
]
Cluster = Annotated[
    str, typer.Option("--cluster", help="hetero-1, hetero-2, homogeneous, mixed-3, mini, or a cluster file.")
]
TraceFormat = Annotated[
    str, typer.Option("--trace-format", help="recorded, mooncake, agentic or otel; default: recognised.")
]
Alpha = Annotated[
    float, typer.Option("--alpha", min=0.1, max=1_000, help="A workflow is on time within so many horizons.")
]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Read this many workflows; 0: all.")]


@sim.command(
    "whatif",
    epilog=examples(
        "hexagent sim whatif FILE.jsonl --change '-2 h100 decode, +4 a100 decode'",
        "hexagent sim whatif FILE.jsonl --change 'flip decode-h200-0' --change 'rate x1.5' --alpha 2",
        "hexagent sim whatif FILE.jsonl --rate x2 --cluster my-cluster.toml --change 'tenant b:1x2' --json rows.json",
    ),
)
def sim_whatif(
    trace: Trace,
    change: Annotated[
        list[str],
        typer.Option(
            "--change",
            help="Instances to add or take, 'flip INSTANCE', 'tenant NAME:WEIGHTxN', 'rate xFACTOR', with commas"
            " between; several times for several answers.",
        ),
    ],
    alpha: Alpha = 3.0,
    rate: Rate = "",
    policy: Annotated[str, typer.Option("--policy", help="NAME or NAME:DISPATCH.")] = "hexagent-plus",
    cluster: Cluster = "hetero-1",
    model: Model = "llama-3.1-70b",
    engine_profile: EngineProfile = "trtllm-1.2.1",
    trace_format: TraceFormat = "",
    limit: Limit = 0,
    seed_list: Annotated[str, typer.Option("--seeds", help="Of the instances' speeds, such as 1-5 or 1,3,7.")] = "1-3",
    json_file: Json = None,
) -> None:
    """Say what a recorded history would look like with other instances, one more tenant or another rate.

    For the cluster as it is and after each change: the SLO scale that 50, 95 and 99 % of workflows meet, how many are
    on time, what it costs in GPU-hours priced by type, and the paired difference with its interval.
    """
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.simulate.axes import seeds
    from hexagent.cli.simulate.history import HistoryOptions, checked_policy, scenario_of
    from hexagent.cli.simulate.whatif import Question, run_whatif

    check_writable(json_file)
    given = seeds(seed_list)
    base = scenario_of(HistoryOptions(trace, trace_format, limit, rate, cluster, model, engine_profile))
    question = Question(base, tuple(dict.fromkeys(change)), checked_policy(base, policy), given, alpha)
    write_json(json_file, "sim whatif", given[0], run_whatif(question))


def advise(
    trace: Trace,
    cluster: Cluster = "hetero-1",
    model: Model = "llama-3.1-70b",
    engine_profile: EngineProfile = "trtllm-1.2.1",
    policy: Annotated[str, typer.Option("--policy", help="NAME or NAME:DISPATCH.")] = "hexagent-plus",
    baseline: Annotated[str, typer.Option("--baseline", help="What stands for your stack.")] = "fcfs:least-loaded",
    alpha: Alpha = 3.0,
    worst: Annotated[
        int, typer.Option("--worst", min=0, max=1_000, help="Show so many that gain most, and that lose most.")
    ] = 3,
    rate: Rate = "",
    trace_format: TraceFormat = "",
    limit: Limit = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=1_000_000, help="Of the instances' speeds.")] = 1,
    json_file: Json = None,
) -> None:
    """Say what this scheduler would have made of what another stack did; nothing but the trace is needed.

    Simulates the recorded workflows under a policy and under a baseline that stands for the other stack: what changes
    for workflows, which gain and lose most and what their calls waited for, and what is assumed. Where the trace
    says how long workflows took, the simulated baseline is held against that.
    """
    from hexagent.cli.advise import AdviseOptions, run_advise
    from hexagent.cli.report import check_writable, write_json
    from hexagent.cli.simulate.history import HistoryOptions

    check_writable(json_file)
    history = HistoryOptions(trace, trace_format, limit, rate, cluster, model, engine_profile)
    write_json(json_file, "advise", seed, run_advise(AdviseOptions(history, policy, baseline, alpha, worst, seed)))
