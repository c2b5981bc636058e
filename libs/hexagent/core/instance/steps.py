"""Engine steps: what runs in them, how long they take and what they bring about."""

from typing import Final

from hexagent.core.instance.call import Call, Phase, RankedQueue, Residents
from hexagent.core.instance.decode import SHARE_PARTS, DecodeBatch
from hexagent.core.instance.io import (
    DecodeStarted,
    Ended,
    InstanceEffect,
    PrefillDone,
    PrefillStarted,
    Refused,
    StepDone,
)
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.times import TrueTimes
from hexagent.core.units import ceil_div

MAX_RUN_STEPS: Final = 64  # equal decode steps priced at once: contexts grow by at most half of it unpriced


class Step:
    """One step with prefill chunks, or a run of equal pure decode steps."""

    __slots__ = ("batch", "chunks", "context", "end_us", "parts", "start_us", "step_us", "steps")

    def __init__(self, start_us: int, step_us: int, steps: int) -> None:
        self.start_us = start_us
        self.step_us = step_us
        self.steps = steps
        self.end_us = start_us + step_us * steps
        self.parts: list[tuple[Call, int]] = []  # prefilled calls, new tokens
        self.chunks: tuple[tuple[int, int], ...] = ()  # the same as (new, prefix) tokens
        self.batch = 0  # calls that get a token
        self.context = 0  # mean at the start

    def elapsed(self, now_us: int) -> int:
        """Whole decode steps until `now_us`."""
        return min(self.steps, (now_us - self.start_us) // self.step_us) if self.batch else 0


class StepEngine:
    """Chunked prefill and continuous batching of one instance.

    Prefill takes tokens up to `max_step_tokens` a step, first of the call that is under way, then of waiting calls
    by rank; with `equal_progress` of all of these, as `equal_chunks` says. A call whose blocks are not free waits, and
    everyone behind it. Blocks that decoding calls need to grow come first; if none are left, the youngest decoding
    call gives up its blocks and goes back to the queue, where it pays for a prefill of its prompt and of what it had
    generated, as an engine that recomputes evicted calls does.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        residents: Residents,
        waiting: RankedQueue,
        times: TrueTimes,
        equal_progress: bool = False,
    ) -> None:
        self.times = times
        self.step: Step | None = None
        self.queue = RankedQueue()
        self.head_blocked = False  # the queue's head found too little room at the last step boundary
        self.batch = DecodeBatch(spec.block_tokens)
        self._spec = spec
        self._equal_progress = equal_progress
        self._residents = residents
        self._pool = residents.pool
        self._waiting = waiting  # calls that wait for decode blocks: rivals for the same room
        self._active: list[Call] = []  # partly prefilled
        self._joining: list[Call] = []

    # --- changes from outside -----------------------------------------------------------------------------
    def enqueue(self, call: Call, now_us: int) -> None:
        call.phase = Phase.QUEUED
        call.arrived_us = now_us
        self.queue.add(call)
        self.cut(now_us)

    def join(self, call: Call, now_us: int) -> None:
        """`call` has its KV here and decodes from the next step boundary on."""
        call.phase = Phase.JOINING
        self._joining.append(call)
        self.cut(now_us)

    def remove(self, call: Call, now_us: int) -> None:
        """Take an aborted call out of the queue, the prefill or the batch; a running step goes on without it."""
        if call.phase is Phase.QUEUED:
            self.queue.remove(call)
        elif call.phase is Phase.PREFILLING:
            if call in self._active:
                self._active.remove(call)
        elif call.phase is Phase.JOINING:
            self._joining.remove(call)
        else:
            self.batch.leave(call)
            if self.step is not None:
                call.generated += self.step.elapsed(now_us)
            self.cut(now_us)

    def cut(self, now_us: int) -> None:
        """End a run of decode steps at the next step boundary: something waits for it."""
        step = self.step
        if step is not None and not step.parts:
            step.steps = min(step.steps, ceil_div(now_us - step.start_us, step.step_us))
            step.end_us = step.start_us + step.step_us * step.steps

    def generated(self, call: Call, now_us: int) -> int:
        if call.phase is not Phase.DECODING:
            return call.generated
        return self.batch.generated(call) + (self.step.elapsed(now_us) if self.step is not None else 0)

    # --- step boundaries ----------------------------------------------------------------------------------
    def finish(self, now_us: int, out: list[InstanceEffect]) -> list[Call]:
        """Book the step that ends now. Returns calls whose prompt is now pinned, in order."""
        step, self.step = self.step, None
        if step is None or not step.steps:  # cut before it took any time
            return []
        if step.batch:
            self.batch.pass_steps(step.steps, step.step_us, step.batch)
        context = step.context + step.steps // 2
        out.append(StepDone(now_us, step.end_us - step.start_us, step.steps, step.chunks, step.batch, context))
        pinned: list[Call] = []
        for call, new in step.parts:
            if call.phase is not Phase.PREFILLING:
                continue
            call.prefilled += new
            if call.prefilled == call.target:
                if self._end_prefill(call, now_us, out):
                    pinned.append(call)
            else:
                self._active.append(call)
        if step.batch:
            for call in self.batch.pop_finished():
                self._end(call, now_us, out)
        return pinned

    def _end_prefill(self, call: Call, now_us: int, out: list[InstanceEffect]) -> bool:
        """The prompt is computed and the next token is there. True if its KV waits here to be sent."""
        self._residents.commit(call)
        call.generated += 1
        if not call.recomputes:
            out.append(PrefillDone(call.ticket, now_us, call.cached, call.done))
        if call.done:
            self._end(call, now_us, out)
        elif call.local:
            self.join(call, now_us)
        else:
            call.phase = Phase.PINNED
            return True
        return False

    def _end(self, call: Call, now_us: int, out: list[InstanceEffect]) -> None:
        self._residents.commit(call)
        self._residents.drop(call)
        out.append(Ended(call.ticket, now_us, call.generated, False, call.shared // SHARE_PARTS))

    def form(self, now_us: int, out: list[InstanceEffect]) -> bool:
        """Start the next step if there is work. True if a call gave up its blocks: others may find room now."""
        freed = False
        if self._joining:
            for call in self._joining:
                freed |= not self._start_decode(call, now_us, out)
            self._joining.clear()
        if self.batch.grow:
            freed |= self._grow(now_us, out)
        batch = len(self.batch.members)
        self.head_blocked = False
        parts = self._next_parts(batch, now_us, out) if self._active or self.queue.entries else []
        if not parts and not batch:
            return freed
        context = self.batch.mean_context if batch else 0
        if parts:
            chunks = tuple([(new, call.prefilled) for call, new in parts])
            lead = parts[0][0]
            step_us = self.times.prefill_us(chunks, batch, context, lead.key, lead.prefilled)
            step = Step(now_us, step_us, 1)
            step.parts = parts
            step.chunks = chunks
        else:
            steps = self.batch.steps_to_change(MAX_RUN_STEPS)
            lead = self.batch.lead
            position = lead.work.prompt_tokens + self.batch.generated(lead)
            step = Step(now_us, self.times.decode_us(batch, context + steps // 2, lead.key, position), steps)
        step.batch = batch
        step.context = context
        self.step = step
        return freed

    def _start_decode(self, call: Call, now_us: int, out: list[InstanceEffect]) -> bool:
        """Add `call` to the batch; False if it has its only token already."""
        if not call.started:
            call.started = True
            out.append(DecodeStarted(call.ticket, now_us))
        if call.done:
            self._end(call, now_us, out)
            return False
        call.phase = Phase.DECODING
        self.batch.join(call)
        return True

    def _next_parts(self, batch: int, now_us: int, out: list[InstanceEffect]) -> list[tuple[Call, int]]:
        """Prefill chunks of the next step: what the budget leaves beside a token for each decoding call.

        At least one token, so that prefill never starves behind a batch as large as the budget.
        """
        parts: list[tuple[Call, int]] = []
        budget = max(1, self._spec.max_step_tokens - batch)
        if self._equal_progress:
            return self._equal_parts(budget, now_us, out)
        for call in self._active:
            new = min(budget, call.target - call.prefilled)
            if new:
                parts.append((call, new))
                budget -= new
        del self._active[: len(parts)]
        while budget and len(parts) < self._spec.max_batch and (started := self._start_next(now_us, out)):
            new = min(budget, started.target - started.prefilled)
            parts.append((started, new))
            budget -= new
        return parts

    def _equal_parts(self, budget: int, now_us: int, out: list[InstanceEffect]) -> list[tuple[Call, int]]:
        """The same where prompts advance equally: every waiting call with room is under way from here on."""
        calls = self._active
        while len(calls) < self._spec.max_batch and (started := self._start_next(now_us, out)):
            calls.append(started)
        chunks = equal_chunks([call.target - call.prefilled for call in calls], budget, self._spec.block_tokens)
        shares = list(zip(calls, chunks, strict=True))
        self._active = [call for call, new in shares if not new]
        return [(call, new) for call, new in shares if new]

    def _start_next(self, now_us: int, out: list[InstanceEffect]) -> Call | None:
        """The head of the queue, if it has room."""
        if not self.queue.entries or (self._waiting.entries and self._waiting.head_key < self.queue.head_key):
            return None
        call = self.queue.head
        self.head_blocked = not self._start_prefill(call, now_us, out)
        return None if self.head_blocked else call

    def _start_prefill(self, call: Call, now_us: int, out: list[InstanceEffect]) -> bool:
        if not self._residents.seat(call, call.local, call.work.prefix):
            return False
        self.queue.pop()
        call.phase = Phase.PREFILLING
        assert call.holding is not None
        call.cached = call.prefilled = self._pool.cached_tokens(call.holding, call.target)
        if not call.recomputes:
            out.append(PrefillStarted(call.ticket, now_us))
        return True

    # --- room for growing calls ---------------------------------------------------------------------------
    def _grow(self, now_us: int, out: list[InstanceEffect]) -> bool:
        """Give every call that outgrows its blocks another one, at the cost of the youngest where none are free."""
        evicted = False
        while (call := self.batch.pop_growing()) is not None:
            while call.phase is Phase.DECODING:
                assert call.holding is not None
                if self._pool.grow(call.holding, 1):
                    self.batch.watch_growth(call)
                    break
                self._evict(self.batch.youngest, now_us, out)
                evicted = True
        return evicted

    def _evict(self, call: Call, now_us: int, out: list[InstanceEffect]) -> None:
        """Send a decoding call back to the queue; it is refused if it has outgrown the whole instance."""
        self.batch.leave(call)
        self._residents.unseat(call)
        call.target = call.context
        call.blocks = self._pool.need(call.target)
        call.prefilled = 0
        call.local = call.recomputes = True
        if call.blocks > self._pool.capacity:
            self._residents.drop(call)
            out.append(Refused(call.ticket, now_us, "KV_TOO_SMALL"))
        else:
            self.enqueue(call, now_us)


def equal_chunks(left: list[int], budget: int, unit: int) -> list[int]:
    """Of prompts with so many tokens left each, what a step of `budget` tokens computes.

    They take `unit` tokens, or what is left, in turns until nothing fits: TensorRT-LLM's EQUAL_PROGRESS
    (`MicroBatchScheduler::setCtxRequestsChunkSize`). Where the budget is less than a unit the first gets all of it.
    """
    if sum(left) <= budget:
        return left
    if budget < unit:
        return [min(budget, left[0]), *[0] * (len(left) - 1)]
    chunks, fits = [0] * len(left), True
    while fits:
        fits = False
        open_ = [i for i, tokens in enumerate(left) if chunks[i] < tokens]
        turns = min(budget // len(open_), *[left[i] - chunks[i] for i in open_]) // unit  # that all of them take whole
        for i in open_:
            more = min(max(turns, 1) * unit, left[i] - chunks[i])
            if more <= budget:
                chunks[i] += more
                budget -= more
                fits = True
    return chunks
