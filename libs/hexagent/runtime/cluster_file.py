"""Cluster files: TOML in, a checked cluster out.

A file describes pools of equal instances; ids, agents and everything an engine's tables know are filled in. Every
error is an InvalidArgument that names the file, the key and what is allowed there.
"""

import math
import tomllib
from collections.abc import Set
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import checked_id
from hexagent.core.instance.needs import Needs, served
from hexagent.core.instance.spec import PROFILES, AdmissionSpec, ClusterSpec, InstanceSpec, TenantSpec, TextSpec
from hexagent.core.units import MILLI, PPM, US_PER_S
from hexagent.runtime.clock import MAX_TIME_SCALE
from hexagent.runtime.cluster_pools import (
    AgentGrouping,
    LinkTable,
    LoraTable,
    PoolTable,
    SpeculationTable,
    agent_groups,
    build_instances,
)
from hexagent.runtime.measured_files import cluster_tables
from hexagent.wire.cluster import ClusterRecord

INSTANCES_MAX: Final = 512
TENANTS_MAX: Final = 1_000
TABLES_MAX: Final = 64
FILE_BYTES_MAX: Final = 1024 * 1024
PRICE_MAX: Final = 1_000
SECONDS_MAX: Final = 10 * 365 * 86_400
DEFAULT_TENANT: Final = TenantSpec("default", 1)


class AgentSpec(NamedTuple):
    """One agent process and the instances it hosts."""

    agent_id: str
    instance_ids: tuple[str, ...]


class ClusterConfig(NamedTuple):
    """A cluster file, read and checked."""

    spec: ClusterSpec
    agents: tuple[AgentSpec, ...]  # sorted by id
    policy: str  # name of the scheduling policy
    time_scale: float  # model seconds a wall second
    kv_byte_scale: float  # bytes that really move for one emulated KV byte: 1 / kv_byte_divisor
    engine_profile: str

    def record(self, origin_wall_ns: int) -> ClusterRecord:
        """What the stack publishes of itself; `origin_wall_ns` is the wall time at which model time is 0."""
        return ClusterRecord(self.spec.name, origin_wall_ns, self.time_scale, self.kv_byte_scale, self.spec)


class _TenantTable(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    weight: int = Field(default=1, ge=1, le=1_000_000)
    workflows_max: int | None = Field(default=None, ge=1, le=1_000_000)
    queued_tokens_max: int | None = Field(default=None, ge=1, le=2**50)
    quota_gpu_s: float | None = Field(default=None, ge=0.001, le=SECONDS_MAX)
    quota_window_s: float = Field(default=3_600, ge=1, le=SECONDS_MAX)


class _AdmissionTable(BaseModel):
    """When calls are refused for the load there is; what is left out refuses nothing but an overfull memory."""

    model_config = ConfigDict(extra="forbid")
    queued_calls_max: int = Field(default=AdmissionSpec().queued_calls_max, ge=1, le=10_000_000)
    queued_kv_max: float | None = Field(default=None, ge=0.001, le=1_000_000)  # times what decode instances hold
    refuse_late: bool = False


class _ModelTable(BaseModel):
    """Text of a model of the pools."""

    model_config = ConfigDict(extra="forbid")
    name: str
    directory: str = ""
    tools: Literal["", "hermes", "llama3-json"] = ""
    reasoning: Literal["", "think", "think-open"] = ""


class _ClusterTable(BaseModel):
    """The top level of a cluster file."""

    model_config = ConfigDict(extra="forbid")

    name: str
    seed: int = Field(default=1, ge=0, le=2**63 - 1)
    time_scale: float = Field(default=1.0, gt=0, le=MAX_TIME_SCALE)
    kv_byte_divisor: int = Field(default=4096, ge=1, le=2**30)
    policy: str = "hexagent-plus"
    engine_profile: str = "trtllm-1.2.1"
    prefix_cache: bool = True
    noise: float = Field(default=0.07, ge=0, le=1)
    hidden_factor: tuple[float, float] = (0.8, 1.3)
    agents: AgentGrouping = "role"
    link: LinkTable = LinkTable()
    tables: list[str] = Field(default=[], max_length=TABLES_MAX)  # files of measured step times, from the file's folder
    tenant: list[_TenantTable] = Field(default=[], max_length=TENANTS_MAX)
    model: list[_ModelTable] = Field(default=[], max_length=INSTANCES_MAX)
    gpu_price: dict[str, Annotated[float, Field(ge=0.001, le=PRICE_MAX)]] = {}  # of a GPU's time, by type
    admission: _AdmissionTable = _AdmissionTable()
    pool: list[PoolTable] = Field(min_length=1, max_length=INSTANCES_MAX)


def shipped_clusters() -> tuple[str, ...]:
    """Names of the cluster files that come with the package, ascending."""
    folder = files("hexagent.runtime") / "clusters"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def load_cluster(name_or_path: str | Path) -> ClusterConfig:
    """Read a cluster file by path, or a shipped one by name (`demo`).

    InvalidArgument: NO_CLUSTER_FILE, BAD_TOML, or what `parse_cluster` raises.
    """
    path = Path(name_or_path)
    shipped = files("hexagent.runtime") / "clusters" / f"{name_or_path}.toml"
    try:
        if str(name_or_path) in shipped_clusters() and not path.is_file():
            return parse_cluster(shipped.read_text(encoding="utf-8"), f"{name_or_path}.toml")
        if path.stat().st_size > FILE_BYTES_MAX:
            raise _error(str(path), "", f"has more than {FILE_BYTES_MAX} bytes", "CLUSTER_FILE_TOO_LARGE")
        return parse_cluster(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(shipped_clusters())
        raise InvalidArgument(
            f"cannot read the cluster file {name_or_path}: {error}; shipped ones: {known}",
            reason="NO_CLUSTER_FILE",
            field="cluster",
        ) from error


def parse_cluster(text: str, source: str) -> ClusterConfig:
    """A checked cluster from TOML; `source` names it in errors.

    InvalidArgument: BAD_TOML, BAD_CLUSTER (unknown key, wrong type, out of range), UNKNOWN_GPU, UNKNOWN_MODEL,
    UNKNOWN_PROFILE, BAD_ENGINE (no such engine: tensor parallelism, precision, memory), NO_PREFILL_INSTANCE,
    NO_DECODE_INSTANCE, DUPLICATE_TENANT, DUPLICATE_MODEL, DUPLICATE_LORA, LORA_NOT_SERVED,
    TOO_MANY_INSTANCES, BAD_ID, or what `cluster_tables` raises.
    """
    try:
        table = _ClusterTable.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{source}: not TOML: {error}", reason="BAD_TOML", field="cluster") from error
    except pydantic.ValidationError as error:
        raise _bad_cluster(error, source) from None
    _check_id(table.name, source, "name")
    _check_id(table.policy, source, "policy")
    if table.engine_profile not in PROFILES:
        known = ", ".join(sorted(PROFILES))
        raise _error(source, "engine_profile", f"unknown {table.engine_profile!r}; known: {known}", "UNKNOWN_PROFILE")
    count = sum(pool.count for pool in table.pool)
    if count > INSTANCES_MAX:
        raise _error(source, "pool", f"{count} instances; the most is {INSTANCES_MAX}", "TOO_MANY_INSTANCES")
    instances = build_instances(table.pool, table.link, table.engine_profile, table.prefix_cache, table.agents, source)
    _check_roles(instances, source)
    spec = ClusterSpec(
        name=table.name,
        instances=instances,
        tenants=_tenants(table.tenant, source),
        seed=table.seed,
        noise_ppm=round(table.noise * PPM),
        hidden_factor_ppm=_hidden_factor_ppm(table.hidden_factor, source),
        texts=_texts(table.model, {instance.model for instance in instances}, source),
        gpu_prices_milli=_gpu_prices_milli(table, instances, source),
        admission=_admission(table.admission),
        tables=cluster_tables(table.tables, instances, source),
    )
    agents = tuple(AgentSpec(agent_id, ids) for agent_id, ids in agent_groups(instances))
    return ClusterConfig(spec, agents, table.policy, table.time_scale, 1 / table.kv_byte_divisor, table.engine_profile)


def _tenants(tables: list[_TenantTable], source: str) -> tuple[TenantSpec, ...]:
    tenants: dict[str, TenantSpec] = {}
    for index, table in enumerate(tables):
        _check_id(table.name, source, f"tenant[{index}].name")
        if table.name in tenants:
            raise _error(source, f"tenant[{index}].name", f"{table.name!r} is named twice", "DUPLICATE_TENANT")
        tenants[table.name] = TenantSpec(
            table.name,
            table.weight,
            table.workflows_max or 0,
            table.queued_tokens_max or 0,
            round((table.quota_gpu_s or 0) * US_PER_S),
            round(table.quota_window_s * US_PER_S) if table.quota_gpu_s else 0,
        )
    return tuple(tenants[name] for name in sorted(tenants)) or (DEFAULT_TENANT,)


def _texts(tables: list[_ModelTable], models: Set[str], source: str) -> tuple[TextSpec, ...]:
    texts: dict[str, TextSpec] = {}
    for index, table in enumerate(tables):
        if table.name not in models:
            raise _error(source, f"model[{index}].name", f"no pool runs {table.name!r}", "UNKNOWN_MODEL")
        if table.name in texts:
            raise _error(source, f"model[{index}].name", f"{table.name!r} is named twice", "DUPLICATE_MODEL")
        texts[table.name] = TextSpec(table.name, table.directory, table.tools, table.reasoning)
    return tuple(texts[name] for name in sorted(texts))


def _gpu_prices_milli(
    table: _ClusterTable, instances: tuple[InstanceSpec, ...], source: str
) -> tuple[tuple[str, int], ...]:
    known = sorted({instance.gpu_type for instance in instances})
    for gpu in table.gpu_price:
        if gpu not in known:
            raise _error(
                source, f"gpu_price.{gpu}", f"no instance has it; the cluster has {', '.join(known)}", "UNKNOWN_GPU"
            )
    return tuple((gpu, round(price * MILLI)) for gpu, price in sorted(table.gpu_price.items()))


def _admission(table: _AdmissionTable) -> AdmissionSpec:
    return AdmissionSpec(table.queued_calls_max, round((table.queued_kv_max or 0) * MILLI), table.refuse_late)


def _hidden_factor_ppm(factors: tuple[float, float], source: str) -> tuple[int, int]:
    low, high = factors
    if not (0.1 <= low <= high <= 10 and math.isfinite(high)):
        raise _error(source, "hidden_factor", f"[{low:g}, {high:g}] is not a range within 0.1 to 10", "BAD_CLUSTER")
    return round(low * PPM), round(high * PPM)


def _check_roles(instances: tuple[InstanceSpec, ...], source: str) -> None:
    """Each model and adapter can be prefilled and decoded, on instances whose KV fits together."""
    for model in sorted({instance.model for instance in instances}):
        serving = [instance for instance in instances if instance.model == model]
        prefill = {instance.kv_precision for instance in serving if instance.role.name in ("PREFILL", "BOTH")}
        decode = {instance.kv_precision for instance in serving if instance.role.name in ("DECODE", "BOTH")}
        if not prefill:
            raise _error(
                source, "pool", f"model {model} has no instance with role prefill or both", "NO_PREFILL_INSTANCE"
            )
        if not decode:
            raise _error(
                source, "pool", f"model {model} has no instance with role decode or both", "NO_DECODE_INSTANCE"
            )
        if unmatched := sorted(prefill ^ decode):
            raise _error(
                source,
                "pool.kv_precision",
                f"KV of precision {', '.join(unmatched)} of model {model} cannot move: no instance on the other side"
                " holds it",
                "BAD_ENGINE",
            )
        blocks = sorted({instance.block_tokens for instance in serving if instance.role.name != "BOTH"})
        if len(blocks) > 1:
            sizes = ", ".join(map(str, blocks))
            text = f"KV of model {model} cannot move between blocks of {sizes} tokens: give all its instances one size"
            raise _error(source, "pool.block_tokens", text, "BAD_ENGINE")
        for name in sorted({lora.name for instance in serving for lora in instance.loras}):
            if not served(serving, Needs(name)):
                text = f"adapter {name} of model {model} is not served by instances for both phases"
                raise _error(source, "pool.loras", text, "LORA_NOT_SERVED")


def _bad_cluster(error: pydantic.ValidationError, source: str) -> InvalidArgument:
    """The first problems, each with its key path; an unknown key lists the known ones."""
    problems: list[str] = []
    first = ""
    for item in error.errors(include_url=False)[:5]:
        path = _key_path(item["loc"])
        first = first or path
        if item["type"] == "extra_forbidden":
            known = ", ".join(sorted(_table_at(item["loc"][:-1]).model_fields))
            problems.append(f"{path}: unknown key; known: {known}")
        elif item["type"] == "missing":
            problems.append(f"{path}: required")
        else:
            problems.append(f"{path}: {item['msg']}; got {str(item['input'])[:60]!r}")
    return InvalidArgument(f"{source}: " + "; ".join(problems), reason="BAD_CLUSTER", field=first)


def _key_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _table_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    tables: dict[Any, type[BaseModel]] = {
        "pool": PoolTable,
        "tenant": _TenantTable,
        "model": _ModelTable,
        "link": LinkTable,
        "admission": _AdmissionTable,
        "speculation": SpeculationTable,
        "loras": LoraTable,
    }
    names = [part for part in location if isinstance(part, str)]
    return tables.get(names[-1], _ClusterTable) if names else _ClusterTable


def _check_id(value: str, source: str, key: str) -> None:
    try:
        checked_id(value, key)
    except InvalidArgument as error:
        raise _error(source, key, error.message, "BAD_ID") from None


def _error(source: str, key: str, text: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{source}: {key}: {text}" if key else f"{source} {text}", reason=reason, field=key)
