"""What instances report of themselves, and the heartbeats of their agents."""

from collections.abc import Sequence
from typing import NamedTuple

from hexagent.api.worker.v1 import telemetry_pb2
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import Incidents, SpeculationSample, StepSample, Telemetry, TransferSample
from hexagent.wire.cluster import instance_from_proto, instance_to_proto
from hexagent.wire.codec import parse, to_bytes


class DeviceSample(NamedTuple):
    """What a GPU's driver reports; None where it does not know."""

    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_mhz: int | None = None
    throttle_reasons: int | None = None  # the driver's bit mask


class FailedLink(NamedTuple):
    """A link over which no KV comes."""

    to_instance: str
    cause: str


class Links(NamedTuple):
    """How far a prefill instance's links to decode instances have been used ahead of calls."""

    warm: int
    cold: int
    failed: tuple[FailedLink, ...]
    slowest_us: int  # the longest first transfer of a warm one


class TelemetryReport(NamedTuple):
    """What the scheduler learns from, with what only people and tools read."""

    telemetry: Telemetry
    sequence: int = 0  # among the reports of its instance, from 1
    devices: tuple[DeviceSample, ...] = ()
    incidents: Incidents = Incidents()
    links: Links | None = None  # None: they need no warm-up
    sampled_at_us: int = 0  # model time at which the engine's last statistics came, 0 = never


class AgentAnnouncement(NamedTuple):
    """An agent's heartbeat."""

    agent_id: str
    address: str
    instances: tuple[InstanceSpec, ...]
    epoch_seen: int  # newest scheduler epoch, 0 = none
    at_us: int
    sequence: int = 0
    draining: bool = False
    down: tuple[str, ...] = ()  # instances whose engines do not run
    flipped: tuple[str, ...] = ()  # instances that do not have the role they are configured with


# --- reports ----------------------------------------------------------------------------------------------
def telemetry_to_proto(report: TelemetryReport) -> telemetry_pb2.InstanceTelemetry:
    telemetry = report.telemetry
    return telemetry_pb2.InstanceTelemetry(
        event_id=f"{telemetry.instance_id}:{telemetry.at_us}:{report.sequence}",
        sequence=report.sequence,
        occurred_at_us=telemetry.at_us,
        instance_id=telemetry.instance_id,
        load=load_to_proto(telemetry.load),
        steps=[_step_to_proto(step) for step in telemetry.steps],
        transfers=[_transfer_to_proto(transfer) for transfer in telemetry.transfers],
        reused_tokens=telemetry.reused_tokens,
        prefilled_tokens=telemetry.prefilled_tokens,
        generated_tokens=telemetry.generated_tokens,
        devices=[device_to_proto(device) for device in report.devices],
        incidents=incidents_to_proto(report.incidents),
        sampled_at_us=report.sampled_at_us,
        links=report.links and links_to_proto(report.links),
        speculation=telemetry.speculation and telemetry_pb2.SpeculationSample(**telemetry.speculation._asdict()),
    )


def telemetry_from_proto(message: telemetry_pb2.InstanceTelemetry) -> TelemetryReport:
    speculation = None
    if message.HasField("speculation"):
        sample = message.speculation
        speculation = SpeculationSample(sample.drafted_tokens, sample.accepted_tokens)
    return TelemetryReport(
        telemetry=Telemetry(
            instance_id=message.instance_id,
            at_us=message.occurred_at_us,
            load=load_from_proto(message.load),
            steps=tuple(_step_from_proto(step) for step in message.steps),
            transfers=tuple(_transfer_from_proto(transfer) for transfer in message.transfers),
            reused_tokens=message.reused_tokens,
            prefilled_tokens=message.prefilled_tokens,
            generated_tokens=message.generated_tokens,
            speculation=speculation,
        ),
        sequence=message.sequence,
        devices=tuple(device_from_proto(device) for device in message.devices),
        incidents=Incidents(*[getattr(message.incidents, name) for name in Incidents._fields]),
        sampled_at_us=message.sampled_at_us,
        links=links_from_proto(message.links) if message.HasField("links") else None,
    )


def telemetry_to_bytes(reports: Sequence[TelemetryReport]) -> bytes:
    """What one agent reports at once."""
    return to_bytes(telemetry_pb2.AgentTelemetry(instances=[telemetry_to_proto(report) for report in reports]))


def telemetry_from_bytes(data: bytes) -> tuple[TelemetryReport, ...]:
    message = parse(telemetry_pb2.AgentTelemetry, data)
    return tuple(telemetry_from_proto(report) for report in message.instances)


def load_to_proto(load: InstanceLoad) -> telemetry_pb2.InstanceLoad:
    return telemetry_pb2.InstanceLoad(
        queued=load.queued,
        queued_tokens=load.queued_tokens,
        oldest_queued_us=load.oldest_queued_us,
        prefilling=load.prefilling,
        pinned=load.pinned,
        waiting=load.waiting,
        decoding=load.decoding,
        transferring=load.transferring,
        kv_used_blocks=load.kv_used_blocks,
        kv_cached_blocks=load.kv_cached_blocks,
        kv_free_blocks=load.kv_free_blocks,
    )


def load_from_proto(message: telemetry_pb2.InstanceLoad) -> InstanceLoad:
    return InstanceLoad(
        queued=message.queued,
        queued_tokens=message.queued_tokens,
        oldest_queued_us=message.oldest_queued_us,
        prefilling=message.prefilling,
        pinned=message.pinned,
        waiting=message.waiting,
        decoding=message.decoding,
        transferring=message.transferring,
        kv_used_blocks=message.kv_used_blocks,
        kv_cached_blocks=message.kv_cached_blocks,
        kv_free_blocks=message.kv_free_blocks,
    )


def _step_to_proto(step: StepSample) -> telemetry_pb2.StepSample:
    return telemetry_pb2.StepSample(
        steps=step.steps,
        duration_us=step.duration_us,
        prefill_tokens=step.prefill_tokens,
        prefill_context=step.prefill_context,
        decode_batch=step.decode_batch,
        mean_context=step.mean_context,
    )


def _step_from_proto(message: telemetry_pb2.StepSample) -> StepSample:
    return StepSample(
        steps=message.steps,
        duration_us=message.duration_us,
        prefill_tokens=message.prefill_tokens,
        prefill_context=message.prefill_context,
        decode_batch=message.decode_batch,
        mean_context=message.mean_context,
    )


def _transfer_to_proto(transfer: TransferSample) -> telemetry_pb2.TransferSample:
    return telemetry_pb2.TransferSample(
        from_instance=transfer.from_instance,
        to_instance=transfer.to_instance,
        start_us=transfer.start_us,
        duration_us=transfer.duration_us,
        kv_bytes=transfer.kv_bytes,
        held_us=transfer.held_us,
    )


def _transfer_from_proto(message: telemetry_pb2.TransferSample) -> TransferSample:
    return TransferSample(
        from_instance=message.from_instance,
        to_instance=message.to_instance,
        start_us=message.start_us,
        duration_us=message.duration_us,
        kv_bytes=message.kv_bytes,
        held_us=message.held_us,
    )


def incidents_to_proto(incidents: Incidents) -> telemetry_pb2.Incidents:
    return telemetry_pb2.Incidents(**incidents._asdict())


def links_to_proto(links: Links) -> telemetry_pb2.Links:
    failed = [telemetry_pb2.FailedLink(**link._asdict()) for link in links.failed]
    return telemetry_pb2.Links(warm=links.warm, cold=links.cold, failed=failed, slowest_us=links.slowest_us)


def links_from_proto(message: telemetry_pb2.Links) -> Links:
    failed = tuple(FailedLink(link.to_instance, link.cause) for link in message.failed)
    return Links(message.warm, message.cold, failed, message.slowest_us)


def device_to_proto(device: DeviceSample) -> telemetry_pb2.DeviceSample:
    return telemetry_pb2.DeviceSample(**device._asdict())


def device_from_proto(message: telemetry_pb2.DeviceSample) -> DeviceSample:
    known = message.HasField
    return DeviceSample(
        utilization_percent=message.utilization_percent if known("utilization_percent") else None,
        memory_used_bytes=message.memory_used_bytes if known("memory_used_bytes") else None,
        memory_total_bytes=message.memory_total_bytes if known("memory_total_bytes") else None,
        power_watts=message.power_watts if known("power_watts") else None,
        temperature_celsius=message.temperature_celsius if known("temperature_celsius") else None,
        sm_clock_mhz=message.sm_clock_mhz if known("sm_clock_mhz") else None,
        throttle_reasons=message.throttle_reasons if known("throttle_reasons") else None,
    )


# --- heartbeats -------------------------------------------------------------------------------------------
def announcement_to_proto(announcement: AgentAnnouncement) -> telemetry_pb2.AgentAnnouncement:
    return telemetry_pb2.AgentAnnouncement(
        event_id=f"{announcement.agent_id}:{announcement.at_us}:{announcement.sequence}",
        sequence=announcement.sequence,
        occurred_at_us=announcement.at_us,
        agent_id=announcement.agent_id,
        address=announcement.address,
        instances=[instance_to_proto(instance) for instance in announcement.instances],
        epoch_seen=announcement.epoch_seen,
        draining=announcement.draining,
        down=announcement.down,
        flipped=announcement.flipped,
    )


def announcement_from_proto(message: telemetry_pb2.AgentAnnouncement) -> AgentAnnouncement:
    return AgentAnnouncement(
        agent_id=message.agent_id,
        address=message.address,
        instances=tuple(instance_from_proto(instance) for instance in message.instances),
        epoch_seen=message.epoch_seen,
        at_us=message.occurred_at_us,
        sequence=message.sequence,
        draining=message.draining,
        down=tuple(message.down),
        flipped=tuple(message.flipped),
    )


def announcement_to_bytes(announcement: AgentAnnouncement) -> bytes:
    return to_bytes(announcement_to_proto(announcement))


def announcement_from_bytes(data: bytes) -> AgentAnnouncement:
    return announcement_from_proto(parse(telemetry_pb2.AgentAnnouncement, data))
