"""Attempts that agents hold when a scheduler attaches: they are booked, not dispatched again."""

from collections.abc import Callable

from hexagent.core.ids import CallId
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.events import HeldTicket, Phase
from hexagent.core.scheduling.ledger import Attempt, Instance, Ledger
from hexagent.core.scheduling.projection import Projection
from hexagent.core.scheduling.queue import ReadyQueue


class Adoption:
    """Books held attempts in `ledger` and `attempts`; `watch` says when to give one up."""

    def __init__(
        self,
        ledger: Ledger,
        projection: Projection,
        queue: ReadyQueue,
        attempts: dict[CallId, Attempt],
        watch: Callable[[Attempt, int, int], None],
    ) -> None:
        self._ledger, self._projection, self._queue = ledger, projection, queue
        self._attempts, self._watch = attempts, watch
        self._held: dict[CallId, HeldTicket] = {}  # what agents run, as they say before the start

    def hear(self, held: tuple[HeldTicket, ...], started: bool) -> None:
        """An agent says what an instance of its holds."""
        for ticket in held:
            self._hear_of(ticket, started)
        self._adopt_held(started)

    def start(self) -> None:
        """Attempts that could not be adopted are made again, as later ones; their agents drop the older."""
        for call_id in sorted(self._held):
            call = self._projection.find(call_id)
            if call is not None:
                call.attempts = max(call.attempts, self._held[call_id].ticket.attempt)
        self._held.clear()

    def _hear_of(self, held: HeldTicket, started: bool) -> None:
        """Before the start, when agents answer in any order, what comes first by `_precedence` is booked."""
        call_id = held.ticket.call
        other = self._held.get(call_id)
        if other is not None and _precedence(other) >= _precedence(held):
            return
        self._held[call_id] = held
        booked = self._attempts.get(call_id)
        if booked is not None and not started:
            self._ledger.ended(booked, booked.prefill_end_us)
            del self._attempts[call_id]
            booked.call.attempts = booked.ticket.attempt - 1
            self._queue.add(booked.call)

    def _adopt_held(self, started: bool) -> None:
        """Book attempts of which both instances are known: those of one agent come one by one."""
        for call_id in sorted(self._held):
            call, held = self._projection.find(call_id), self._held[call_id]
            if call is not None and call_id not in self._attempts:
                prefill = self._ledger.instances.get(held.instance_id)
                decode = self._ledger.instances.get(held.decode_instance or held.instance_id)
                if prefill is None or decode is None:
                    continue
                if held.ticket.attempt > call.attempts:
                    self._adopt(call, held, prefill, decode)
            if started:
                del self._held[call_id]

    def _adopt(self, call: Call, held: HeldTicket, prefill: Instance, decode: Instance) -> None:
        """Book an attempt that an agent already runs."""
        self._queue.remove(call)
        call.attempts = held.ticket.attempt
        attempt = Attempt(held.ticket, call, prefill, decode, held.reserve_output_tokens)
        self._attempts[call.call_id] = attempt
        self._ledger.dispatched(attempt, call.ready_us, 0)
        self._watch(attempt, call.ready_us, call.ready_us)
        if held.phase >= Phase.PREFILLED:
            self._ledger.prefill_ended(attempt, call.ready_us)
            attempt.phase = Phase.PREFILLED
        if held.phase >= Phase.DECODING:
            self._ledger.kv_left(attempt)


def _precedence(held: HeldTicket) -> tuple[int, int, int, bool, str]:
    """Whose word counts about a call that several agents hold: the latest attempt's, there the furthest one's.

    Between the two sides of a hand-off that of the prefill side, which names both instances.
    """
    ticket = held.ticket
    return ticket.attempt, ticket.epoch, held.phase, held.instance_id != held.decode_instance, held.instance_id
