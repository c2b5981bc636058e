"""Instances as described, the cluster as configured, and the record every process reads both from."""

from typing import NamedTuple

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.worker.v1 import cluster_pb2, telemetry_pb2
from hexagent.core.instance.spec import (
    AdmissionSpec,
    ClusterSpec,
    FlipWay,
    InstanceSpec,
    LinkSpec,
    Lora,
    Role,
    RoleFlip,
    Speculation,
    TenantSpec,
    TextSpec,
)
from hexagent.wire.codec import enum_of, parse, to_bytes
from hexagent.wire.step_tables import step_table_from_proto, step_table_to_proto


class ClusterRecord(NamedTuple):
    """The stack's one record of itself."""

    name: str
    origin_wall_ns: int  # wall time at which model time is 0
    time_scale: float  # model seconds a wall second
    kv_byte_scale: float  # bytes that really move for one emulated KV byte
    cluster: ClusterSpec


def instance_to_proto(spec: InstanceSpec) -> telemetry_pb2.InstanceDescription:
    return telemetry_pb2.InstanceDescription(
        instance_id=spec.instance_id,
        gpu_type=spec.gpu_type,
        tp=spec.tp,
        role=role_to_proto(spec.role),
        model=spec.model,
        precision=spec.precision,
        kv_precision=spec.kv_precision,
        kv_blocks=spec.kv_blocks,
        block_tokens=spec.block_tokens,
        max_batch=spec.max_batch,
        max_step_tokens=spec.max_step_tokens,
        link=link_to_proto(spec.link),
        profile=spec.profile,
        prefix_cache=spec.prefix_cache,
        agent_id=spec.agent_id,
        address=spec.address,
        speculation=spec.speculation and telemetry_pb2.SpeculationDescription(**spec.speculation._asdict()),
        flip=spec.flip and flip_to_proto(spec.flip),
        loras=[telemetry_pb2.LoraDescription(**lora._asdict()) for lora in spec.loras],
        max_loras=spec.max_loras,
    )


def instance_from_proto(message: telemetry_pb2.InstanceDescription) -> InstanceSpec:
    return InstanceSpec(
        instance_id=message.instance_id,
        gpu_type=message.gpu_type,
        tp=message.tp,
        role=role_from_proto(message.role, "instance.role"),
        model=message.model,
        precision=message.precision,
        kv_precision=message.kv_precision,
        kv_blocks=message.kv_blocks,
        block_tokens=message.block_tokens,
        max_batch=message.max_batch,
        max_step_tokens=message.max_step_tokens,
        link=link_from_proto(message.link),
        profile=message.profile,
        prefix_cache=message.prefix_cache,
        agent_id=message.agent_id,
        address=message.address,
        speculation=speculation_from_proto(message.speculation) if message.HasField("speculation") else None,
        flip=flip_from_proto(message.flip) if message.HasField("flip") else None,
        loras=tuple(Lora(lora.name, lora.rank, lora.directory) for lora in message.loras),
        max_loras=message.max_loras,
    )


def role_to_proto(role: Role | None) -> enums_pb2.Role.ValueType:
    return enums_pb2.ROLE_UNSPECIFIED if role is None else enums_pb2.Role.ValueType(role)


def role_from_proto(role: enums_pb2.Role.ValueType, field: str) -> Role:
    """`InvalidArgument` (BAD_ENUM) names `field` where it is none that this version knows."""
    return enum_of(Role, role, field)


def flip_to_proto(flip: RoleFlip) -> telemetry_pb2.RoleFlipDescription:
    return telemetry_pb2.RoleFlipDescription(way=enums_pb2.FlipWay.ValueType(flip.way), cost_us=flip.cost_us)


def flip_from_proto(message: telemetry_pb2.RoleFlipDescription) -> RoleFlip:
    return RoleFlip(enum_of(FlipWay, message.way, "instance.flip.way"), message.cost_us)


def speculation_from_proto(message: telemetry_pb2.SpeculationDescription) -> Speculation:
    return Speculation(message.method, message.draft_tokens, message.acceptance_ppm, message.draft_cost_ppm)


def link_to_proto(link: LinkSpec) -> telemetry_pb2.LinkDescription:
    return telemetry_pb2.LinkDescription(bytes_per_s=link.bytes_per_s, setup_us=link.setup_us)


def link_from_proto(message: telemetry_pb2.LinkDescription) -> LinkSpec:
    return LinkSpec(message.bytes_per_s, message.setup_us)


def cluster_to_proto(cluster: ClusterSpec) -> cluster_pb2.ClusterSpec:
    least, most = cluster.hidden_factor_ppm
    return cluster_pb2.ClusterSpec(
        name=cluster.name,
        instances=[instance_to_proto(instance) for instance in cluster.instances],
        tenants=[cluster_pb2.TenantSpec(**tenant._asdict()) for tenant in cluster.tenants],
        seed=cluster.seed,
        noise_ppm=cluster.noise_ppm,
        hidden_factor_min_ppm=least,
        hidden_factor_max_ppm=most,
        texts=[cluster_pb2.ModelText(**text._asdict()) for text in cluster.texts],
        gpu_prices=[cluster_pb2.GpuPrice(gpu_type=gpu, price_milli=milli) for gpu, milli in cluster.gpu_prices_milli],
        admission=cluster_pb2.AdmissionSpec(**cluster.admission._asdict()),
        tables=[step_table_to_proto(table) for table in cluster.tables],
    )


def cluster_from_proto(message: cluster_pb2.ClusterSpec) -> ClusterSpec:
    return ClusterSpec(
        name=message.name,
        instances=tuple(instance_from_proto(instance) for instance in message.instances),
        tenants=tuple(tenant_from_proto(tenant) for tenant in message.tenants),
        seed=message.seed,
        noise_ppm=message.noise_ppm,
        hidden_factor_ppm=(message.hidden_factor_min_ppm, message.hidden_factor_max_ppm),
        texts=tuple(TextSpec(text.model, text.directory, text.tools, text.reasoning) for text in message.texts),
        gpu_prices_milli=tuple((price.gpu_type, price.price_milli) for price in message.gpu_prices),
        admission=admission_from_proto(message.admission) if message.HasField("admission") else AdmissionSpec(),
        tables=tuple(step_table_from_proto(table) for table in message.tables),
    )


def tenant_from_proto(message: cluster_pb2.TenantSpec) -> TenantSpec:
    return TenantSpec(
        message.name,
        message.weight,
        message.workflows_max,
        message.queued_tokens_max,
        message.quota_gpu_us,
        message.quota_window_us,
    )


def admission_from_proto(message: cluster_pb2.AdmissionSpec) -> AdmissionSpec:
    return AdmissionSpec(message.queued_calls_max, message.queued_kv_milli, message.refuse_late)


def cluster_record_to_bytes(record: ClusterRecord) -> bytes:
    return to_bytes(
        cluster_pb2.ClusterRecord(
            name=record.name,
            origin_wall_ns=record.origin_wall_ns,
            time_scale=record.time_scale,
            kv_byte_scale=record.kv_byte_scale,
            cluster=cluster_to_proto(record.cluster),
        )
    )


def cluster_record_from_bytes(data: bytes) -> ClusterRecord:
    message = parse(cluster_pb2.ClusterRecord, data)
    return ClusterRecord(
        message.name,
        message.origin_wall_ns,
        message.time_scale,
        message.kv_byte_scale,
        cluster_from_proto(message.cluster),
    )
