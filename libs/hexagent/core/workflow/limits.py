"""What one workflow, and the tracker as a whole, may hold."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, Role
from hexagent.core.units import US_PER_S


class Limits(NamedTuple):
    """Bounds on everything that clients make grow; each has a defined answer when it is hit."""

    nodes_per_reveal: int = 1_000  # InvalidArgument TOO_MANY_NODES
    nodes_per_workflow: int = 100_000  # ResourceExhausted TOO_MANY_NODES
    parents_per_node: int = 1_000  # InvalidArgument TOO_MANY_PARENTS
    segments_per_prompt: int = 4_096  # InvalidArgument TOO_MANY_SEGMENTS
    prompt_tokens: int = 16_777_216  # a segment or a prompt; InvalidArgument TOO_MANY_TOKENS
    max_tokens: int = 1_048_576  # InvalidArgument TOO_MANY_TOKENS
    payload_bytes_per_reveal: int = 196_608  # leaves an event of 256 KiB room; InvalidArgument PAYLOAD_TOO_LARGE
    metadata_entries: int = 64  # InvalidArgument METADATA_TOO_LARGE
    metadata_bytes: int = 16_384  # UTF-8 of keys and values; InvalidArgument METADATA_TOO_LARGE
    hinted_calls: int = 1_000_000  # InvalidArgument HINT_TOO_LARGE
    slo_scale_milli: int = 1_000_000  # InvalidArgument BAD_SLO_SCALE
    duration_us: int = 10 * 365 * 86_400 * US_PER_S  # of hints and timeouts; InvalidArgument HINT_TOO_LARGE
    tool_timeout_us: int = 3_600 * US_PER_S  # default and longest run of a tool; InvalidArgument BAD_TIMEOUT
    idle_expiry_us: int = 3_600 * US_PER_S  # a workflow nobody moves for so long is ABANDONED
    live_workflows: int = 100_000  # ResourceExhausted TOO_MANY_WORKFLOWS
    finished_workflows: int = 2_000  # remembered with their requests; the oldest is forgotten first
    requests_per_workflow: int = 100_000  # remembered request ids; the oldest is forgotten first
    reason_chars: int = 128  # InvalidArgument REASON_TOO_LONG
    message_chars: int = 4_096  # InvalidArgument REASON_TOO_LONG


class Catalog(NamedTuple):
    """What the cluster file names, as far as the tracker refuses by it."""

    tenants: tuple[str, ...]
    largest_kv_tokens: Mapping[str, int] = MappingProxyType({})  # by model: what its largest decode instance holds
    largest_prompt_tokens: Mapping[str, int] = MappingProxyType({})  # the same of prefill; absent = no less
    engines: Mapping[str, tuple[InstanceSpec, ...]] = MappingProxyType({})  # by model: of instances that are alike one
    workflows_max: Mapping[str, int] = MappingProxyType({})  # live at a time, by tenant; absent = no limit


def catalog_of(cluster: ClusterSpec, tenants: Iterable[str] = ()) -> Catalog:
    """Models and tenants of the cluster, and these tenants besides."""
    engines: dict[str, dict[InstanceSpec, None]] = {model: {} for model in cluster.models}
    for spec in cluster.instances:
        engines[spec.model][spec._replace(instance_id="", agent_id="", address="")] = None
    decode = {model: largest_kv_tokens(engines[model], Role.PREFILL) for model in engines}
    prefill = {model: largest_kv_tokens(engines[model], Role.DECODE) for model in engines}
    names = dict.fromkeys([*(tenant.name for tenant in cluster.tenants), *tenants])
    limits = {tenant.name: tenant.workflows_max for tenant in cluster.tenants if tenant.workflows_max}
    return Catalog(tuple(names), decode, prefill, {model: tuple(engines[model]) for model in engines}, limits)


def largest_kv_tokens(engines: Iterable[InstanceSpec], other: Role) -> int:
    """What the largest of them holds that has not only the `other` role; 0 if there is none."""
    return max([spec.kv_tokens for spec in engines if spec.role is not other], default=0)
