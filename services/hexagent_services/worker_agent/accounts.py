"""What is told of attempts: progress to the scheduler; tokens and outcomes to everybody."""

from collections.abc import Callable

from hexagent.core.ids import Ticket
from hexagent.core.scheduling.events import Phase
from hexagent.core.workflow.model import CallOutcome, CallTimes, FinishReason, NodeStatus
from hexagent.runtime.clock import Clock
from hexagent_services.worker_agent.engine.port import DecodeStarted, EngineRequest, Finished, Generated, Prefilled
from hexagent_services.worker_agent.live import LiveAttempt
from hexagent_services.worker_agent.reports import Reports
from hexagent_services.worker_agent.results import Results


class Accounts:
    """`forget` is called with an attempt whose outcome is stored."""

    def __init__(
        self, results: Results, reports: Reports, clock: Clock, forget: Callable[[LiveAttempt], object]
    ) -> None:
        self._results = results
        self._reports = reports
        self._clock = clock
        self._forget = forget

    # --- on the way -------------------------------------------------------------------------------------------
    def unbound(self, attempt: LiveAttempt) -> None:
        """The decode side has said no."""
        now_us = self._clock.now_us()
        phase = Phase.HAND_OFF_REFUSED
        self._reports.progress(attempt.ticket, phase, attempt.instance_id, now_us, reason=attempt.unbound)

    def lost(self, ticket: Ticket, instance_id: str, reason: str) -> None:
        self._reports.progress(ticket, Phase.LOST, instance_id, self._clock.now_us(), reason=reason)

    def prefilled(self, attempt: LiveAttempt, request: EngineRequest, prefilled: Prefilled) -> None:
        """A first token may have no text of its own yet, such as half a character."""
        attempt.phase = Phase.PREFILLED
        self._reports.progress(
            attempt.ticket,
            Phase.PREFILLED,
            attempt.instance_id,
            prefilled.ended_us,
            cached_tokens=prefilled.cached_tokens,
        )
        last = prefilled.finish is not FinishReason.NONE
        if request.call.stream and (prefilled.first_text or not last):
            self._results.tokens(attempt.ticket, request.delivered_tokens, 1, prefilled.first_text, last)

    def decoding(self, attempt: LiveAttempt, started: DecodeStarted) -> None:
        attempt.phase = Phase.DECODING
        self._reports.progress(attempt.ticket, Phase.DECODING, attempt.instance_id, started.at_us)

    def generated(self, attempt: LiveAttempt, offset: int, generated: Generated) -> None:
        """Output from token `offset` on."""
        self._results.tokens(attempt.ticket, offset, generated.tokens, generated.text, False)

    # --- at the end -------------------------------------------------------------------------------------------
    async def succeeded(
        self, attempt: LiveAttempt, prefilled: Prefilled, source: str, finished: Finished, times: CallTimes
    ) -> None:
        transfer = finished.transfer
        if transfer is not None:
            times = times._replace(transfer_start_us=transfer.start_us, transfer_end_us=transfer.end_us)
        times = times._replace(
            prefill_start_us=prefilled.started_us,
            prefill_end_us=prefilled.ended_us,
            first_token_us=prefilled.ended_us,
            end_us=finished.at_us,
        )
        outcome = self._outcome(attempt, NodeStatus.SUCCEEDED, times)._replace(
            finish_reason=finished.finish,
            prompt_tokens=prefilled.prompt_tokens,
            cached_tokens=prefilled.cached_tokens,
            output_tokens=finished.output_tokens,
            prefill_instance=source,
            decode_instance=attempt.instance_id if times.decode_start_us else "",
            kv_bytes=(transfer or prefilled).kv_bytes if times.transfer_end_us else 0,
            decode_us=finished.decode_us,
        )
        await self._end(attempt, outcome, finished.text)

    async def failed(self, attempt: LiveAttempt, status: NodeStatus, reason: str, message: str = "") -> None:
        """No other attempt would fare better."""
        outcome = self._outcome(attempt, status, CallTimes())._replace(reason=reason, message=message)
        await self._end(attempt, outcome)

    def _outcome(self, attempt: LiveAttempt, status: NodeStatus, times: CallTimes) -> CallOutcome:
        return CallOutcome(
            call=attempt.ticket.call,
            attempt=attempt.ticket.attempt,
            status=status,
            prompt_tokens=attempt.spec.prompt_tokens,
            times=times._replace(dispatched_us=attempt.spec.dispatched_us, end_us=times.end_us or self._clock.now_us()),
        )

    async def _end(self, attempt: LiveAttempt, outcome: CallOutcome, text: bytes | None = None) -> None:
        """Store the outcome, then let the scheduler know: it forgets the attempt and must not lose the call."""
        await self._results.outcome(outcome, text, attempt.spec.trace_context)
        self._forget(attempt)
        self._reports.progress(
            attempt.ticket,
            Phase.ENDED,
            attempt.instance_id,
            outcome.times.end_us,
            output_tokens=outcome.output_tokens,
        )
