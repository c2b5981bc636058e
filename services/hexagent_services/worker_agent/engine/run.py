"""One attempt on an engine that runs elsewhere: where it is, and what the engine has said about it."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from enum import IntEnum

from hexagent.core.ids import Ticket
from hexagent_services.worker_agent.engine.port import EngineRequest
from hexagent_services.worker_agent.engine_host.frames import Frame


class Kind(IntEnum):
    PREFILL = 1  # up to the hand-off
    DECODE = 2  # from it on
    LOCAL = 3  # both


class Phase(IntEnum):
    WAITING = 1  # for its prompt's ids or for room
    COMPUTING = 2  # its prompt
    PINNED = 3  # until its KV is pulled, or the engine gives it up
    PULLING = 4
    DECODING = 5


class Run:
    """`left`: nobody waits for it any more, but the engine may still hold something of it."""

    def __init__(self, number: int, kind: Kind, request: EngineRequest, now_us: int) -> None:
        self.number = number
        self.kind = kind
        self.request = request
        self.phase = Phase.WAITING
        self.arrived_us = now_us  # it, or what comes behind its latest lease
        self.submitted_us = 0
        self.prompt_ids: Sequence[int] = ()
        self.lease = request.max_tokens  # output tokens, delivered ones included, that the engine may come to as yet
        self.output_tokens = request.delivered_tokens  # so far, those of earlier attempts included
        self.output_ids: list[int] = []  # behind `prompt_ids`, as the engine has said them
        self._in_prompt = request.delivered_tokens  # tokens of output at the end of `prompt_ids`
        self.renewed = False
        self.left = False
        self.timing: Mapping[str, int] = {}  # as `engine_host.requests.timing_of`, of its latest end and its pull
        self._said: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()

    @property
    def ticket(self) -> Ticket:
        return self.request.ticket

    @property
    def tokens_left(self) -> int:
        """Of output behind `prompt_ids`, at most."""
        return self.request.max_tokens - self._in_prompt

    @property
    def leased_tokens(self) -> int:
        """Of these, what the engine may generate before it is asked again."""
        return self.lease - self._in_prompt

    @property
    def last_id(self) -> int:
        """Of its output so far."""
        return (self.output_ids or self.prompt_ids)[-1]

    @property
    def context(self) -> int:
        """Tokens of KV it has."""
        return len(self.prompt_ids) + len(self.output_ids)

    def renew(self, number: int, now_us: int) -> None:
        """Go on as a new request, whose prompt is all there is."""
        self.number, self.kind, self.phase, self.renewed = number, Kind.LOCAL, Phase.WAITING, True
        self.arrived_us = now_us
        self._in_prompt += len(self.output_ids)
        self.prompt_ids = (*self.prompt_ids, *self.output_ids)
        self.output_ids = []
        self.lease = min(2 * self.lease, self.request.max_tokens)

    def tell(self, said: Frame | Exception | None) -> None:
        """None: it has room."""
        self._said.put_nowait(said)

    async def room(self) -> None:
        """Wait until it may be given to the engine."""
        assert await self._next() is None

    async def said(self) -> Frame:
        """What the engine says next."""
        frame = await self._next()
        assert frame is not None
        return frame

    async def _next(self) -> Frame | None:
        said = await self._said.get()
        if isinstance(said, Exception):
            self._said.put_nowait(said)  # for whoever asks again
            raise said
        return said


def request_id(ticket: Ticket) -> int:
    """An id that no other attempt of the cluster has: newer engines want one, above those they count up themselves."""
    return int.from_bytes(hashlib.sha256(repr(ticket).encode()).digest()[:8], "big") >> 2 | 1 << 62
