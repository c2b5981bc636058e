"""Entries of the scheduler's journal: every input it handled, in order."""

from typing import NamedTuple

from hexagent.api.scheduler.v1 import journal_pb2
from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.instance.telemetry import Telemetry
from hexagent.core.policy.profile import DEFAULT, Profile
from hexagent.core.scheduling.events import (
    CallProgress,
    InstanceCordoned,
    InstanceDown,
    InstanceFlip,
    InstanceUp,
    SchedulerEvent,
    Started,
    Tick,
)
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.wire.cluster import (
    cluster_from_proto,
    cluster_to_proto,
    instance_from_proto,
    instance_to_proto,
    role_from_proto,
    role_to_proto,
)
from hexagent.wire.codec import bad, parse, to_bytes
from hexagent.wire.estimator import snapshot_from_proto, snapshot_to_proto
from hexagent.wire.scheduler import record_from_proto, record_to_proto
from hexagent.wire.telemetry import TelemetryReport, telemetry_from_proto, telemetry_to_proto
from hexagent.wire.worker import held_from_proto, held_to_proto, progress_from_proto, progress_to_proto
from hexagent.wire.workflow import event_from_proto, event_to_proto


class JournalHeader(NamedTuple):
    """What a scheduler was started with; a journal begins with it."""

    policy: str
    cluster: ClusterSpec
    version: str
    profile: Profile = DEFAULT


class JournalEntry(NamedTuple):
    """One input and the model time it was handled at, or a decision that followed from the input above it."""

    sequence: int
    now_us: int
    event: SchedulerEvent | DecisionRecord | JournalHeader


def journal_entry_to_bytes(entry: JournalEntry, stored: bytes = b"") -> bytes:
    """The entry; `stored` is its workflow event as the stream keeps it, where the event comes from there."""
    message = journal_pb2.JournalEntry(sequence=entry.sequence, now_us=entry.now_us)
    event = entry.event
    match event:
        case CallProgress():
            message.progress.CopyFrom(progress_to_proto(event))
        case InstanceUp():
            held = [held_to_proto(ticket) for ticket in event.held]
            up = journal_pb2.InstanceUp(
                instance=instance_to_proto(event.spec),
                held=held,
                at_us=event.at_us,
                cordoned=event.cordoned,
                draining=event.draining,
                wanted_role=role_to_proto(event.wanted_role),
            )
            message.instance_up.CopyFrom(up)
        case InstanceDown():
            down = journal_pb2.InstanceDown(
                instance_id=event.instance_id, at_us=event.at_us, reason=event.reason,
                instance=instance_to_proto(event.spec) if event.spec is not None else None,
            )  # fmt: skip
            message.instance_down.CopyFrom(down)
        case InstanceCordoned():
            cordoned = journal_pb2.InstanceCordoned(
                instance_id=event.instance_id, cordoned=event.cordoned, at_us=event.at_us
            )
            message.instance_cordoned.CopyFrom(cordoned)
        case InstanceFlip():
            role = role_to_proto(event.role)
            flip = journal_pb2.InstanceFlip(instance_id=event.instance_id, role=role, at_us=event.at_us)
            message.instance_flip.CopyFrom(flip)
        case Telemetry():
            message.telemetry.CopyFrom(telemetry_to_proto(TelemetryReport(event)))
        case Snapshot():
            message.snapshot.CopyFrom(snapshot_to_proto(event))
        case Started():
            message.started.CopyFrom(journal_pb2.Started(epoch=event.epoch, at_us=event.at_us))
        case JournalHeader():
            cluster = cluster_to_proto(event.cluster)
            header = journal_pb2.JournalHeader(
                policy=event.policy, cluster=cluster, version=event.version, profile=event.profile._asdict()
            )
            message.header.CopyFrom(header)
        case DecisionRecord():
            message.decision.CopyFrom(record_to_proto(event))
        case Tick():
            message.tick.CopyFrom(journal_pb2.Tick(at_us=event.at_us))
        case _ if stored:
            message.workflow.MergeFromString(stored)
        case _:
            message.workflow.CopyFrom(event_to_proto(event, event_id="", sequence=0))
    return to_bytes(message)


def journal_entry_from_bytes(data: bytes) -> JournalEntry:
    """`InvalidArgument` (BAD_MESSAGE) where it is no entry this version knows."""
    message = parse(journal_pb2.JournalEntry, data)
    return JournalEntry(message.sequence, message.now_us, _event_of(message))


def _event_of(message: journal_pb2.JournalEntry) -> SchedulerEvent | DecisionRecord | JournalHeader:
    match message.WhichOneof("event"):
        case "workflow":
            return event_from_proto(message.workflow).event
        case "progress":
            return progress_from_proto(message.progress)
        case "instance_up":
            up = message.instance_up
            held = tuple(held_from_proto(ticket) for ticket in up.held)
            wanted_role = role_from_proto(up.wanted_role, "wanted_role") if up.wanted_role else None
            return InstanceUp(instance_from_proto(up.instance), held, up.at_us, up.cordoned, up.draining, wanted_role)
        case "instance_down":
            gone = message.instance_down
            spec = instance_from_proto(gone.instance) if gone.HasField("instance") else None
            return InstanceDown(gone.instance_id, gone.at_us, gone.reason, spec)
        case "instance_cordoned":
            cordoned = message.instance_cordoned
            return InstanceCordoned(cordoned.instance_id, cordoned.cordoned, cordoned.at_us)
        case "instance_flip":
            flip = message.instance_flip
            return InstanceFlip(flip.instance_id, role_from_proto(flip.role, "role"), flip.at_us)
        case "telemetry":
            return telemetry_from_proto(message.telemetry).telemetry
        case "snapshot":
            return snapshot_from_proto(message.snapshot)
        case "started":
            return Started(message.started.epoch, message.started.at_us)
        case "tick":
            return Tick(message.tick.at_us)
        case "header":
            header = message.header
            profile = DEFAULT._replace(**{k: v for k, v in header.profile.items() if k in Profile._fields})
            return JournalHeader(header.policy, cluster_from_proto(header.cluster), header.version, profile)
        case "decision":
            return record_from_proto(message.decision)
        case None:
            raise bad("BAD_MESSAGE", "event", "the entry holds no event this version knows")
