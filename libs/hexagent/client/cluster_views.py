"""The cluster as its scheduler sees it, as plain values; times are model time in microseconds unless they say wall."""

from typing import NamedTuple

from hexagent.api.scheduler.v1 import scheduler_service_pb2
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.wire.cluster import instance_from_proto, role_from_proto
from hexagent.wire.telemetry import DeviceSample, Links, device_from_proto, links_from_proto, load_from_proto


class ReportedView(NamedTuple):
    """What an instance has reported; sums begin with the scheduler."""

    load: InstanceLoad
    silent_us: int  # wall time since the last report
    stale: bool
    reused_tokens: int
    prefilled_tokens: int
    generated_tokens: int
    steps: int
    steps_us: int
    devices: tuple[DeviceSample, ...]
    drafted_tokens: int  # by speculative decoding
    accepted_tokens: int
    sampled_at_us: int  # when the engine last gave statistics, 0 = never
    links: Links | None  # to decode instances; None: they need no warm-up


class InstanceView(NamedTuple):
    """An instance, and what the scheduler's ledger holds for it."""

    spec: InstanceSpec
    up: bool
    down_reason: str  # "" while it is up
    cordoned: bool
    wanted_role: Role | None  # that it gets once it holds nothing; None: the one that it has
    held: int  # attempts that are lost when it is
    reported: ReportedView | None  # None: nothing yet
    prefill_free_us: int  # predicted end of what was dispatched to it
    transfer_free_us: int  # predicted end of the transfers from and to it
    reserved_tokens: int
    capacity_tokens: int
    prefill_ppm: int  # learned time over the table's
    decode_ppm: int
    prefix_wrong_ppm: int | None  # None: its engine caches no prefixes
    prefix_alarm: bool


class TenantView(NamedTuple):
    """What a tenant waits for, and what it was charged in priced GPU-time."""

    tenant: str
    weight: int
    waiting: int
    charged_us: int


class ClusterView(NamedTuple):
    """One moment."""

    policy: str
    epoch: int
    at_us: int
    waiting: int  # calls
    snapshot_revision: int  # 0: tables alone
    snapshot_at_us: int  # 0: there was none
    events: int  # since the scheduler started
    decisions: int
    instances: tuple[InstanceView, ...]  # sorted by id
    tenants: tuple[TenantView, ...]


def cluster_view(message: scheduler_service_pb2.GetClusterResponse) -> ClusterView:
    """From the API's message."""
    return ClusterView(
        policy=message.policy,
        epoch=message.epoch,
        at_us=message.at_us,
        waiting=message.waiting,
        snapshot_revision=message.snapshot_revision,
        snapshot_at_us=message.snapshot_at_us,
        events=message.events,
        decisions=message.decisions,
        instances=tuple(sorted(map(instance_view, message.instances), key=lambda view: view.spec.instance_id)),
        tenants=tuple(TenantView(t.tenant, t.weight, t.waiting, t.charged_us) for t in message.tenants),
    )


def instance_view(message: scheduler_service_pb2.InstanceView) -> InstanceView:
    ledger = message.ledger
    return InstanceView(
        spec=instance_from_proto(message.instance),
        up=message.up,
        down_reason=message.down_reason,
        cordoned=message.cordoned,
        wanted_role=role_from_proto(message.wanted_role, "wanted_role") if message.wanted_role else None,
        held=message.held,
        reported=_reported(message) if message.HasField("reported") else None,
        prefill_free_us=ledger.prefill_free_us,
        transfer_free_us=ledger.transfer_free_us,
        reserved_tokens=ledger.reserved_tokens,
        capacity_tokens=ledger.capacity_tokens,
        prefill_ppm=ledger.prefill_ppm,
        decode_ppm=ledger.decode_ppm,
        prefix_wrong_ppm=ledger.prefix_wrong_ppm if ledger.HasField("prefix_wrong_ppm") else None,
        prefix_alarm=ledger.prefix_alarm,
    )


def _reported(message: scheduler_service_pb2.InstanceView) -> ReportedView:
    reported = message.reported
    return ReportedView(
        load=load_from_proto(message.load),
        silent_us=reported.silent_us,
        stale=reported.stale,
        reused_tokens=reported.reused_tokens,
        prefilled_tokens=reported.prefilled_tokens,
        generated_tokens=reported.generated_tokens,
        steps=reported.steps,
        steps_us=reported.steps_us,
        devices=tuple(map(device_from_proto, reported.devices)),
        drafted_tokens=reported.drafted_tokens,
        accepted_tokens=reported.accepted_tokens,
        sampled_at_us=reported.sampled_at_us,
        links=links_from_proto(reported.links) if reported.HasField("links") else None,
    )
