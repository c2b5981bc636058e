"""Pools of a cluster file: their keys, and the instances and agents they stand for."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from hexagent.core.errors import HexagentError, InvalidArgument, NotFound
from hexagent.core.estimate.tables import load_table
from hexagent.core.estimate.variants import variant
from hexagent.core.ids import checked_id
from hexagent.core.instance.spec import FlipWay, InstanceSpec, LinkSpec, Lora, Role, RoleFlip, Speculation
from hexagent.core.units import PPM, US_PER_MS, US_PER_S

AgentGrouping = Literal["one", "role", "gpu", "pool", "instance"]

_ROLES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE, "both": Role.BOTH}
_PREFIXES: Final = {Role.PREFILL: "p", Role.DECODE: "d", Role.BOTH: "b"}
_NUMBER_MAX: Final = 511
_LORAS_MAX: Final = 256  # of an instance
_BYTES_PER_GB: Final = 1_000_000_000


class LinkTable(BaseModel):
    """An instance's network side: GB/s (10^9 bytes) and the set-up of one transfer in ms."""

    model_config = ConfigDict(extra="forbid")
    gb_s: float = Field(default=25.0, gt=0, le=10_000)
    setup_ms: float = Field(default=5.0, ge=0, le=10_000)


class SpeculationTable(BaseModel):
    """Speculative decoding of the instances of a pool; what its keys mean stands at `Speculation`."""

    model_config = ConfigDict(extra="forbid")
    method: Literal["eagle", "mtp", "ngram", "draft"]
    draft_tokens: int = Field(ge=1, le=16)
    acceptance: float = Field(ge=0, le=1)
    draft_cost: float = Field(default=0.03, ge=0, le=1)


class LoraTable(BaseModel):
    """An adapter of the instances of a pool."""

    model_config = ConfigDict(extra="forbid")
    name: str
    rank: int = Field(default=64, ge=1, le=512)
    directory: str = ""


class PoolTable(BaseModel):
    """Equal instances. What is left out comes from the engine's tables or the top of the file."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["prefill", "decode", "both"]
    gpu: str
    count: int = Field(default=1, ge=1, le=512)
    model: str
    tp: int = Field(default=1, ge=1, le=64)
    precision: str = "bf16"
    kv_precision: Literal["", "bf16", "fp8"] = ""  # "" = that of the weights
    name: str = ""  # of the instances, before their number; "" = role and GPU
    kv_blocks: int | None = Field(default=None, ge=1, le=2**31)
    block_tokens: int = Field(default=32, ge=1, le=1024)
    max_batch: int = Field(default=128, ge=1, le=4096)
    max_step_tokens: int = Field(default=8192, ge=1, le=2**20)
    link_gb_s: float | None = Field(default=None, gt=0, le=10_000)
    link_setup_ms: float | None = Field(default=None, ge=0, le=10_000)
    prefix_cache: bool | None = None
    speculation: SpeculationTable | None = None
    loras: list[LoraTable] = Field(default=[], max_length=_LORAS_MAX)
    max_loras: int | None = Field(default=None, ge=1, le=_LORAS_MAX)  # in the GPUs' memory at a time; None = all
    flip_s: float = Field(default=0.0, ge=0, le=86_400)  # model time in which an emulated engine changes its role


def build_instances(
    pools: list[PoolTable], link: LinkTable, profile: str, prefix_cache: bool, grouping: AgentGrouping, source: str
) -> tuple[InstanceSpec, ...]:
    """The instances of all pools, sorted by id, each with its agent; numbers run on over pools of one name."""
    numbers: dict[str, int] = {}
    instances: list[InstanceSpec] = []
    for index, pool in enumerate(pools):
        role = _ROLES[pool.role]
        kv_blocks = _kv_blocks(pool, index, source)
        name = _pool_name(pool, index, source)
        loras = _loras(pool, index, source)
        for _ in range(pool.count):
            number = numbers.get(name, 0)
            numbers[name] = number + 1
            instance_id = f"{name}-{number}"
            instances.append(
                InstanceSpec(
                    instance_id=instance_id,
                    gpu_type=pool.gpu,
                    tp=pool.tp,
                    role=role,
                    model=pool.model,
                    precision=pool.precision,
                    kv_precision=pool.kv_precision or pool.precision,
                    kv_blocks=kv_blocks,
                    block_tokens=pool.block_tokens,
                    max_batch=pool.max_batch,
                    max_step_tokens=pool.max_step_tokens,
                    link=_link(pool, link),
                    profile=profile,
                    prefix_cache=prefix_cache if pool.prefix_cache is None else pool.prefix_cache,
                    agent_id=_agent_id(grouping, pool, name, instance_id),
                    speculation=_speculation(pool.speculation),
                    loras=loras,
                    max_loras=min(pool.max_loras or len(loras), len(loras)),
                    flip=RoleFlip(FlipWay.RESTART, round(pool.flip_s * US_PER_S)) if pool.flip_s else None,
                )
            )
    return tuple(sorted(instances, key=lambda instance: instance.instance_id))


def agent_groups(instances: tuple[InstanceSpec, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """(agent id, its instance ids), both ascending."""
    groups: dict[str, list[str]] = {}
    for instance in instances:
        groups.setdefault(instance.agent_id, []).append(instance.instance_id)
    return [(agent_id, tuple(sorted(groups[agent_id]))) for agent_id in sorted(groups)]


def _agent_id(grouping: AgentGrouping, pool: PoolTable, name: str, instance_id: str) -> str:
    parts = {"one": "all", "role": pool.role, "gpu": pool.gpu, "pool": name, "instance": instance_id}
    return f"agent-{parts[grouping]}"


def _link(pool: PoolTable, link: LinkTable) -> LinkSpec:
    gb_s = link.gb_s if pool.link_gb_s is None else pool.link_gb_s
    setup_ms = link.setup_ms if pool.link_setup_ms is None else pool.link_setup_ms
    return LinkSpec(round(gb_s * _BYTES_PER_GB), round(setup_ms * US_PER_MS))


def _speculation(table: SpeculationTable | None) -> Speculation | None:
    if table is None:
        return None
    return Speculation(table.method, table.draft_tokens, round(table.acceptance * PPM), round(table.draft_cost * PPM))


def _loras(pool: PoolTable, index: int, source: str) -> tuple[Lora, ...]:
    found: dict[str, Lora] = {}
    for place, table in enumerate(pool.loras):
        key = f"pool[{index}].loras[{place}].name"
        try:
            checked_id(table.name, "name")
        except InvalidArgument as error:
            raise InvalidArgument(f"{source}: {key}: {error.message}", reason="BAD_ID", field=key) from None
        if table.name in found:
            text = f"{source}: {key}: {table.name!r} is named twice"
            raise InvalidArgument(text, reason="DUPLICATE_LORA", field=key)
        found[table.name] = Lora(table.name, table.rank, table.directory)
    return tuple(found[name] for name in sorted(found))


def _pool_name(pool: PoolTable, index: int, source: str) -> str:
    name = pool.name or f"{_PREFIXES[_ROLES[pool.role]]}-{pool.gpu}"
    try:
        checked_id(f"{name}-{_NUMBER_MAX}", "name")  # the longest id it can stand in
        return name
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{source}: pool[{index}].name: {error.message}", reason="BAD_ID", field=f"pool[{index}].name"
        ) from None


def _kv_blocks(pool: PoolTable, index: int, source: str) -> int:
    """As configured, else what fits beside the weights; also checks that there is such an engine at all."""
    try:
        table = load_table(pool.gpu, pool.model, pool.tp, pool.precision)
    except HexagentError as error:
        keys = {"gpu_type": "gpu", "model": "model", "tp": "tp", "precision": "precision"}
        key = f"pool[{index}].{keys.get(error.field, 'gpu')}"
        reason = error.reason if isinstance(error, NotFound) else "BAD_ENGINE"
        raise InvalidArgument(f"{source}: {key}: {error.message}", reason=reason, field=key) from error
    if pool.kv_precision:
        table = variant(table, pool.kv_precision, None)
    return pool.kv_blocks or max(1, table.kv_tokens // pool.block_tokens)
