"""Every core value with a message of its own survives the wire, and nothing unreadable gets past it."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.core.estimate.snapshot import Snapshot
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.scheduling.events import CallProgress, HeldTicket, InstanceUp, SchedulerEvent
from hexagent.core.scheduling.record import Candidate, DecisionRecord
from hexagent.core.scheduling.shadows import ShadowChoice
from hexagent.core.workflow.events import WorkflowEvent, WorkflowStarted
from hexagent.core.workflow.model import CallOutcome, NodeSpec, WorkflowSpec
from hexagent.wire import (
    cluster,
    codec,
    estimator,
    journal,
    nodes,
    results,
    scheduler,
    segments,
    status,
    telemetry,
    tokens,
    worker,
    workflow,
)
from tests.property.wire_values import INT32_MAX, TEXT, values_of


class Trip(NamedTuple):
    """There and back; messages go through bytes as well."""

    kind: Any
    there: Callable[[Any], Any]
    back: Callable[[Any], Any]


TRIPS = [
    Trip(CallProgress, worker.progress_to_proto, worker.progress_from_proto),
    Trip(Candidate, scheduler.candidate_to_proto, scheduler.candidate_from_proto),
    Trip(ShadowChoice, scheduler.shadow_to_proto, scheduler.shadow_from_proto),
    Trip(DecisionRecord, scheduler.record_to_proto, scheduler.record_from_proto),
    Trip(HeldTicket, worker.held_to_proto, worker.held_from_proto),
    Trip(InstanceLoad, telemetry.load_to_proto, telemetry.load_from_proto),
    Trip(InstanceSpec, cluster.instance_to_proto, cluster.instance_from_proto),
    Trip(NodeSpec, nodes.node_to_record, nodes.node_from_record),
    Trip(Snapshot, estimator.snapshot_to_bytes, estimator.snapshot_from_bytes),
    Trip(WorkflowSpec, nodes.terms_to_record, nodes.terms_from_record),
    Trip(cluster.ClusterRecord, cluster.cluster_record_to_bytes, cluster.cluster_record_from_bytes),
    Trip(journal.JournalEntry, journal.journal_entry_to_bytes, journal.journal_entry_from_bytes),
    Trip(segments.Segment, segments.segment_to_bytes, segments.segment_from_bytes),
    Trip(telemetry.AgentAnnouncement, telemetry.announcement_to_bytes, telemetry.announcement_from_bytes),
    Trip(telemetry.TelemetryReport, telemetry.telemetry_to_proto, telemetry.telemetry_from_proto),
    Trip(tokens.TokenDelta, tokens.token_delta_to_bytes, tokens.token_delta_from_bytes),
    Trip(worker.Attempt, worker.attempt_to_proto, worker.attempt_from_proto),
    Trip(worker.Command, worker.command_to_proto, worker.command_from_proto),
]
NAMES = [getattr(trip.kind, "__name__", "Command") for trip in TRIPS]


@pytest.mark.parametrize("trip", TRIPS, ids=NAMES)
@given(data=st.data())
def test_round_trip(trip: Trip, data: st.DataObject) -> None:
    value = data.draw(values_of(trip.kind))
    message = trip.there(value)
    if not isinstance(message, bytes):
        message = codec.parse(type(message), codec.to_bytes(message))
    assert trip.back(message) == value


@pytest.mark.parametrize(
    "trip", [t for t in TRIPS if t.back.__name__.endswith("_bytes")], ids=lambda t: t.kind.__name__
)
@given(data=st.binary(max_size=64))
def test_unreadable_bytes_are_refused_and_never_crash(trip: Trip, data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        trip.back(data)


@given(event=values_of(WorkflowEvent), sequence=st.integers(1, INT32_MAX))
def test_event_and_its_envelope(event: WorkflowEvent, sequence: int) -> None:
    data = workflow.event_to_bytes(event, event_id="e", sequence=sequence)
    assert workflow.event_from_bytes(data) == (event, "e", sequence)


@given(event=values_of(WorkflowEvent))
def test_a_journal_takes_a_stored_event_as_it_is(event: WorkflowEvent) -> None:
    entry = journal.JournalEntry(1, 2, event)
    stored = workflow.event_to_bytes(event, event_id="e", sequence=3)
    assert journal.journal_entry_from_bytes(journal.journal_entry_to_bytes(entry, stored)) == entry


@given(values_of(CallOutcome), st.integers(1, INT32_MAX))
def test_outcome_and_its_envelope(outcome: CallOutcome, sequence: int) -> None:
    data = workflow.outcome_to_bytes(outcome, publisher="agent", sequence=sequence)
    back = workflow.outcome_from_bytes(data)
    assert back == (outcome, workflow.outcome_id(outcome), sequence, "agent")


@given(values_of(CallOutcome), st.none() | values_of(segments.Segment))
def test_call_result_of_the_public_api(outcome: CallOutcome, body: segments.Segment | None) -> None:
    outcome = outcome._replace(output_body=segments.segment_to_bytes(body) if body else b"")
    message = results.call_result_to_proto(outcome)
    assert results.call_result_from_proto(message, outcome.call) == outcome


@given(st.lists(values_of(telemetry.TelemetryReport), max_size=2).map(tuple))
def test_telemetry_of_an_agent(reports: tuple[telemetry.TelemetryReport, ...]) -> None:
    assert telemetry.telemetry_from_bytes(telemetry.telemetry_to_bytes(reports)) == reports


@given(st.lists(values_of(DecisionRecord), min_size=1, max_size=3).map(tuple), st.integers(0, INT32_MAX))
def test_decision_batch(records: tuple[DecisionRecord, ...], epoch: int) -> None:
    data = scheduler.records_to_bytes(records, scheduler_id="s", epoch=epoch)
    assert scheduler.records_from_bytes(data) == ("s", epoch, records)


@given(st.lists(values_of(InstanceUp), max_size=3, unique_by=lambda up: up.spec.instance_id), st.integers(0, 9))
def test_welcome_gives_every_instance_its_attempts(ups: list[InstanceUp], now_us: int) -> None:
    own = [
        up._replace(
            held=tuple(h._replace(instance_id=up.spec.instance_id) for h in up.held),
            at_us=now_us,
            draining=False,  # which a report behind the welcome says
        )
        for up in ups
    ]
    welcome = worker.welcome_to_proto("agent", tuple(own))
    assert worker.instance_ups_from_welcome(welcome, now_us) == tuple(own)


@given(values_of(SchedulerEvent))
def test_equal_values_give_equal_bytes(event: SchedulerEvent) -> None:
    entry = journal.JournalEntry(1, 0, event)
    again = journal.journal_entry_from_bytes(journal.journal_entry_to_bytes(entry))
    assert journal.journal_entry_to_bytes(again) == journal.journal_entry_to_bytes(entry)


@given(st.permutations(["a", "b", "c"]))
def test_bytes_do_not_depend_on_the_order_of_maps(order: list[str]) -> None:
    spec = WorkflowSpec("w", "default", "default", metadata=tuple((key, key) for key in order))
    first = workflow.event_to_bytes(WorkflowStarted(spec, 1), event_id="e", sequence=1)
    ordered = spec._replace(metadata=tuple(sorted(spec.metadata)))
    assert workflow.event_to_bytes(WorkflowStarted(ordered, 1), event_id="e", sequence=1) == first


@given(values_of(segments.Segment), values_of(segments.Segment))
def test_digests_tell_bodies_apart(one: segments.Segment, other: segments.Segment) -> None:
    same = one._replace(tokens=0) == other._replace(tokens=0)
    assert (one.digest == other.digest) == same
    assert one.counted_tokens >= 1


@given(
    kind=st.sampled_from(list(status.CODES)),
    text=st.text(st.characters(codec="utf-8"), max_size=20),
    reason=st.from_regex(r"[A-Z][A-Z0-9_]{1,20}", fullmatch=True),
    field=TEXT,
    details=st.dictionaries(TEXT.filter(lambda key: key != "field"), TEXT, max_size=3),
)
def test_error_survives_its_status(
    kind: type[HexagentError], text: str, reason: str, field: str, details: dict[str, str]
) -> None:
    error = kind(text, reason=reason, field=field, details=details)
    back = status.from_status(status.to_status(error))
    assert (type(back), back.message, back.reason) == (kind, text, reason)
    assert (back.field, back.details) == (field, details)
