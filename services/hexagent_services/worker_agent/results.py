"""What the agent publishes about calls: token deltas and the one outcome of an attempt."""

import asyncio
from collections.abc import Mapping
from typing import Final

from hexagent.core.errors import Aborted
from hexagent.core.ids import CallId, Ticket
from hexagent.core.workflow.model import CallOutcome
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.wire.segments import output_segment, segment_to_bytes
from hexagent.wire.tokens import TokenDelta, token_delta_from_bytes, token_delta_to_bytes
from hexagent.wire.workflow import outcome_id, outcome_to_bytes
from hexagent_services.worker_agent.requests import BodyCache

INLINE_OUTPUT_MAX: Final = 64 << 10  # bytes of an output that ride in its outcome


class Results:
    def __init__(self, bus: Bus, bodies: BodyCache, agent_id: str) -> None:
        self._bus = bus
        self._bodies = bodies
        self._agent_id = agent_id
        self._sequence = 0  # of outcomes

    def tokens(self, ticket: Ticket, offset: int, tokens: int, text: bytes, last: bool) -> None:
        """Publish output tokens `offset` to `offset + tokens`."""
        delta = TokenDelta(ticket.call, ticket.attempt, offset, tokens, text, last=last)
        # Nobody waits for it to be stored, or sends it again: the end of the call brings the whole output.
        self._bus.publish_core(subjects.token(ticket.call), token_delta_to_bytes(delta))

    async def delivered(self, call: CallId) -> tuple[int, bytes]:
        """Output tokens of a call that were published by earlier attempts, and their text.

        `Aborted` (TOKENS_LOST) where some are missing before others: a client may have those others, and what would
        be generated in place of the missing ones need not lead to them.
        """
        tokens, text = 0, b""
        async with await self._bus.follow(subjects.TOKENS, subjects.token(call)) as feed:
            async for batch in feed.backlog():
                for message in batch:
                    delta = token_delta_from_bytes(message.data)
                    if delta.offset > tokens:
                        raise Aborted(
                            f"{call}: output tokens {tokens} to {delta.offset} were lost on their way, later ones not",
                            reason="TOKENS_LOST",
                        )
                    if delta.offset == tokens:  # a repeated or overlapping one says nothing new
                        tokens, text = tokens + delta.tokens, text + delta.text
        return tokens, text

    async def outcome(
        self, outcome: CallOutcome, text: bytes | None = None, trace_context: Mapping[str, str] | None = None
    ) -> None:
        """Store the outcome, and before it the output's body, which becomes a segment. Errors as `Bus.publish`."""
        storing: list[asyncio.Future[int]] = []
        self._sequence += 1
        if text is not None:
            segment = output_segment(text, outcome.output_tokens)
            ref = segment.ref
            body = segment_to_bytes(segment, ref.digest)
            self._bodies.put(ref.digest, body)
            inline = body if len(body) <= INLINE_OUTPUT_MAX else b""
            outcome = outcome._replace(output=ref, output_body=inline)
            bucket = self._bus.bucket(subjects.SEGMENTS_BUCKET)
            storing.append(await bucket.put_soon(ref.digest, body))
        storing.append(
            await self._bus.publish_soon(
                subjects.outcome(outcome.call.workflow_id),
                outcome_to_bytes(outcome, publisher=self._agent_id, sequence=self._sequence),
                outcome_id(outcome),
                trace_context,
            )
        )
        await asyncio.gather(*storing)
