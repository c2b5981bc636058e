"""What a live run consists of, from the options of the command line."""

from pathlib import Path
from typing import Final, NamedTuple

from hexagent.cli.failures import usage
from hexagent.core.units import US_PER_S
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.targets import aimed, parse_targets
from hexagent.sim.workloads.trace import TraceOptions, read_trace

GAP_LIMIT_S: Final = 30.0  # of conversations; recorded pauses last up to an hour


class WorkloadOptions(NamedTuple):
    """As given by the user; 0 and "" leave the workload's own value."""

    name: str = ""  # of a generator
    trace: Path | None = None
    workflows: int = 0  # generated
    limit: int = 0  # read from the trace
    rate_per_s: float = 0.0
    arrivals: str = "fixed"
    seed: int = 1
    gap_limit_s: float = GAP_LIMIT_S
    trace_format: str = ""  # recognised
    models: str = ""  # of the calls, as `parse_targets` reads them


def load(options: WorkloadOptions) -> Workload:
    """The generated or recorded workload. `InvalidArgument` or `NotFound` names the option that is wrong."""
    return aimed(_scripts(options), parse_targets(options.models))


def _scripts(options: WorkloadOptions) -> Workload:
    known = ", ".join(sorted(GENERATORS))
    if options.trace is None:
        if not options.name:
            raise usage("workload", f"give the name of a workload ({known}) or --trace FILE")
        if options.limit:
            raise usage("limit", "is for recorded traces; use --workflows with a generated workload")
        if options.trace_format:
            raise usage("trace_format", "is for recorded traces")
        return generate(
            options.name,
            Options(
                workflows=options.workflows,
                rate_per_s=options.rate_per_s,
                seed=options.seed,
                arrivals=options.arrivals,
            ),
        )
    if options.name:
        raise usage("workload", f"give either {options.name!r} or --trace, not both")
    if options.workflows:
        raise usage("workflows", "is for generated workloads; use --limit with a recorded trace")
    if options.gap_limit_s < 0:
        raise usage("gap_limit_us", "must be 0 or more seconds")
    return read_trace(
        options.trace,
        TraceOptions(
            limit=options.limit,
            rate_per_s=options.rate_per_s,
            arrivals=options.arrivals,
            seed=options.seed,
            format=options.trace_format,
            gap_limit_us=round(options.gap_limit_s * US_PER_S),
        ),
    )
