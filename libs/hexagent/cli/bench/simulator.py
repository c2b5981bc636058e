"""`hexagent bench simulator`: simulated calls a second of CPU, and where that second goes."""

from collections.abc import Callable, Iterator
from cProfile import Profile
from pathlib import PurePath
from pstats import Stats
from time import process_time
from typing import Final, NamedTuple

from hexagent.cli.compiled import core_is_compiled
from hexagent.cli.report import Row
from hexagent.core.instance.spec import ClusterSpec
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World

LARGE: Final = ("hetero-2", 50, 10_000)  # cluster, copies of it, workflows: 1,000 instances
RATE_PER_S: Final = 40.0  # arrivals for each copy: an overload, so that there is something to plan
NAMED_MAX: Final = 3  # functions a profile row names


class SimulatorOptions(NamedTuple):
    policies: tuple[str, ...]
    workloads: tuple[str, ...]
    workflows: int  # of each workload
    cluster: str
    seed: int
    large: bool  # also the first policy and workload on `LARGE`


class Case(NamedTuple):
    """One run to be timed."""

    policy: str
    workload: str
    workflows: int
    cluster: str
    copies: int
    seed: int

    def world(self) -> World:
        options = Options(workflows=self.workflows, rate_per_s=RATE_PER_S * self.copies, seed=self.seed)
        cluster = copies(named_cluster(self.cluster), self.copies)
        return World(cluster, generate(self.workload, options), self.policy, self.seed)


def cases(options: SimulatorOptions) -> list[Case]:
    """What is asked for. Names that nobody knows are refused here, before anything is timed."""
    all_cases = [
        Case(policy, workload, options.workflows, options.cluster, 1, options.seed)
        for workload in options.workloads
        for policy in options.policies
    ]
    if options.large:
        cluster, times, workflows = LARGE
        all_cases.append(Case(options.policies[0], options.workloads[0], workflows, cluster, times, options.seed))
    for case in all_cases:
        case._replace(workflows=1, copies=1).world()
    return all_cases


def copies(cluster: ClusterSpec, times: int) -> ClusterSpec:
    """The cluster with `times` as many instances of each sort."""
    instances = [
        spec._replace(instance_id=f"{spec.instance_id}.{copy}" if copy else spec.instance_id)
        for spec in cluster.instances
        for copy in range(times)
    ]
    return cluster._replace(instances=tuple(sorted(instances)))


def speed_rows(options: SimulatorOptions, say: Callable[[str], None]) -> list[Row]:
    """A row a run, one after the other in this process. Building workload and cluster is not timed."""
    rows: list[Row] = []
    for case in cases(options):
        world = case.world()
        began_s = process_time()
        result = world.run()
        cpu_s = process_time() - began_s
        rows.append(
            {
                "policy": case.policy,
                "workload": case.workload,
                "instances": len(world.fleet.stations),
                "workflows": case.workflows,
                "compiled": int(core_is_compiled()),
                "calls": result.calls,
                "events_per_call": result.events / result.calls,
                "cpu_s": cpu_s,
                "calls_per_s": result.calls / cpu_s,
            }
        )
        say(f"{case.workload} with {case.policy} on {len(world.fleet.stations)} instances: {cpu_s:.1f} s of CPU")
    return rows


def profile_rows(options: SimulatorOptions) -> list[Row]:
    """Where the CPU time of each policy on the first workload goes, by part; the profiler's own time weighs on all."""
    rows: list[Row] = []
    for case in cases(options._replace(workloads=options.workloads[:1], large=False)):
        profile = Profile(builtins=False)  # what is written in C counts where it is called
        profile.runcall(case.world().run)
        spent: dict[str, dict[str, float]] = {}
        for part, function, own_s in _own_times(profile):
            functions = spent.setdefault(part, {})
            functions[function] = functions.get(function, 0.0) + own_s
        all_s = sum(sum(functions.values()) for functions in spent.values())
        for part, functions in sorted(spent.items(), key=lambda item: -sum(item[1].values())):
            most = sorted(functions.items(), key=lambda item: -item[1])[:NAMED_MAX]
            rows.append(
                {
                    "policy": case.policy,
                    "part": part,
                    "percent": 100 * sum(functions.values()) / all_s,
                    "most": ", ".join(f"{name} {100 * own_s / all_s:.1f}" for name, own_s in most),
                }
            )
    return rows


def _own_times(profile: Profile) -> Iterator[tuple[str, str, float]]:
    """(part, function, seconds in it but not in what it calls)."""
    for (file, _, function), (_, _, own_s, _, _) in Stats(profile).stats.items():  # type: ignore[attr-defined]
        path = PurePath(file)
        folders = path.parts[path.parts.index("hexagent") + 1 : -1] if "hexagent" in path.parts else ()
        part = ".".join(folders[:2]) if folders else "numpy" if "numpy" in path.parts else "standard library"
        yield part, f"{path.stem}.{function}" if folders else function, own_s
