"""The model of one engine instance: inputs in, effects out, with its own events in between."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from hexagent.core.ids import Ticket
from hexagent.core.instance.blocks import BlockPool
from hexagent.core.instance.call import Call, Phase, RankedQueue, Residents
from hexagent.core.instance.io import (
    Admitted,
    Ended,
    InstanceEffect,
    InstanceInput,
    InstanceLoad,
    KvArrived,
    KvLost,
    KvReady,
    KvSent,
    Prefill,
    PullKv,
    Refused,
    Reserve,
    SendKv,
    Work,
)
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import EngineProfile, InstanceSpec, Role
from hexagent.core.instance.steps import StepEngine
from hexagent.core.instance.times import StepTimes, TrueTimes
from hexagent.core.instance.transfer import Sender

_PHASES: Final = tuple(Phase)
_WAITS_TO_BE_SENT: Final = (Phase.QUEUED, Phase.PREFILLING, Phase.PINNED)
_COMPUTES: Final = (Phase.QUEUED, Phase.PREFILLING, Phase.JOINING, Phase.DECODING)


class InstanceModel:
    """One instance, by virtual or real time. All times are integer microseconds of model time.

    The driver calls `handle` with inputs and `advance` at, or any time after, `next_due_us`. Either first works off
    the model's own events, each at its own due time, so when and how often `advance` is called changes nothing.
    At one time transfers end first, in order of their start, then the engine step ends, then waiting calls are
    admitted, transfers begin and the next step is formed. Time never runs backwards: an earlier `now_us` counts
    as the latest one seen.

    Prefill and decode share one block pool, and no one overtakes a call that waits for blocks: of the heads of the
    two queues (prefill, decode reservations) the one with the larger (rank, order of arrival) waits for the other.
    One transfer at a time comes in, in the order in which calls were ready to pull.
    """

    def __init__(
        self, spec: InstanceSpec, profile: EngineProfile, times: StepTimes, kv_bytes_per_token: int, truth: Truth
    ) -> None:
        self.spec = spec
        self.profile = profile
        self._now_us = 0
        self._arrivals = 0
        self._nominal = times
        self._kv_bytes_per_token = kv_bytes_per_token
        pool = BlockPool(spec.kv_blocks, spec.block_tokens, profile.block_reuse and spec.prefix_cache)
        self._pool = pool
        self._residents = Residents(pool, spec.max_batch)
        self._calls = self._residents.calls
        self._waiting = RankedQueue()  # for decode blocks
        true_times = TrueTimes(times, truth)
        self._engine = StepEngine(spec, self._residents, self._waiting, true_times, profile.equal_progress)
        self._sender = Sender(spec, profile, kv_bytes_per_token, truth)
        self._ready: deque[Call] = deque()  # may pull when the ingress slot is free
        self._pulling: Call | None = None  # has the ingress slot

    # --- the driver's side --------------------------------------------------------------------------------
    def handle(self, input: InstanceInput, now_us: int) -> tuple[InstanceEffect, ...]:
        """Apply one input at `now_us`; work it makes possible starts at once."""
        return self.handle_all((input,), now_us)

    def handle_all(self, inputs: Sequence[InstanceInput], now_us: int) -> tuple[InstanceEffect, ...]:
        """Apply inputs that come together, in order, and only then form a step: they can share it."""
        out: list[InstanceEffect] = []
        self._drain(now_us, out)
        for input in inputs:
            self._apply(input, self._now_us, out)
        self._pump(self._now_us, out)
        self._drain(now_us, out)
        return tuple(out)

    def advance(self, now_us: int) -> tuple[InstanceEffect, ...]:
        """Work off the model's own events up to and at `now_us`."""
        out: list[InstanceEffect] = []
        self._drain(now_us, out)
        return tuple(out)

    def next_due_us(self) -> int:
        """When `advance` has something to do, if nothing else happens before; NEVER_US = never."""
        step, sent_us = self._engine.step, self._sender.due_us
        return sent_us if step is None or sent_us < step.end_us else step.end_us

    def generated(self, ticket: Ticket, now_us: int) -> int:
        """Output tokens of a call so far, the first one included; 0 if it is not here."""
        call = self._calls.get(ticket)
        return 0 if call is None else self._engine.generated(call, now_us)

    def tickets(self) -> tuple[Ticket, ...]:
        """Calls that are here and have not ended, in order of arrival."""
        return tuple(ticket for ticket, call in self._calls.items() if not call.aborted)

    def retune(self, truth: Truth) -> None:
        """Another truth from the next step on: the hardware got slower or faster."""
        self._engine.times = TrueTimes(self._nominal, truth)

    def in_role(self, role: Role, started_again: bool) -> "InstanceModel":
        """The instance as it goes on in another role; `started_again` it holds nothing, cached or not."""
        if not started_again:
            self.spec = self.spec._replace(role=role)
            return self
        truth = self._engine.times.truth
        spec = self.spec._replace(role=role)
        return InstanceModel(spec, self.profile, self._nominal, self._kv_bytes_per_token, truth)

    def load(self, now_us: int) -> InstanceLoad:
        """A snapshot at the last event before `now_us`; to see that time, `advance` to it first."""
        counts = dict.fromkeys(_PHASES, 0)
        tokens = 0
        oldest_us = max(now_us, self._now_us)
        for call in self._calls.values():
            counts[call.phase] += 1
            if call.phase is Phase.QUEUED:
                tokens += call.target
                oldest_us = min(oldest_us, call.arrived_us)
        return InstanceLoad(
            queued=counts[Phase.QUEUED],
            queued_tokens=tokens,
            oldest_queued_us=oldest_us if counts[Phase.QUEUED] else 0,
            prefilling=counts[Phase.PREFILLING],
            pinned=counts[Phase.PINNED],
            waiting=counts[Phase.WAITING] + counts[Phase.ADMITTED],
            decoding=counts[Phase.JOINING] + counts[Phase.DECODING],
            transferring=counts[Phase.SENDING] + counts[Phase.PULLING],
            kv_used_blocks=self._pool.used,
            kv_cached_blocks=self._pool.cached,
            kv_free_blocks=self._pool.free,
        )

    # --- time ---------------------------------------------------------------------------------------------
    def _drain(self, now_us: int, out: list[InstanceEffect]) -> None:
        engine, sender = self._engine, self._sender
        while (due_us := self.next_due_us()) <= now_us:
            self._now_us = due_us
            while sender.due_us == due_us:
                self._end_transfer(due_us, out)
            step = engine.step
            if step is not None and step.end_us == due_us:
                for call in engine.finish(due_us, out):
                    if call.send is not None:
                        sender.enqueue(call)
            self._pump(due_us, out)
        self._now_us = max(self._now_us, now_us)

    def _pump(self, now_us: int, out: list[InstanceEffect]) -> None:
        """Start whatever can start now."""
        again = True
        while again:
            if self._waiting.entries:
                self._admit(now_us, out)
            if self._ready and self._pulling is None:
                self._pull(now_us, out)
            if self._sender.queue:
                self._sender.start(now_us)
            again = self._engine.step is None and self._engine.form(now_us, out)

    # --- inputs -------------------------------------------------------------------------------------------
    def _apply(self, input: InstanceInput, now_us: int, out: list[InstanceEffect]) -> None:
        if isinstance(input, Prefill):
            self._on_prefill(input, now_us, out)
            return
        if isinstance(input, Reserve):
            self._on_reserve(input, now_us, out)
            return
        call = self._calls.get(input.ticket)
        if isinstance(input, SendKv):
            self._on_send(call, input, now_us, out)
        elif call is None:
            pass
        elif isinstance(input, KvArrived):
            self._on_arrived(call, now_us)
        elif isinstance(input, KvReady):
            if not call.kv_ready:
                self._on_ready(call)
        elif isinstance(input, KvLost):
            self._on_lost(call, now_us, out)
        elif not call.aborted:
            self._on_abort(call, now_us, out)

    def _new_call(self, work: Work, rank: int, tokens: int, now_us: int, out: list[InstanceEffect]) -> Call | None:
        blocks = self._pool.need(tokens)
        if blocks > self._pool.capacity:
            out.append(Refused(work.ticket, now_us, "KV_TOO_SMALL"))
            return None
        self._arrivals += 1
        key = self._engine.times.truth.call_key(self.spec.instance_id, work.ticket)
        call = Call(work, self._arrivals, rank, now_us, blocks, key)
        self._calls[work.ticket] = call
        return call

    def _decode_tokens(self, work: Work) -> int:
        """What is reserved for a call that decodes here: an engine that never evicts must fit the longest output."""
        if self.profile.never_evicts:
            return work.prompt_tokens + work.max_tokens
        return work.prompt_tokens + min(work.reserve_output_tokens, work.max_tokens)

    def _on_prefill(self, input: Prefill, now_us: int, out: list[InstanceEffect]) -> None:
        work = input.work
        if work.ticket in self._calls:
            return
        if self.spec.role is Role.DECODE and not self.profile.local_prefill:
            out.append(Refused(work.ticket, now_us, "NO_LOCAL_PREFILL"))
            return
        tokens = self._decode_tokens(work) if input.local else work.prompt_tokens
        call = self._new_call(work, input.rank, tokens, now_us, out)
        if call is not None:
            call.local = input.local
            self._engine.enqueue(call, now_us)

    def _on_reserve(self, input: Reserve, now_us: int, out: list[InstanceEffect]) -> None:
        work = input.work
        if work.ticket in self._calls:
            return
        call = self._new_call(work, input.rank, self._decode_tokens(work), now_us, out)
        if call is not None:
            call.phase = Phase.WAITING
            call.source = input.source
            call.kv_ready = input.kv_ready
            call.generated = int(input.kv_ready)
            self._waiting.add(call)

    def _on_ready(self, call: Call) -> None:
        if call.phase is Phase.WAITING or call.phase is Phase.ADMITTED:
            call.kv_ready = True
            call.generated = 1
            if call.phase is Phase.ADMITTED:
                self._ready.append(call)

    def _on_arrived(self, call: Call, now_us: int) -> None:
        if call is not self._pulling:
            return
        self._pulling = None
        if call.aborted:
            self._drop(call, now_us)
            return
        self._residents.commit(call)
        self._engine.join(call, now_us)

    def _on_lost(self, call: Call, now_us: int, out: list[InstanceEffect]) -> None:
        if call is self._pulling:
            self._pulling = None
        elif not self._leave_wait(call):
            return
        self._drop(call, now_us)
        if not call.aborted:
            out.append(Refused(call.ticket, now_us, "KV_LOST"))

    def _on_abort(self, call: Call, now_us: int, out: list[InstanceEffect]) -> None:
        if call.phase is Phase.SENDING or call.phase is Phase.PULLING:
            call.aborted = True
            out.append(Ended(call.ticket, now_us, call.generated, True))
            return
        if call.phase in _COMPUTES:
            self._engine.remove(call, now_us)
        elif call.phase is Phase.PINNED:
            if call.send is not None:
                self._sender.remove(call)
        else:
            self._leave_wait(call)
        self._drop(call, now_us)
        out.append(Ended(call.ticket, now_us, call.generated, True))
        if call.send is not None:
            out.append(Refused(call.ticket, now_us, "UNKNOWN_TICKET", call.send.to_instance))

    # --- KV out -------------------------------------------------------------------------------------------
    def _on_send(self, call: Call | None, input: SendKv, now_us: int, out: list[InstanceEffect]) -> None:
        """Until the transfer begins the last receiver to ask gets the KV: decode was bound again elsewhere."""
        if call is not None and call.send is not None and call.send.to_instance == input.to_instance:
            return
        if call is None or call.local or call.phase not in _WAITS_TO_BE_SENT:
            out.append(Refused(input.ticket, now_us, "UNKNOWN_TICKET", input.to_instance))
            return
        if call.send is not None:
            out.append(Refused(input.ticket, now_us, "UNKNOWN_TICKET", call.send.to_instance))
        elif call.phase is Phase.PINNED:
            self._sender.enqueue(call)
        call.send = input

    def _end_transfer(self, now_us: int, out: list[InstanceEffect]) -> None:
        call, start_us = self._sender.finish()
        assert call.send is not None
        out.append(KvSent(call.ticket, call.send.to_instance, start_us, now_us, self._sender.kv_bytes(call)))
        self._drop(call, now_us)

    # --- KV in --------------------------------------------------------------------------------------------
    def _admit(self, now_us: int, out: list[InstanceEffect]) -> None:
        """Reserve blocks for waiting calls in order, as far as they go."""
        queue = self._engine.queue
        while self._waiting.entries:
            if self._engine.head_blocked and queue.entries and queue.head_key < self._waiting.head_key:
                return
            call = self._waiting.head
            if not self._residents.seat(call, decodes=True):
                return
            self._waiting.pop()
            call.phase = Phase.ADMITTED
            out.append(Admitted(call.ticket, now_us))
            if call.kv_ready:
                self._ready.append(call)

    def _pull(self, now_us: int, out: list[InstanceEffect]) -> None:
        call = self._ready.popleft()
        call.phase = Phase.PULLING
        self._pulling = call
        out.append(PullKv(call.ticket, call.source, now_us))

    def _leave_wait(self, call: Call) -> bool:
        """Take a call that waits for blocks or KV out of its queue; False if it is in none."""
        if call.phase is Phase.WAITING:
            self._waiting.remove(call)
        elif call.phase is Phase.ADMITTED:
            if call.kv_ready:
                self._ready.remove(call)
        else:
            return False
        return True

    def _drop(self, call: Call, now_us: int) -> None:
        """Free what `call` holds; a waiting prefill may fit now, so a run of decode steps gives way."""
        self._residents.drop(call)
        if self._engine.queue.entries:
            self._engine.cut(now_us)
