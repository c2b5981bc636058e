"""The data plane of a simulated cluster: instances, hand-offs between them, and what agents report.

Of a call's progress only the phases go to the scheduler that some decision looks at.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from hexagent.core.estimate.links import described
from hexagent.core.estimate.snapshot import LinkFit, SpeedFactor
from hexagent.core.estimate.variants import table_of
from hexagent.core.ids import Ticket
from hexagent.core.instance.io import (
    Abort,
    DecodeStarted,
    Ended,
    InstanceEffect,
    InstanceInput,
    KvArrived,
    KvLost,
    KvReady,
    KvSent,
    Prefill,
    PrefillDone,
    PrefillStarted,
    PullKv,
    Refused,
    Reserve,
    SendKv,
    StepDone,
    Work,
)
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.samples import SampleBuffer
from hexagent.core.instance.spec import PROFILES, ClusterSpec, FlipWay, HandOff, InstanceSpec, Role
from hexagent.core.instance.telemetry import Telemetry, TransferSample
from hexagent.core.scheduling.events import CallProgress, InstanceDown, InstanceUp, Phase
from hexagent.core.units import NEVER_US, PPM
from hexagent.core.workflow.model import CallOutcome, CallTimes, FinishReason, NodeStatus, SegmentRef
from hexagent.sim.conditions import Conditions

Reported = CallProgress | InstanceUp | InstanceDown
Schedule = Callable[..., None]  # (at_us, action, *arguments)


class Latency(NamedTuple):
    """One-way control latencies in microseconds; by default about what `hexagent bench fidelity` measures of a live
    stack whose two cores are not full."""

    request_us: int = 4_000  # client to tracker
    update_us: int = 3_000  # tracker to client
    outcome_us: int = 3_000  # agent to tracker, through a stream
    event_us: int = 2_000  # tracker to scheduler and back, through a stream
    dispatch_us: int = 3_000  # scheduler to agent
    progress_us: int = 2_500  # agent to scheduler
    agent_us: int = 2_000  # agent to agent

    @classmethod
    def even(cls, way_us: int) -> "Latency":
        """Every way takes the same."""
        return cls(*[way_us] * len(cls._fields))


class Flight:
    """One attempt on its way through the cluster, as its agents know it."""

    __slots__ = (
        "asked_us",
        "cached_tokens",
        "decode",
        "decode_start_us",
        "dispatched_us",
        "kv_bytes",
        "over",
        "prefill",
        "prefill_end_us",
        "prefill_start_us",
        "rank",
        "ticket",
        "transfer_end_us",
        "transfer_start_us",
        "work",
    )

    def __init__(self, work: Work, prefill: str, decode: str, rank: int, dispatched_us: int) -> None:
        self.work = work
        self.ticket = work.ticket
        self.prefill = prefill
        self.decode = decode
        self.rank = rank
        self.cached_tokens = 0
        self.kv_bytes = 0
        self.asked_us = 0  # for its KV
        self.over = False  # cancelled: only transfers that run are still seen to their end
        # As in `CallTimes`:
        self.dispatched_us = dispatched_us
        self.prefill_start_us = 0
        self.prefill_end_us = 0
        self.transfer_start_us = 0
        self.transfer_end_us = 0
        self.decode_start_us = 0

    @property
    def local(self) -> bool:
        return self.decode == self.prefill

    def times(self, end_us: int) -> CallTimes:
        """Of a call that ends now; its first token is there when its prompt is computed."""
        return CallTimes(
            self.dispatched_us,
            self.prefill_start_us,
            self.prefill_end_us,
            self.transfer_start_us,
            self.transfer_end_us,
            self.decode_start_us,
            self.prefill_end_us,
            end_us,
        )


class Station:
    """One instance, the wake-up the heap holds for it, and its telemetry since the last report."""

    __slots__ = ("model", "push", "samples", "spec", "truth", "wake_us")

    def __init__(self, spec: InstanceSpec, cluster: ClusterSpec, conditions: Conditions) -> None:
        table = table_of(spec, cluster.tables)
        profile = PROFILES[spec.profile]
        self.truth = Truth.drawn(cluster, spec.instance_id, conditions.prefill_factor_ppm, conditions.decode_factor_ppm)
        self.spec = spec
        self.model = InstanceModel(spec, profile, table, table.kv_bytes_per_token, self.truth)
        self.push = profile.hand_off is HandOff.PUSH
        self.wake_us = NEVER_US
        self.samples = SampleBuffer()


class Fleet:
    """Instances by id; reports progress, their own changes and outcomes through the callables it is given."""

    def __init__(
        self,
        cluster: ClusterSpec,
        conditions: Conditions,
        latency: Latency,
        schedule: Schedule,
        report: Callable[[Reported, int], None],
        finish: Callable[[CallOutcome, int], None],
    ) -> None:
        self.stations = {spec.instance_id: Station(spec, cluster, conditions) for spec in cluster.instances}
        self._latency = latency
        self._schedule = schedule
        self._report = report
        self._finish = finish
        self._flights: dict[Ticket, Flight] = {}
        self._now_us = 0
        self._on: dict[type, Callable[[Station, Flight, InstanceEffect], None]] = {
            PrefillStarted: self._prefill_started,
            PrefillDone: self._prefill_done,
            PullKv: self._pull_kv,
            KvSent: self._kv_sent,
            DecodeStarted: self._decode_started,
            Ended: self._ended,
            Refused: self._refused,
        }

    # --- what the scheduler asks for --------------------------------------------------------------------------
    def prefill(self, instance_id: str, flights: tuple[Flight, ...], now_us: int) -> None:
        """Dispatches of one plan arrive together, so that they can share a step."""
        for flight in flights:
            self._flights[flight.ticket] = flight
        inputs = tuple([Prefill(flight.work, flight.rank, flight.local) for flight in flights])
        self._handle(instance_id, inputs, now_us)

    def bind(self, ticket: Ticket, decode: str, now_us: int) -> None:
        """The hand-off goes to `decode`: KV is pinned, so this follows a refusal there or here."""
        flight = self._flights.get(ticket)
        if flight is not None and not flight.over:
            flight.decode = decode
            self._to(decode, Reserve(flight.work, flight.prefill, True, flight.rank), now_us)

    def cancel(self, ticket: Ticket, now_us: int) -> None:
        flight = self._flights.get(ticket)
        if flight is None:
            return
        flight.over = True
        for instance_id in dict.fromkeys((flight.prefill, flight.decode)):
            self._handle(instance_id, (Abort(ticket),), now_us)

    def change_role(self, instance_id: str, role: Role, now_us: int) -> None:
        """An instance that holds nothing changes its role; one that is started again for that is down meanwhile."""
        station = self.stations[instance_id]
        flip = station.spec.flip
        assert flip is not None  # the scheduler asks no other
        restarts = flip.way is FlipWay.RESTART
        if restarts:
            reason = f"its role changes to {role.name.lower()}"
            self._tell(InstanceDown(instance_id, now_us, reason, station.spec), now_us)
        self._schedule(now_us + flip.cost_us, self._changed, station, role, restarts)

    def _changed(self, station: Station, role: Role, started_again: bool, now_us: int) -> None:
        if role is not station.spec.role:  # else it was asked for again while it changed
            station.model = station.model.in_role(role, started_again)
        station.spec = station.model.spec
        self._tell(InstanceUp(station.spec, (), now_us), now_us)

    def _tell(self, event: Reported, now_us: int) -> None:
        self._schedule(now_us + self._latency.progress_us, self._report, event)

    def telemetry(self, now_us: int) -> list[Telemetry]:
        """Reports since the last time, of the instances that have any."""
        return [
            Telemetry(station.spec.instance_id, now_us, station.model.load(now_us), *station.samples.take())
            for station in self.stations.values()
            if not station.samples.empty
        ]

    def speeds(self) -> tuple[SpeedFactor, ...]:
        """The true ones, as a snapshot holds learned ones."""
        return tuple(
            SpeedFactor(instance_id, station.truth.prefill_ppm, station.truth.decode_ppm, 0)
            for instance_id, station in sorted(self.stations.items())
        )

    def links(self) -> tuple[LinkFit, ...]:
        """The true ones, likewise: asking for KV and hearing of its arrival takes two messages."""
        besides_us = 2 * self._latency.agent_us
        fits: list[LinkFit] = []
        for source, target in product(sorted(self.stations), repeat=2):
            ends = self.stations[source], self.stations[target]
            if source != target and ends[0].spec.role is not Role.DECODE and ends[1].spec.role is not Role.PREFILL:
                ppm = ends[0].truth.link_ppm(source, target)
                setup_us = described(ends[0].spec, ends[1].spec).setup_us * ppm // PPM
                fits.append(LinkFit(source, target, setup_us, ppm, besides_us, 0))
        return tuple(fits)

    # --- time -------------------------------------------------------------------------------------------------
    def _to(self, instance_id: str, given: InstanceInput, now_us: int) -> None:
        self._schedule(now_us + self._latency.agent_us, self._handle, instance_id, (given,))

    def _handle(self, instance_id: str, inputs: tuple[InstanceInput, ...], now_us: int) -> None:
        station = self.stations[instance_id]
        self._settle(station, station.model.handle_all(inputs, now_us), now_us)

    def _wake(self, station: Station, now_us: int) -> None:
        if now_us < station.wake_us:
            return  # the instance was due here before something changed
        station.wake_us = NEVER_US
        self._settle(station, station.model.advance(now_us), now_us)

    def _settle(self, station: Station, effects: tuple[InstanceEffect, ...], now_us: int) -> None:
        """Act on effects, and wake the instance when it is due next; a wake-up that comes too soon is harmless."""
        self._now_us = now_us
        for effect in effects:
            if isinstance(effect, StepDone):
                station.samples.step(effect)
                continue
            flight = self._flights.get(effect.ticket)
            action = self._on.get(type(effect))
            if flight is not None and action is not None:
                action(station, flight, effect)
        due_us = station.model.next_due_us()
        if due_us < station.wake_us:
            station.wake_us = due_us
            self._schedule(due_us, self._wake, station)

    def _progress(
        self,
        station: Station,
        flight: Flight,
        phase: Phase,
        reason: str = "",
        output_tokens: int = 0,
        held_us: int = 0,
    ) -> None:
        """Tell the scheduler; the agent holds the report back for `held_us`."""
        if flight.over:
            return
        event = CallProgress(
            flight.ticket,
            phase,
            station.spec.instance_id,
            self._now_us,
            flight.cached_tokens,
            output_tokens,
            reason,
        )
        self._tell(event, self._now_us + held_us)

    # --- effects of instances ---------------------------------------------------------------------------------
    def _prefill_started(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        flight.prefill_start_us = self._now_us
        if station.push and not flight.local:
            self._to(flight.decode, Reserve(flight.work, flight.prefill, False, flight.rank), self._now_us)

    def _prefill_done(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        assert isinstance(effect, PrefillDone)
        flight.prefill_end_us = self._now_us
        flight.cached_tokens = effect.cached_tokens
        station.samples.reused_tokens += effect.cached_tokens
        if flight.over:
            return
        self._progress(station, flight, Phase.PREFILLED)
        if flight.local:
            return
        if effect.done:
            if station.push:
                self._to(flight.decode, Abort(flight.ticket), self._now_us)
        elif station.push:
            self._to(flight.decode, KvReady(flight.ticket), self._now_us)
        else:
            self._to(flight.decode, Reserve(flight.work, flight.prefill, True, flight.rank), self._now_us)

    def _pull_kv(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        assert isinstance(effect, PullKv)
        flight.asked_us = self._now_us
        link = station.spec.link
        asked = SendKv(flight.ticket, station.spec.instance_id, link.bytes_per_s, link.setup_us)
        self._to(effect.source, asked, self._now_us)

    def _kv_sent(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        """Set-up and bandwidth are in the transfer's duration; that it has ended, the receiver's agent has to hear."""
        assert isinstance(effect, KvSent)
        flight.transfer_start_us = effect.start_us
        flight.transfer_end_us = effect.end_us
        flight.kv_bytes = effect.kv_bytes
        duration_us = effect.end_us - effect.start_us
        held_us = self._now_us + self._latency.agent_us - flight.asked_us
        ends = (flight.prefill, effect.to_instance)
        sample = TransferSample(*ends, effect.start_us, duration_us, effect.kv_bytes, held_us)
        self.stations[effect.to_instance].samples.transfer(sample)
        self._to(effect.to_instance, KvArrived(flight.ticket), self._now_us)

    def _decode_started(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        flight.decode_start_us = self._now_us
        if not flight.local:
            self._progress(station, flight, Phase.DECODING)

    def _ended(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        assert isinstance(effect, Ended)
        if effect.aborted:
            return
        work = flight.work
        length = FinishReason.LENGTH if effect.output_tokens >= work.max_tokens else FinishReason.STOP
        outcome = CallOutcome(
            call=flight.ticket.call,
            attempt=flight.ticket.attempt,
            status=NodeStatus.SUCCEEDED,
            finish_reason=length,
            prompt_tokens=work.prompt_tokens,
            cached_tokens=flight.cached_tokens,
            output_tokens=effect.output_tokens,
            output=SegmentRef(work.output_digest, effect.output_tokens),
            prefill_instance=flight.prefill,
            decode_instance=flight.decode,
            kv_bytes=flight.kv_bytes,
            times=flight.times(self._now_us),
            decode_us=effect.decode_us,
        )
        stored_us = self._latency.outcome_us
        self._schedule(self._now_us + stored_us, self._finish, outcome)
        # The scheduler may forget the attempt only once its outcome is stored.
        self._progress(station, flight, Phase.ENDED, output_tokens=effect.output_tokens, held_us=stored_us)
        del self._flights[flight.ticket]

    def _refused(self, station: Station, flight: Flight, effect: InstanceEffect) -> None:
        """A refused transfer is the receiver's business, a refused hand-off the scheduler's; else it is lost."""
        assert isinstance(effect, Refused)
        if effect.to_instance:
            self._to(effect.to_instance, KvLost(flight.ticket), self._now_us)
        elif station.spec.instance_id == flight.decode and not flight.local and effect.reason != "KV_LOST":
            self._progress(station, flight, Phase.HAND_OFF_REFUSED, effect.reason)
        else:
            self._progress(station, flight, Phase.LOST, effect.reason)
