"""What questions about a recorded history start from: its workflows, and the cluster to run them on."""

from pathlib import Path
from typing import NamedTuple

from hexagent.cli.failures import options_named, usage
from hexagent.core.errors import NotFound
from hexagent.core.instance.spec import PROFILES, ClusterSpec
from hexagent.runtime.cluster_file import load_cluster, shipped_clusters
from hexagent.sim.changes import Scenario, faster
from hexagent.sim.clusters import CLUSTERS, named_cluster
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.trace import TraceOptions, read_trace
from hexagent.sim.world import World


class HistoryOptions(NamedTuple):
    trace: Path
    trace_format: str = ""  # recognised
    limit: int = 0  # workflows read; 0 = all
    rate: str = ""  # workflows a second, or `xFACTOR` of the recorded arrivals; "" = as recorded
    cluster: str = "hetero-1"  # a name, or a file
    model: str = "llama-3.1-70b"  # of a named cluster
    engine_profile: str = "trtllm-1.2.1"  # of a named cluster


def scenario_of(options: HistoryOptions) -> Scenario:
    """`NotFound` or `InvalidArgument` names the option that is wrong."""
    cluster = _cluster(options)
    rate, factor = (0.0, options.rate) if options.rate.startswith("x") else (_rate(options.rate), "")
    tenants = tuple([tenant.name for tenant in cluster.tenants])
    asked = TraceOptions(options.limit, rate, tenants=tenants, format=options.trace_format)
    workload = read_trace(options.trace, asked)
    return Scenario(cluster, faster(workload, factor) if factor else workload)


def checked_policy(scenario: Scenario, policy: str, option: str = "policy") -> str:
    """The policy's name; `NotFound` lists the known ones."""
    with options_named({"policy": option}):
        World(scenario.cluster, Workload("none", "", ()), policy, 0)
    return policy


def _cluster(options: HistoryOptions) -> ClusterSpec:
    """Engines cache prefixes; of a cluster file, those that it says."""
    name = options.cluster
    names = sorted({*CLUSTERS, *shipped_clusters()})
    if name not in names and not Path(name).is_file():
        known = ", ".join(names)
        raise NotFound(f"no cluster or file {name!r}; known: {known}", reason="UNKNOWN_CLUSTER", field="cluster")
    if name not in CLUSTERS:
        return load_cluster(name).spec
    if options.engine_profile not in PROFILES:
        raise usage("engine_profile", f"no engine profile {options.engine_profile!r}; known: {', '.join(PROFILES)}")
    return named_cluster(name, options.model, options.engine_profile, prefix_cache=True)


def _rate(text: str) -> float:
    try:
        return float(text or 0)
    except ValueError:
        raise usage("rate", f"{text!r} is neither workflows a second nor a factor such as x1.5") from None
