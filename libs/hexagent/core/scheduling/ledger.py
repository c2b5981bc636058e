"""The scheduler's book of the cluster: who runs where, what is reserved, when each part is predicted to be free."""

from enum import IntEnum

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.tables import StepTable
from hexagent.core.ids import Ticket
from hexagent.core.instance.io import PrefixSegment
from hexagent.core.instance.needs import ANYTHING, Needs, serves
from hexagent.core.instance.spec import PROFILES, EngineProfile, InstanceSpec, Role
from hexagent.core.scheduling.beliefs import CacheBelief, Reuse
from hexagent.core.scheduling.calls import Call
from hexagent.core.scheduling.events import Phase
from hexagent.core.scheduling.links import Receiver, Sender, Transfer
from hexagent.core.units import scale_ppm
from hexagent.core.workflow.model import SegmentRef


class Mixing(IntEnum):
    """Which instances do both phases of a call, without a hand-off, if their engine can."""

    NONE = 0
    DECODE = 1  # decode instances prefill what they will decode
    EITHER = 2  # that, and prefill instances decode what they have prefilled; neither where nothing is cached


class Attempt:
    """One dispatched attempt of a call and what it holds."""

    __slots__ = (
        "cached_tokens",
        "call",
        "decode",
        "give_up_us",
        "kv_tokens",
        "phase",
        "prefill",
        "prefill_end_us",
        "refused_by",
        "reserve_output_tokens",
        "ticket",
        "transfer_us",
    )

    def __init__(
        self, ticket: Ticket, call: Call, prefill: "Instance", decode: "Instance", reserve_output_tokens: int
    ) -> None:
        self.ticket = ticket
        self.call = call
        self.prefill = prefill
        self.decode = decode
        self.reserve_output_tokens = reserve_output_tokens
        self.kv_tokens = call.prompt_tokens + reserve_output_tokens
        self.cached_tokens = 0  # of the prompt, believed to be found
        self.phase = Phase.ACCEPTED
        self.prefill_end_us = 0  # predicted, then measured
        # Predicted time it keeps its decode side from a further call: its KV on the link there, or its prefill there.
        self.transfer_us = 0
        self.give_up_us = 0  # without an end by then it counts as lost
        self.refused_by: tuple[Instance, ...] = ()  # decode sides that have said no

    @property
    def local(self) -> bool:
        """Prefilled where it decodes: no hand-off."""
        return self.decode is self.prefill


class Instance:
    """Ledger of one instance. `prefilling` and `decoding` hold attempts in order of dispatch."""

    __slots__ = (
        "cache",
        "context_sum",
        "cordoned",
        "decoding",
        "down_reason",
        "draining",
        "kept_tokens",
        "local_us",
        "pinned_tokens",
        "prefill_free_us",
        "prefilling",
        "profile",
        "receiver",
        "reserved_tokens",
        "sender",
        "spare_us",
        "spec",
        "suspect_until_us",
        "table",
        "up",
        "wanted_role",
    )

    def __init__(self, spec: InstanceSpec, table: StepTable) -> None:
        self.spec = spec
        self.profile: EngineProfile = PROFILES[spec.profile]
        self.table = table
        self.up = False
        self.down_reason = ""  # as its agent or the scheduler says
        self.cache: CacheBelief | None = None  # None: the engine caches no prefixes, or is down
        self.cordoned = False
        self.draining = False  # its agent takes no new calls for it
        self.wanted_role: Role | None = None  # that it gets once it holds nothing; None: the one that it has
        self.suspect_until_us = 0  # an attempt got stuck here: no new calls until then
        self.prefilling: dict[Ticket, Attempt] = {}
        self.decoding: dict[Ticket, Attempt] = {}  # bound here: waiting, in flight or decoding
        self.prefill_free_us = 0  # predicted end of the prefill work dispatched here
        self.spare_us = 0  # by which prompts here may still be delayed by others that are computed beside them
        self.sender = Sender(self.profile.send_concurrency)
        self.receiver = Receiver()
        self.local_us = 0  # predicted time of prefills here of what decodes here as well, that have not ended
        self.pinned_tokens = 0  # prompts in prefill or waiting to be pulled
        self.reserved_tokens = 0
        self.kept_tokens = 0  # for a call that finds no room otherwise
        self.context_sum = 0  # over `decoding`: prompt plus half the predicted output

    @property
    def closed(self) -> bool:
        """To new calls, by an operator or by its agent."""
        return self.cordoned or self.draining or self.wanted_role is not None

    @property
    def usable(self) -> bool:
        return self.up and not self.closed and not self.suspect_until_us

    @property
    def holds_nothing(self) -> bool:
        return not (self.prefilling or self.decoding or self.pinned_tokens)

    @property
    def load(self) -> int:
        """Calls dispatched here that have not left; prefill alone keeps one until its prompt is computed."""
        return len(self.decoding if self.spec.role is Role.BOTH else self.prefilling)

    @property
    def kv_free_tokens(self) -> int:
        return self.spec.kv_tokens - self.reserved_tokens - self.pinned_tokens - self.kept_tokens

    def decode_step_us(self, estimator: Estimator, extra_batch: int, extra_context: int) -> int:
        """Predicted step time were `extra_batch` calls of `extra_context` tokens in sum bound here as well."""
        batch = len(self.decoding) + extra_batch
        context = (self.context_sum + extra_context) // max(batch, 1)
        step_us = self.table.decode_us(min(max(batch, 1), self.spec.max_batch), max(context, 1))
        return scale_ppm(step_us, estimator.speed_ppm(self.spec.instance_id)[1])

    def next_step_us(self, estimator: Estimator, calls: int = 0, context: int = 0) -> int:
        """Predicted step time with `calls` of `context` tokens in sum bound as well, and one more as is usual here."""
        bound, context = len(self.decoding) + calls, self.context_sum + context
        mean_context = (context + context // max(bound, 1)) // (bound + 1)
        step_us = self.table.decode_us(min(bound + 1, self.spec.max_batch), max(mean_context, 1))
        return scale_ppm(step_us, estimator.speed_ppm(self.spec.instance_id)[1])

    def kv_tokens_of(self, call: Call) -> int:
        """What the engine reserves for a call that decodes here: all it may need, or what is predicted."""
        return call.prompt_tokens + (call.max_tokens if self.profile.never_evicts else call.output_q90)


class Ledger:
    """Instances by id, in order of id, and the attempts they hold."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self.instances: dict[str, Instance] = {}
        self.attempts: dict[Ticket, Attempt] = {}
        self.changed: dict[str, Instance] = {}  # by id, since the last `changes`
        self.reuse = Reuse()

    def describe(self, spec: InstanceSpec) -> Instance:
        """Add the instance or take its new description; it becomes usable."""
        table = self._estimator.table(spec)
        instance = self.instances.get(spec.instance_id)
        if instance is None:
            self.instances[spec.instance_id] = Instance(spec, table)
            self.instances = dict(sorted(self.instances.items()))
            instance = self.instances[spec.instance_id]
        known = instance.spec
        instance.spec = spec
        instance.profile = PROFILES[spec.profile]
        instance.sender.servers = instance.profile.send_concurrency
        instance.table = table
        instance.up = True
        instance.down_reason = ""
        if not (spec.prefix_cache and instance.profile.block_reuse):
            instance.cache = None
        elif instance.cache is None or known.kv_blocks != spec.kv_blocks or known.block_tokens != spec.block_tokens:
            instance.cache = CacheBelief(spec)
        return instance

    def down(self, instance: Instance, reason: str) -> None:
        """It serves nothing, and what it had in memory is gone."""
        instance.up = False
        instance.down_reason = reason
        instance.cache = None

    def pool(
        self, model: str, mixing: Mixing = Mixing.NONE, needs: Needs = ANYTHING
    ) -> tuple[list[Instance], list[Instance]]:
        """Usable (prefill, decode) instances of a model that serve these needs, in order of id; with `EITHER` those of
        the other role last."""
        usable = [i for i in self.instances.values() if i.usable and i.spec.model == model and serves(i.spec, needs)]
        append = mixing is Mixing.DECODE
        prefill = [i for i in usable if i.spec.role is not Role.DECODE or (append and i.profile.local_prefill)]
        decode = [i for i in usable if i.spec.role is not Role.PREFILL]
        if mixing is Mixing.EITHER:
            able = [i for i in usable if i.profile.local_prefill and i.cache is not None]
            prefill += [i for i in able if i.spec.role is Role.DECODE]
            decode += [i for i in able if i.spec.role is Role.PREFILL]
        return prefill, decode

    def changes(self) -> list[Instance]:
        """Instances that hold more or less than the last time this was asked."""
        changed = list(self.changed.values())
        self.changed.clear()
        return changed

    def _change(self, instance: Instance) -> None:
        self.changed[instance.spec.instance_id] = instance

    def dispatched(
        self, attempt: Attempt, prefill_end_us: int, transfer_us: int, prefill_us: int = 0, beside: bool = False
    ) -> None:
        """An attempt was sent out; its prefill, `prefill_us` alone, follows on or shares the steps of those there."""
        prefill, call = attempt.prefill, attempt.call
        self._change(prefill)
        attempt.transfer_us = transfer_us
        self.attempts[attempt.ticket] = attempt
        attempt.prefill_end_us = prefill_end_us
        if beside:
            self._delay(prefill, prefill_us, prefill_end_us)
        else:
            # An empty instance is free whatever was predicted of the work that is done.
            free_us, spare_us = (prefill.prefill_free_us, prefill.spare_us) if prefill.prefilling else (0, 0)
            prefill.prefill_free_us, prefill.spare_us = max(free_us, prefill_end_us), spare_us + prefill_us
        prefill.prefilling[attempt.ticket] = attempt
        if prefill.cache is not None:
            kv_tokens = attempt.kv_tokens if attempt.local else call.prompt_tokens
            attempt.cached_tokens = prefill.cache.begin(attempt.ticket, call.chain, call.prompt_tokens, kv_tokens)
        if not attempt.local:
            prefill.pinned_tokens += call.prompt_tokens
        self._bind(attempt)

    def _delay(self, prefill: Instance, prefill_us: int, after_us: int) -> None:
        """Prompts there that would be computed after `after_us` are so much later."""
        prefill.prefill_free_us += prefill_us
        prefill.spare_us -= prefill_us
        for attempt in prefill.prefilling.values():
            if attempt.prefill_end_us > after_us:
                attempt.prefill_end_us += prefill_us
                transfer = prefill.sender.pending.get(attempt.ticket)
                if transfer is not None:
                    transfer.ready_us += prefill_us
                    self._predict_arrivals(attempt.decode)

    def rebound(self, attempt: Attempt, decode: Instance) -> None:
        """The attempt decodes elsewhere than it was bound."""
        self._unbind(attempt)
        attempt.decode = decode
        self._bind(attempt)

    def _bind(self, attempt: Attempt) -> None:
        decode = attempt.decode
        self._change(decode)
        decode.decoding[attempt.ticket] = attempt
        decode.reserved_tokens += attempt.kv_tokens
        decode.context_sum += attempt.call.mean_context
        if attempt.phase < Phase.DECODING:
            self._await_kv(attempt)

    def _unbind(self, attempt: Attempt) -> None:
        if attempt.decode.decoding.pop(attempt.ticket, None) is not None:
            self._change(attempt.decode)
            attempt.decode.reserved_tokens -= attempt.kv_tokens
            attempt.decode.context_sum -= attempt.call.mean_context
            if attempt.phase < Phase.DECODING:
                self._forget_kv(attempt)

    def _await_kv(self, attempt: Attempt) -> None:
        if attempt.local:
            attempt.decode.local_us += attempt.transfer_us
            return
        sender, receiver = attempt.prefill.sender, attempt.decode.receiver
        transfer = Transfer(attempt.ticket, sender, attempt.prefill_end_us, attempt.transfer_us)
        sender.pending[attempt.ticket] = receiver.pending[attempt.ticket] = transfer
        self._change(attempt.prefill)
        self._predict_arrivals(attempt.decode)

    def _forget_kv(self, attempt: Attempt) -> None:
        if attempt.local:
            attempt.decode.local_us -= attempt.transfer_us
            self._change(attempt.decode)
            return
        del attempt.prefill.sender.pending[attempt.ticket], attempt.decode.receiver.pending[attempt.ticket]
        self._change(attempt.prefill)
        self._predict_arrivals(attempt.decode)

    def _predict_arrivals(self, decode: Instance) -> None:
        self._change(decode)
        for ticket in decode.receiver.predict():
            self._change(self.attempts[ticket].prefill)

    def prefill_ended(self, attempt: Attempt, at_us: int) -> None:
        """The slot is free; the prompt stays pinned until `kv_left`."""
        if attempt.prefill.prefilling.pop(attempt.ticket, None) is not None:
            self._change(attempt.prefill)
            attempt.prefill_end_us = at_us
            transfer = attempt.prefill.sender.pending.get(attempt.ticket)
            if transfer is not None:
                transfer.ready_us = at_us
                self._predict_arrivals(attempt.decode)

    def prefilled(self, attempt: Attempt, at_us: int, cached_tokens: int) -> None:
        """The prompt is computed, of which the engine had `cached_tokens` already."""
        self.prefill_ended(attempt, at_us)
        if attempt.local:
            self.kv_left(attempt)
        call, cache = attempt.call, attempt.prefill.cache
        if cache is not None:
            hits = (attempt.cached_tokens, cached_tokens)
            cache.computed(attempt.ticket, call.chain, call.prompt_tokens, *hits)
            self.reuse = self.reuse.plus(call.prompt_tokens, *hits)

    def kv_arrived(self, attempt: Attempt, at_us: int) -> None:
        """The decode side has the KV."""
        attempt.decode.receiver.last_us = max(attempt.decode.receiver.last_us, at_us)
        self.kv_left(attempt)
        call = attempt.call
        if attempt.prefill.cache is not None:
            attempt.prefill.cache.end(attempt.ticket)
        if attempt.decode.cache is not None:
            attempt.decode.cache.arrived(attempt.ticket, call.chain, call.prompt_tokens, attempt.kv_tokens)

    def output_stays(self, attempt: Attempt, output: SegmentRef) -> None:
        """The call ended with `output`, whose KV, but for the last token, is in the decode side's cache."""
        cache, call = attempt.decode.cache, attempt.call
        if cache is not None and output.digest and output.tokens > 1:
            chain = (*call.chain, PrefixSegment(output.digest, output.tokens))
            cache.keep(chain, call.prompt_tokens + output.tokens - 1)

    def kv_left(self, attempt: Attempt) -> None:
        """The decode side has the KV, or nobody needs it."""
        if attempt.phase < Phase.DECODING:
            if not attempt.local:
                attempt.prefill.pinned_tokens -= attempt.call.prompt_tokens
            self._forget_kv(attempt)
            attempt.phase = Phase.DECODING

    def ended(self, attempt: Attempt, at_us: int) -> None:
        """The attempt holds nothing any more."""
        if attempt.ticket in self.attempts:
            self.prefill_ended(attempt, at_us)
            self.kv_left(attempt)  # before `_unbind`, which no longer counts a transfer then
            self._unbind(attempt)
            del self.attempts[attempt.ticket]
            for instance in (attempt.prefill, attempt.decode):
                if instance.cache is not None:
                    instance.cache.end(attempt.ticket)

    def keep(self, instance: Instance, tokens: int) -> None:
        """So much of its KV is for one call that waits, 0 = none."""
        instance.kept_tokens = tokens
        self._change(instance)

    def could_hold(self, call: Call, mixing: Mixing) -> bool:
        """Whether a usable instance of each phase is large enough for the call, were it empty."""
        prefill, decode = self.pool(call.model, mixing, call.needs)
        room = any(p.spec.kv_tokens >= call.prompt_tokens for p in prefill)
        return room and any(d.spec.kv_tokens >= d.kv_tokens_of(call) for d in decode)

    def held_by(self, instance: Instance) -> list[Attempt]:
        """Attempts that are lost when the instance is; those past their transfer no longer need its prefill side."""
        return [
            a
            for a in self.attempts.values()
            if a.decode is instance or (a.prefill is instance and a.phase < Phase.DECODING)
        ]
