"""Changes of a recorded history and of the cluster it runs on, for questions of the kind "what if"."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import count
from typing import Final, NamedTuple

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.estimate.tables import known_gpus, load_table
from hexagent.core.instance.spec import FLIPPED, ClusterSpec, InstanceSpec, Role, TenantSpec
from hexagent.core.units import MILLI, ceil_div
from hexagent.sim.workloads.arrivals import milli
from hexagent.sim.workloads.model import Workload
from hexagent.sim.workloads.tenants import fanned_out, parse_tenants

INSTANCES_MAX: Final = 512
FACTOR_RANGE_MILLI: Final = (10, 100_000)
GRAMMAR: Final = "+N GPU ROLE, -N GPU ROLE, flip INSTANCE, tenant NAME:WEIGHTxFAN_OUT, rate xFACTOR"

_ROLES: Final = {role.name.lower(): role for role in Role}
_RESIZE: Final = re.compile(r"([+-])\s*(\d{1,3})\s+(\S+)\s+(\S+)")


class Scenario(NamedTuple):
    """Workflows and what they run on."""

    cluster: ClusterSpec
    workload: Workload


def changed(base: Scenario, text: str) -> Scenario:
    """`base` after the changes that `text` names, with commas between (GRAMMAR), one after the other.

    `InvalidArgument` or `NotFound`, field `change`, says what is wrong and which names are known.
    """
    scenario = base
    for word in text.split(","):
        scenario = _after(scenario, word.strip())
    _check_cluster(scenario.cluster, text)
    return scenario


def faster(workload: Workload, factor: str) -> Workload:
    """The workload with arrivals `factor` times as fast, `x1.5`; pauses within workflows stay."""
    times = milli(factor.removeprefix("x"), "rate", *FACTOR_RANGE_MILLI)
    scripts = [script._replace(arrival_us=script.arrival_us * MILLI // times) for script in workload.workflows]
    return workload._replace(workflows=tuple(scripts))


def _after(scenario: Scenario, term: str) -> Scenario:
    cluster, workload = scenario
    if match := _RESIZE.fullmatch(term):
        sign, number, gpu_type, role = match.groups()
        resize = _grown if sign == "+" else _shrunk
        kept = resize(cluster.instances, int(number), gpu_type, _role(role))
        return scenario._replace(cluster=cluster._replace(instances=tuple(sorted(kept))))
    verb, _, what = term.partition(" ")
    match verb:
        case "flip":
            return scenario._replace(cluster=_with_flipped(cluster, what.strip()))
        case "tenant":
            return _with_tenant(scenario, what.strip())
        case "rate":
            return scenario._replace(workload=faster(workload, what.strip()))
    raise _bad(f"{term!r} is none of {GRAMMAR}")


def _role(name: str) -> Role:
    if name not in _ROLES:
        raise NotFound(f"no role {name!r}; known: {', '.join(_ROLES)}", reason="UNKNOWN_ROLE", field="change")
    return _ROLES[name]


def _shrunk(instances: Iterable[InstanceSpec], number: int, gpu_type: str, role: Role) -> list[InstanceSpec]:
    """Without the last `number` of these instances by id."""
    kept = list(instances)
    found = [spec for spec in kept if (spec.gpu_type, spec.role) == (gpu_type, role)]
    if number > len(found):
        pools = Counter(f"{spec.gpu_type} {spec.role.name.lower()}" for spec in kept)
        there = ", ".join(f"{size} {pool}" for pool, size in pools.items())
        raise _bad(f"-{number} {gpu_type} {role.name.lower()}: the cluster has {there}")
    gone = found[len(found) - number :]
    return [spec for spec in kept if spec not in gone]


def _grown(instances: Iterable[InstanceSpec], number: int, gpu_type: str, role: Role) -> list[InstanceSpec]:
    """With `number` more that are like one of the GPU type, or else of the role, but for what the GPU's table says."""
    kept = list(instances)
    if gpu_type not in known_gpus():
        known = ", ".join(known_gpus())
        raise NotFound(f"no GPU type {gpu_type!r}; known: {known}", reason="UNKNOWN_GPU", field="change")
    if not kept:
        raise _bad(f"+{number} {gpu_type} {role.name.lower()}: no instance is left that it could be like")
    like = min(kept, key=lambda spec: (spec.gpu_type != gpu_type, spec.role is not role, spec.instance_id))
    if like.gpu_type != gpu_type:
        table = load_table(gpu_type, like.model, like.tp, like.precision)
        like = like._replace(gpu_type=gpu_type, kv_blocks=table.kv_tokens // like.block_tokens)
    taken = {spec.instance_id for spec in kept}
    names = (f"{role.name.lower()}-{gpu_type}-{n}" for n in count())
    free = (name for name in names if name not in taken)
    return kept + [like._replace(instance_id=next(free), role=role) for _ in range(number)]


def _with_flipped(cluster: ClusterSpec, instance_id: str) -> ClusterSpec:
    """The instance in the other role; it stays the same machine."""
    found = {spec.instance_id: spec for spec in cluster.instances}
    if instance_id not in found:
        known = ", ".join(found)
        raise NotFound(f"no instance {instance_id!r}; known: {known}", reason="UNKNOWN_INSTANCE", field="change")
    role = found[instance_id].role
    if role not in FLIPPED:
        raise _bad(f"flip {instance_id}: it does both phases")
    found[instance_id] = found[instance_id]._replace(role=FLIPPED[role])
    return cluster._replace(instances=tuple(found.values()))


def _with_tenant(scenario: Scenario, text: str) -> Scenario:
    """One more tenant, who sends what the history holds once more, each workflow midway to the next."""
    (tenant,) = parse_tenants(text)
    cluster, workload = scenario
    if not text or tenant.name in [known.name for known in cluster.tenants]:
        raise _bad(f"tenant {text!r}: give a name other than {', '.join(known.name for known in cluster.tenants)}")
    scripts = workload.workflows
    following = [*scripts[1:], scripts[-1]]
    its = [
        script._replace(
            workflow_id=f"{tenant.name}.{number}",
            tenant=tenant.name,
            arrival_us=ceil_div(script.arrival_us + after.arrival_us, 2),
        )
        for number, (script, after) in enumerate(zip(scripts, following, strict=True))
    ]
    more = fanned_out(workload._replace(workflows=tuple(its)), (tenant,)).workflows
    together = tuple(sorted((*scripts, *more), key=lambda script: script.arrival_us))
    tenants = tuple(sorted((*cluster.tenants, TenantSpec(tenant.name, tenant.weight))))
    return Scenario(cluster._replace(tenants=tenants), workload._replace(workflows=together))


def _check_cluster(cluster: ClusterSpec, text: str) -> None:
    for model in cluster.models:
        roles = {spec.role for spec in cluster.instances if spec.model == model}
        for phase in (Role.PREFILL, Role.DECODE):
            if not roles & {phase, Role.BOTH}:
                raise _bad(f"{text!r} leaves no {phase.name.lower()} instance of {model}")
    if len(cluster.instances) > INSTANCES_MAX:
        raise _bad(f"{text!r} makes {len(cluster.instances)} instances, more than {INSTANCES_MAX}")


def _bad(what: str) -> InvalidArgument:
    return InvalidArgument(what, reason="BAD_CHANGE", field="change")
