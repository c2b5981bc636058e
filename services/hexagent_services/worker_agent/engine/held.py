"""What an engine that runs elsewhere has been given: attempts from arrival until the engine holds nothing of them.

Some come free only long after everybody has left them. One that never does means a broken engine.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from hexagent.core.ids import Ticket
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import Incidents
from hexagent.runtime.clock import Clock
from hexagent_services.worker_agent.engine.admission import FIRST_RANK, Admission, Claim
from hexagent_services.worker_agent.engine.host_link import HostLink
from hexagent_services.worker_agent.engine.host_process import Host
from hexagent_services.worker_agent.engine.observed import Observed
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.port import EngineAborted, EngineRefused, EngineRequest
from hexagent_services.worker_agent.engine.run import Kind, Phase, Run
from hexagent_services.worker_agent.engine.watchdog import Watchdog
from hexagent_services.worker_agent.engine_host.frames import Frame

USED_UP: Final = "used_up"  # event in the place of an end that is only a lease's
_ENDS_PREFILL: Final = ("stop", "length", "not_finished")
_IN_ENGINE: Final = (Phase.COMPUTING, Phase.PULLING, Phase.DECODING)
_MOVES: Final = (Phase.COMPUTING, Phase.DECODING)  # whatever others do; a pull has its own timeout


class Held:
    """`runs` are those that somebody waits for, `by_number` all that the engine may hold something of or that wait."""

    def __init__(self, spec: InstanceSpec, host: Host, clock: Clock, options: TrtllmOptions) -> None:
        self.link: Final = HostLink(host, self.hear, self._forget_all)
        self.observed: Final = Observed(spec)
        self.runs: dict[Ticket, Run] = {}
        self.by_number: dict[int, Run] = {}
        self.admission = Admission(spec)
        self._spec = spec
        self._clock = clock
        self._options = options
        self._numbers = 0
        self._dropped_hand_offs = 0  # prefilled, never pulled: their blocks were held until the timeout
        self._watchdog = Watchdog(options.stall_s, lambda: self._count(_MOVES), self.link.give_up)

    def watch(self) -> None:
        """The engine has been loaded: from here on it must move."""
        self._watchdog.start()

    # --- what it is given -------------------------------------------------------------------------------------
    def open(self, request: EngineRequest, kind: Kind) -> Run:
        if not self.link.up:
            raise EngineRefused("ENGINE_DOWN")
        self._numbers += 1
        run = Run(self._numbers, kind, request, self._clock.now_us())
        self.runs[run.ticket] = self.by_number[run.number] = run
        return run

    def claim(self, run: Run, tokens: int, *, decodes: bool) -> None:
        """Let it wait for room. `EngineRefused` where there can never be enough."""
        if run.number not in self.by_number:
            return  # aborted or refused meanwhile, which it is told when it asks for room
        longest = tokens + run.request.max_tokens - run.lease
        if longest > self._options.max_seq_tokens:
            raise EngineRefused("TOO_LONG_FOR_ENGINE")
        if self.admission.need(longest) > self._spec.kv_blocks:
            raise EngineRefused("KV_TOO_SMALL")
        blocks = self.admission.need(tokens)
        if blocks > self.admission.capacity:
            raise EngineRefused("KV_SHRUNK")  # by leaks, or the engine had less memory than described
        computes = 0 if run.kind is Kind.DECODE else len(run.prompt_ids)
        rank = FIRST_RANK if run.renewed else run.request.rank  # what has begun does not wait for what has not
        self.admission.add(Claim(rank, run.number, blocks, computes, decodes))
        self._pump()

    def submit(self, run: Run, order: dict[str, Any], phase: Phase) -> None:
        """Give it to the engine, unless it has been told why not."""
        if run.number in self.by_number:
            run.phase = phase
            run.submitted_us = run.submitted_us or self._clock.now_us()
            self.link.send(order | {"id": run.number}, run.prompt_ids)

    def drop(self, run: Run) -> None:
        """Nobody waits for it any more; what the engine holds of it comes free when the engine says so."""
        self._forget(run)
        if run.phase is Phase.WAITING:
            self.release(run)
        elif run.phase is Phase.PINNED:
            self._dropped_hand_offs += 1
        else:
            self.link.send({"op": "abort", "id": run.number})
            self._after(2 * self._options.hand_off_s, self._still_there, run)

    def leave(self, run: Run) -> None:
        """As `drop`, unless it has ended or is dropped already."""
        if self.runs.get(run.ticket) is run:
            self.drop(run)

    def abort(self, ticket: Ticket) -> None:
        run = self.runs.get(ticket)
        if run is not None:
            run.tell(EngineAborted(run.output_tokens))
            self.drop(run)

    def release(self, run: Run) -> None:
        """The engine holds nothing of it."""
        if self.by_number.pop(run.number, None) is not None:
            self._forget(run)
            self.admission.withdraw(run.number)
            self._pump()

    def _pump(self) -> None:
        for number in self.admission.admitted():
            self.by_number[number].tell(None)

    def _forget(self, run: Run) -> None:
        run.left = True
        if self.runs.get(run.ticket) is run:
            del self.runs[run.ticket]

    def _forget_all(self) -> None:
        """The engine is gone, and with it everything on it."""
        self._watchdog.stop()
        for run in self.by_number.values():
            run.tell(EngineRefused("ENGINE_LOST"))
        self.runs.clear()
        self.by_number.clear()
        self.admission = Admission(self._spec)
        self.observed.forget_cache()

    def _still_there(self, run: Run) -> None:
        if run.number in self.by_number:
            self.link.give_up(f"an aborted request does not end: {run.ticket}")

    def _after(self, delay_s: float, action: Callable[[Run], None], run: Run) -> None:
        asyncio.get_running_loop().call_later(delay_s, action, run)

    # --- what the engine says ---------------------------------------------------------------------------------
    def hear(self, frame: Frame) -> None:
        self._watchdog.progressed()
        if frame.body["event"] == "stats":
            self._on_stats(frame.body)
        elif (run := self.by_number.get(frame.body["id"])) is not None:
            self._on_said(run, frame)

    def _on_said(self, run: Run, frame: Frame) -> None:
        event, finish = frame.body["event"], frame.body.get("finish")
        run.output_ids.extend(frame.ids)
        run.timing = {**run.timing, **frame.body.get("timing", {})}
        if finish == "length" and run.lease < run.request.max_tokens and not run.left:
            self._renew(run, frame)
            return
        if event == "prefilled" and finish in _ENDS_PREFILL:
            self.admission.computed(run.number)
            run.phase = Phase.PINNED
            self._after(self._options.hand_off_s, self.release, run)
            self._dropped_hand_offs += run.left
        elif event == "first":
            self.admission.computed(run.number)
            run.phase = Phase.DECODING
        elif event in ("prefilled", "ended"):
            self.release(run)
        run.tell(frame)
        self._pump()

    def _renew(self, run: Run, frame: Frame) -> None:
        """Its lease is used up: what comes behind is another request, which waits for room before all others."""
        run.tell(Frame({"event": USED_UP}, frame.ids))
        del self.by_number[run.number]
        self.admission.withdraw(run.number)
        self._numbers += 1
        run.renew(self._numbers, self._clock.now_us())
        self.by_number[run.number] = run
        try:
            self.claim(run, len(run.prompt_ids) + run.leased_tokens, decodes=True)
        except EngineRefused as error:
            run.tell(error)
            self.release(run)

    def _on_stats(self, stats: Mapping[str, Any]) -> None:
        self.observed.take_stats(stats, self.by_number.values(), self._clock.now_us())
        # A sample that shows more is older than the end of a request, whose blocks it still counts.
        if stats["active"] <= self._count(_IN_ENGINE):
            self.admission.observe(stats["used_blocks"], stats["max_blocks"])
        if self.admission.leaked_blocks * 2 > self._spec.kv_blocks:
            self.link.give_up(f"{self.admission.leaked_blocks} KV blocks leaked")

    def _count(self, phases: Collection[Phase]) -> int:
        return sum(run.phase in phases for run in self.by_number.values())

    # --- what is told of it -----------------------------------------------------------------------------------
    def load(self) -> InstanceLoad:
        return self.observed.load(self.by_number.values(), self.admission.used_blocks, self.admission.capacity)

    def incidents(self) -> Incidents:
        return self.observed.incidents(self._dropped_hand_offs, self.admission.leaked_blocks)
