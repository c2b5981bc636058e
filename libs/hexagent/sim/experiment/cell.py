"""A cell of an experiment: everything that determines its runs but policy and seed."""

from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.estimate.tables import model_figures
from hexagent.core.instance.needs import ANYTHING
from hexagent.core.instance.spec import PROFILES, ClusterSpec, FlipWay, LinkSpec, RoleFlip, TenantSpec
from hexagent.core.policy.profile import Profile, parse_profile
from hexagent.core.units import MILLI, PPM, US_PER_S, ceil_div
from hexagent.sim.clusters import CLUSTERS, LINK, named_cluster
from hexagent.sim.conditions import NO_HINTS, Conditions
from hexagent.sim.experiment.load import at_rate, capacity
from hexagent.sim.workloads.arrivals import parse_arrivals
from hexagent.sim.workloads.generators import GENERATORS, generate
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.options import SIGMA_MAX_MILLI, WORKFLOWS_MAX, Options
from hexagent.sim.workloads.targets import aimed, parse_targets
from hexagent.sim.workloads.tenants import fanned_out, parse_tenants
from hexagent.sim.workloads.trace import TraceOptions, read_trace

WORLDS: Final = {"policy-only": False, "full": True}  # whether engines cache prefixes
HARDWARE: Final = {  # true step times over the tables': prefill, decode, in ppm
    "tables": (PPM, PPM),
    "slower-stack": (1_400_000, 2_000_000),
}
LENGTHS: Final = ("learned", "means", "true")  # what schedulers are told of output lengths
LOAD_RANGE: Final = (0.01, 10.0)
NOISE_RANGE: Final = (0.0, 2.0)  # of hints as well
LINK_RANGE: Final = (0.1, 1_000.0)  # GB/s
TOOLS_RANGE: Final = (0.0, 100.0)
SPREAD_RANGE: Final = (0.001, SIGMA_MAX_MILLI / MILLI)
FLIP_RANGE: Final = (0.0, 86_400.0)  # seconds
DURATION_RANGE: Final = (1.0, 86_400.0)  # seconds
WARM_UP: Final = 0.1  # share of `duration_s` whose arrivals are load but are not judged


class Cell(NamedTuple):
    """Defaults are the paper's burst: the workload's own size and rate, estimates that learn, links of 25 GB/s."""

    model: str
    cluster: str
    workload: str  # a generator's name, or the trace's
    world: str = "policy-only"  # a key of WORLDS
    engine_profile: str = "trtllm-1.2.1"
    load: float = 0.0  # of the bottleneck phase, see `load.capacity`; 0 = the workload's own arrival rate
    arrivals: str = "fixed"
    duration_s: float = 0.0  # arrivals go on for so long, the first WARM_UP of it is not judged; 0 = the own number
    workflows: int = 0  # 0 = the workload's own number
    noise: float = 0.0  # log error of estimates
    link_gb_per_s: float = LINK.bytes_per_s / 1e9
    hardware: str = "tables"  # a key of HARDWARE
    tp: int = 0  # GPUs of an instance; 0 = what the model is served with by default
    tools: float = 1.0  # times the workload's tool times
    spread: float = -1.0  # log standard deviation of calls a workflow; -1 = the workload's own
    hints: float = -1.0  # log error of the horizons that clients hint; -1 = they hint nothing
    lengths: str = "learned"  # one of LENGTHS
    flip_s: float = -1.0  # that a change of role takes, 0 = none at once; -1 = engines cannot
    profile: str = ""  # TOML with numbers of policies that are not the default ones
    trace: str = ""  # file; "" = generated
    tenants: str = ""  # as `parse_tenants` reads them; workflows are theirs in equal parts
    models: str = ""  # of calls in equal parts, as `parse_targets` reads them; "" = all of `model`

    @property
    def warm_up_us(self) -> int:
        return round(self.duration_s * WARM_UP * US_PER_S)


def check_cell(cell: Cell) -> None:
    """`NotFound` lists the known names, `InvalidArgument` names the limit; `field` is the cell's."""
    model_figures(cell.model)
    _check_known("cluster", cell.cluster, CLUSTERS)
    _check_known("world", cell.world, WORLDS)
    _check_known("engine_profile", cell.engine_profile, PROFILES)
    _check_known("hardware", cell.hardware, HARDWARE)
    _check_known("lengths", cell.lengths, LENGTHS)
    if not cell.trace:
        _check_known("workload", cell.workload, GENERATORS)
    parse_arrivals(cell.arrivals)
    if cell.load:
        _check_range("load", cell.load, LOAD_RANGE)
    if cell.duration_s:
        _check_range("duration_s", cell.duration_s, DURATION_RANGE)
        if cell.trace or cell.workflows:
            raise _bad("duration_s", "needs a generated workload, and makes as many workflows as it takes")
    _check_range("noise", cell.noise, NOISE_RANGE)
    _check_range("link_gb_per_s", cell.link_gb_per_s, LINK_RANGE)
    _check_range("tools", cell.tools, TOOLS_RANGE)
    if cell.spread != Cell._field_defaults["spread"]:
        _check_range("spread", cell.spread, SPREAD_RANGE)
        if cell.trace:
            raise _bad("spread", "needs a generated workload")
    if cell.hints != Cell._field_defaults["hints"]:
        _check_range("hints", cell.hints, NOISE_RANGE)
    if cell.flip_s != Cell._field_defaults["flip_s"]:
        _check_range("flip_s", cell.flip_s, FLIP_RANGE)
    parse_tenants(cell.tenants)
    _check_models(cell)
    profile_of(cell)
    cluster_of(cell)
    if cell.trace:
        read_trace(Path(cell.trace), _trace_options(cell, 0)._replace(limit=1))


def cluster_of(cell: Cell) -> ClusterSpec:
    """The cell's cluster, with as many instances again for each further model."""
    link = LinkSpec(round(cell.link_gb_per_s * 1e9), LINK.setup_us)
    models = list(dict.fromkeys(target.model for target in parse_targets(cell.models))) or [cell.model]
    first, *others = [
        named_cluster(cell.cluster, model, cell.engine_profile, WORLDS[cell.world], link, cell.tp) for model in models
    ]
    more = [
        spec._replace(instance_id=f"{spec.instance_id}-{spec.model}") for other in others for spec in other.instances
    ]
    tenants = tuple([TenantSpec(tenant.name, tenant.weight) for tenant in parse_tenants(cell.tenants)])
    instances = [spec._replace(flip=_flip_of(cell)) for spec in (*first.instances, *more)]
    return first._replace(instances=tuple(sorted(instances)), tenants=tenants)


def _flip_of(cell: Cell) -> RoleFlip | None:
    if cell.flip_s < 0:
        return None
    return RoleFlip(FlipWay.RESTART if cell.flip_s else FlipWay.MIX, round(cell.flip_s * US_PER_S))


def _check_models(cell: Cell) -> None:
    """Instances of named clusters serve bf16 weights, without adapters."""
    for target in parse_targets(cell.models):
        model_figures(target.model)
        if target.needs != ANYTHING:
            raise _bad("models", "names of models alone: a named cluster serves no adapters, and one precision")


def conditions_of(cell: Cell) -> Conditions:
    hint_noise_ppm = NO_HINTS if cell.hints < 0 else round(cell.hints * PPM)
    noise_ppm = round(cell.noise * PPM)
    return Conditions(
        *HARDWARE[cell.hardware],
        estimate_noise_ppm=noise_ppm,
        true_lengths=cell.lengths == "true",
        mean_lengths=cell.lengths == "means",
        hint_noise_ppm=hint_noise_ppm,
    )


def profile_of(cell: Cell) -> Profile:
    return parse_profile(cell.profile, "profile")


def workload_of(cell: Cell, seed: int) -> Workload:
    """The cell's workflows with their arrivals: the same for every policy."""
    workload = _arriving(cell, seed)
    if cell.tools == 1.0:
        return workload
    return workload._replace(
        workflows=tuple(
            [
                w._replace(items=tuple([i._replace(tool_us=round(i.tool_us * cell.tools)) for i in w.items]))
                for w in workload.workflows
            ]
        )
    )


def rate_per_s(cell: Cell, seed: int) -> float:
    """Workflows a second that arrive in the mean under the cell's load."""
    return _rate_milli(cell, _arriving(cell._replace(load=0.0, duration_s=0.0), seed)) / MILLI


def _arriving(cell: Cell, seed: int) -> Workload:
    tenants, targets = parse_tenants(cell.tenants), parse_targets(cell.models)
    if cell.trace:
        workload = aimed(fanned_out(read_trace(Path(cell.trace), _trace_options(cell, seed)), tenants), targets)
        return at_rate(workload, _rate_milli(cell, workload), cell.arrivals, seed) if cell.load else workload
    sigma_milli = round(max(cell.spread, 0.0) * MILLI)
    generated = Options(
        workflows=cell.workflows,
        seed=seed,
        arrivals=cell.arrivals,
        tenants=tuple([tenant.name for tenant in tenants]),
        calls_sigma_milli=sigma_milli,
    )
    workload = aimed(fanned_out(generate(cell.workload, generated), tenants), targets)
    if not cell.load and not cell.duration_s:
        return workload
    rate_milli = _rate_milli(cell, workload)
    if cell.duration_s:
        count = ceil_div(round(cell.duration_s * rate_milli), MILLI)
        if count > WORKFLOWS_MAX:
            raise _bad("duration_s", f"asks for {count} workflows, more than {WORKFLOWS_MAX}")
        workload = aimed(fanned_out(generate(cell.workload, generated._replace(workflows=count)), tenants), targets)
    arriving = at_rate(workload, rate_milli, cell.arrivals, seed)
    if arriving.workflows[-1].arrival_us < cell.warm_up_us:
        raise _bad("duration_s", "is so short that no workflow arrives after the warm-up")
    return arriving


def _trace_options(cell: Cell, seed: int) -> TraceOptions:
    """Under a load arrivals are drawn for its rate once it is known."""
    arrivals = TraceOptions().arrivals if cell.load else cell.arrivals
    names = tuple([tenant.name for tenant in parse_tenants(cell.tenants)])
    return TraceOptions(limit=cell.workflows, arrivals=arrivals, seed=seed, tenants=names)


def _rate_milli(cell: Cell, workload: Workload) -> int:
    if not cell.load:
        return GENERATORS[cell.workload].rate_per_s * MILLI
    return max(1, round(cell.load * capacity(workload, cluster_of(cell)).workflows_per_s * MILLI))


def _check_known(field: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        known = ", ".join(sorted(names))
        what = field.replace("_", " ")
        raise NotFound(f"no {what} {name!r}; known: {known}", reason=f"UNKNOWN_{field.upper()}", field=field)


def _check_range(field: str, value: float, limits: tuple[float, float]) -> None:
    low, high = limits
    if not low <= value <= high:  # also refuses what is not a number
        raise _bad(field, f"{value:g} is not between {low:g} and {high:g}")


def _bad(field: str, what: str) -> InvalidArgument:
    return InvalidArgument(what, reason="BAD_OPTION", field=field)
