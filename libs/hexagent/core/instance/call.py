"""A call while it is on an instance, and the ones that wait in order."""

from bisect import bisect_left, insort
from enum import IntEnum

from hexagent.core.ids import Ticket
from hexagent.core.instance.blocks import BlockPool, Holding
from hexagent.core.instance.io import PrefixSegment, SendKv, Work


class Phase(IntEnum):
    QUEUED = 1  # waits for prefill
    PREFILLING = 2
    PINNED = 3  # prefilled; its KV waits to be sent
    SENDING = 4
    WAITING = 5  # for decode blocks
    ADMITTED = 6  # has decode blocks; its KV is not there yet and has not been asked for
    PULLING = 7  # its KV was asked for
    JOINING = 8  # decodes from the next step boundary on
    DECODING = 9
    GONE = 10  # a reference to it may be left in a running step


class Call:
    """State of one ticket. `context` counts tokens that need a place in KV before the next one can be generated."""

    __slots__ = (
        "aborted",
        "arrived_us",
        "blocks",
        "cached",
        "finish_step",
        "generated",
        "grow_step",
        "holding",
        "join_step",
        "key",
        "kv_ready",
        "local",
        "phase",
        "prefilled",
        "rank",
        "recomputes",
        "seated",
        "send",
        "seq",
        "shared",
        "source",
        "started",
        "target",
        "ticket",
        "work",
    )

    def __init__(self, work: Work, seq: int, rank: int, now_us: int, blocks: int, key: int) -> None:
        self.work = work
        self.ticket = work.ticket
        self.seq = seq  # order of arrival
        self.rank = rank
        self.arrived_us = now_us  # in the queue it is in
        self.blocks = blocks  # it needs to start
        self.key = key  # of its noise
        self.phase = Phase.QUEUED
        self.holding: Holding | None = None
        self.seated = False  # counts as one of the instance's `max_batch`
        self.aborted = False  # has ended, but a transfer still uses its blocks
        # prefill
        self.local = False
        self.recomputes = False  # prefills what it has had before
        self.target = work.prompt_tokens  # to be prefilled
        self.prefilled = 0  # of the target, cached ones included
        self.cached = 0
        self.send: SendKv | None = None  # who asks for its KV
        # decode
        self.source = ""
        self.kv_ready = False
        self.started = False  # `DecodeStarted` is said
        self.generated = 0  # up to `join_step`
        self.shared = 0  # of the time of the steps it decoded in, in parts of a microsecond, once out of the batch
        self.join_step = 0  # the batch's steps when it joined
        self.finish_step = 0  # the batch's steps when it will end
        self.grow_step = 0  # the batch's steps when it needs another block

    @property
    def context(self) -> int:
        return self.work.prompt_tokens + self.generated

    @property
    def done(self) -> bool:
        return self.generated >= self.work.output_tokens


class RankedQueue:
    """Calls by (rank, order of arrival). A sorted list: queues are short and moves are rare."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, Call]] = []

    @property
    def head(self) -> Call:
        return self.entries[0][2]

    @property
    def head_key(self) -> tuple[int, int]:
        rank, seq, _ = self.entries[0]
        return rank, seq

    def add(self, call: Call) -> None:
        insort(self.entries, (call.rank, call.seq, call))

    def pop(self) -> Call:
        return self.entries.pop(0)[2]

    def remove(self, call: Call) -> None:
        del self.entries[bisect_left(self.entries, (call.rank, call.seq, call))]


class Residents:
    """The calls of an instance with what they hold: KV blocks and, if they decode here, one of `seats` places."""

    __slots__ = ("calls", "pool", "seats")

    def __init__(self, pool: BlockPool, seats: int) -> None:
        self.calls: dict[Ticket, Call] = {}  # in order of arrival
        self.pool = pool
        self.seats = seats  # still free

    def seat(self, call: Call, decodes: bool, prefix: tuple[PrefixSegment, ...] = ()) -> bool:
        """Give `call` its blocks, and a seat if it decodes here; False, and no change, if there are too few."""
        if decodes and not self.seats:
            return False
        call.holding = self.pool.take(call.blocks, prefix, call.work.prompt_tokens)
        if call.holding is None:
            return False
        call.seated = decodes
        self.seats -= decodes
        return True

    def commit(self, call: Call) -> None:
        """KV of its prompt, and of its output but the last token, is complete here: later prompts may share it."""
        if call.holding is None or not self.pool.reuse:
            return
        work, prefix = call.work, call.work.prefix
        if work.output_digest and call.generated > 1:
            prefix = (*prefix, PrefixSegment(work.output_digest, work.output_tokens))
        self.pool.commit(call.holding, prefix, work.prompt_tokens + max(call.generated - 1, 0))

    def unseat(self, call: Call) -> None:
        """Take back blocks and seat."""
        if call.holding is not None:
            self.pool.release(call.holding)
            call.holding = None
        self.seats += call.seated
        call.seated = False

    def drop(self, call: Call) -> None:
        """The call is gone."""
        self.unseat(call)
        call.phase = Phase.GONE
        del self.calls[call.ticket]
