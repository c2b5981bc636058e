"""What the cluster says about calls: outcomes, stored before they are acknowledged, and decisions."""

import logging
from collections.abc import Sequence
from typing import Final

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.scheduler.v1 import records_pb2
from hexagent.core.errors import HexagentError
from hexagent.core.workflow.commands import RecordDispatch, RecordOutcome
from hexagent.core.workflow.model import CallOutcome
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus, Message
from hexagent.wire.codec import parse, ticket_from_proto
from hexagent.wire.workflow import outcome_from_bytes
from hexagent_services.dag_tracker.segments import SegmentStore
from hexagent_services.dag_tracker.writer import Writer

log = logging.getLogger(__name__)

DURABLE: Final = "dag-tracker"
BODY_IN_EVENT_MAX: Final = 128 * 1024  # larger outputs are read from the segment store by those who want them
MESSAGE_CHARS_MAX: Final = 4_096  # of an outcome's text for people


class ClusterConsumer:
    """Turns messages of scheduler and agents into commands; one that makes no sense is logged and dropped."""

    def __init__(self, bus: Bus, writer: Writer, segments: SegmentStore) -> None:
        self._bus = bus
        self._writer = writer
        self._segments = segments

    async def run(self) -> None:
        """Consume outcomes until cancelled. An error of the bus or the log ends it, its batch unacknowledged."""
        await self._bus.subscribe_core(subjects.DECISION, self._on_decisions)
        await self._bus.consume(subjects.OUTCOMES, DURABLE, subjects.ALL_OUTCOMES, self._on_outcomes)

    async def _on_outcomes(self, messages: Sequence[Message]) -> None:
        for message in messages:
            try:
                outcome = await self._fitting(outcome_from_bytes(message.data).outcome)
                if self._writer.do(RecordOutcome(outcome)):  # else it came before: what it names may have expired
                    self._segments.know(outcome)
            except HexagentError as error:
                # Nobody can mend it by sending it again: a workflow long forgotten, or a broken agent.
                log.warning("an outcome on %s is dropped: %s", message.subject, error)
        await self._writer.events.all_settled()

    def _on_decisions(self, message: Message) -> None:
        for record in parse(records_pb2.DecisionBatch, message.data).records:
            if record.kind != enums_pb2.DECISION_KIND_DISPATCH:
                continue
            try:
                ticket, chosen = ticket_from_proto(record.ticket), record.chosen
                self._writer.do(
                    RecordDispatch(ticket.call, ticket.attempt, chosen.prefill_instance, chosen.decode_instance)
                )
            except HexagentError as error:
                log.info("a dispatch is passed over: %s", error)

    async def _fitting(self, outcome: CallOutcome) -> CallOutcome:
        """The outcome as its event keeps it: small enough for one, its body, if any, one that can be read."""
        if len(outcome.message) > MESSAGE_CHARS_MAX:
            outcome = outcome._replace(message=outcome.message[:MESSAGE_CHARS_MAX])
        body = outcome.output_body
        if not body:
            return outcome
        if not _is_body(body, outcome.output.digest):
            log.error("the output that came with the outcome of %s is not the one it names", outcome.call)
            return outcome._replace(output_body=b"")
        large = len(body) > BODY_IN_EVENT_MAX
        if large or self._segments.deleted(outcome.output.digest):
            await self._segments.put_raw(outcome.output.digest, body)
        return outcome._replace(output_body=b"") if large else outcome


def _is_body(body: bytes, digest: str) -> bool:
    try:
        return parse(call_pb2.SegmentBody, body).digest == digest != ""
    except HexagentError:
        return False
