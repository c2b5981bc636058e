"""Decision records."""

from collections.abc import Sequence
from typing import NamedTuple

from hexagent.api.common.v1 import enums_pb2
from hexagent.api.scheduler.v1 import records_pb2
from hexagent.core.scheduling.record import Candidate, DecisionKind, DecisionRecord
from hexagent.core.scheduling.shadows import ShadowChoice
from hexagent.wire.codec import enum_of, parse, ticket_from_proto, ticket_to_proto, to_bytes


class DecisionBatch(NamedTuple):
    """Decisions of one scheduler, published together."""

    scheduler_id: str
    epoch: int
    records: tuple[DecisionRecord, ...]


def record_to_proto(record: DecisionRecord) -> records_pb2.DecisionRecord:
    return records_pb2.DecisionRecord(
        sequence=record.sequence,
        at_us=record.at_us,
        kind=enums_pb2.DecisionKind.ValueType(record.kind),
        policy=record.policy,
        ticket=ticket_to_proto(record.ticket),
        chosen=candidate_to_proto(record.chosen),
        others=[candidate_to_proto(other) for other in record.others],
        key=record.key,
        position=record.position,
        waiting=record.waiting,
        age_us=record.age_us,
        horizon_us=record.horizon_us,
        prompt_tokens=record.prompt_tokens,
        predicted_output_tokens=record.predicted_output_tokens,
        reserve_output_tokens=record.reserve_output_tokens,
        snapshot_revision=record.snapshot_revision,
        reason=record.reason,
    )


def record_from_proto(message: records_pb2.DecisionRecord) -> DecisionRecord:
    return DecisionRecord(
        sequence=message.sequence,
        at_us=message.at_us,
        kind=enum_of(DecisionKind, message.kind, "record.kind"),
        policy=message.policy,
        ticket=ticket_from_proto(message.ticket),
        chosen=candidate_from_proto(message.chosen),
        others=tuple(candidate_from_proto(other) for other in message.others),
        key=tuple(message.key),
        position=message.position,
        waiting=message.waiting,
        age_us=message.age_us,
        horizon_us=message.horizon_us,
        prompt_tokens=message.prompt_tokens,
        predicted_output_tokens=message.predicted_output_tokens,
        reserve_output_tokens=message.reserve_output_tokens,
        snapshot_revision=message.snapshot_revision,
        reason=message.reason,
    )


def shadow_to_proto(choice: ShadowChoice) -> records_pb2.ShadowChoice:
    return records_pb2.ShadowChoice(**choice._asdict())


def shadow_from_proto(message: records_pb2.ShadowChoice) -> ShadowChoice:
    return ShadowChoice(
        policy=message.policy,
        at_us=message.at_us,
        made=message.made,
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
    )


def candidate_to_proto(candidate: Candidate) -> records_pb2.Candidate:
    return records_pb2.Candidate(
        prefill_instance=candidate.prefill_instance,
        decode_instance=candidate.decode_instance,
        prefill_start_us=candidate.prefill_start_us,
        prefill_end_us=candidate.prefill_end_us,
        transfer_end_us=candidate.transfer_end_us,
        finish_us=candidate.finish_us,
    )


def candidate_from_proto(message: records_pb2.Candidate) -> Candidate:
    return Candidate(
        prefill_instance=message.prefill_instance,
        decode_instance=message.decode_instance,
        prefill_start_us=message.prefill_start_us,
        prefill_end_us=message.prefill_end_us,
        transfer_end_us=message.transfer_end_us,
        finish_us=message.finish_us,
    )


def records_to_bytes(records: Sequence[DecisionRecord], *, scheduler_id: str, epoch: int) -> bytes:
    """One published batch; `records` holds at least one, in order."""
    first = records[0].sequence
    return to_bytes(
        records_pb2.DecisionBatch(
            event_id=f"{epoch}:{first}",
            sequence=first,
            occurred_at_us=records[-1].at_us,
            scheduler_id=scheduler_id,
            epoch=epoch,
            records=[record_to_proto(record) for record in records],
        )
    )


def records_from_bytes(data: bytes) -> DecisionBatch:
    message = parse(records_pb2.DecisionBatch, data)
    records = tuple(record_from_proto(record) for record in message.records)
    return DecisionBatch(message.scheduler_id, message.epoch, records)
