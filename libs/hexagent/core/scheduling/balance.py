"""Roles that change with the load: what a change brings while the load lasts, held against what it costs.

Both sides are calls at a time, in thousandths. Of n prefill instances that are busy for a share rho of their time,
rho^sqrt(2 (n + 1)) / (1 - rho) calls wait (Sakasegawa's approximation of M/M/n). A decode batch that is smaller takes
shorter steps, which spares the share of its calls by which they are shorter. The load is expected to last as long as it
has lasted: with T the time for which a change has been worth it, one that takes c pays once

    gain (T - c) > loss T.

Both are smoothed over some seconds, and have to say the same at the moment.
"""

from collections.abc import Mapping, Sized
from math import isqrt
from typing import Final

from hexagent.core.errors import FailedPrecondition
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import FLIPPED, Role
from hexagent.core.scheduling.effects import ChangeRole
from hexagent.core.scheduling.flips import Flips
from hexagent.core.scheduling.ledger import Instance, Ledger
from hexagent.core.units import MILLI, PPM, US_PER_S, scale_ppm

LOOKS: Final = 8  # over which what is seen is smoothed; one a tick
DWELL_US: Final = 15 * US_PER_S  # for which a change has to be worth it at least
WORTH_MILLI: Final = 1_250  # gain over loss
LEAST_MILLI: Final = 25  # gain for each call that decodes
BUSY_MAX_PPM: Final = 980_000
KV_MAX_PPM: Final = 800_000  # reserved of what the other decode instances hold
NEVER_MILLI: Final = 1_000_000_000  # loss of what the others could not take over
PROMPT_TOKENS: Final = 1_000  # by which instances are compared
BATCH: Final = 8


class _Model:
    """What is seen of one model, smoothed; by the role that an instance would give up."""

    def __init__(self) -> None:
        self.busy_ppm = 0  # of prefill capacity
        self.queued_milli = 0  # calls that wait
        self.gain_milli = dict.fromkeys(FLIPPED, 0)
        self.loss_milli = dict.fromkeys(FLIPPED, 0)
        self.since_us: dict[Role, int] = {}  # when a change began to be worth it


class Balance:
    """Changes one instance of a model at a time, if that takes `cost_us_max` at most; 0 = none."""

    def __init__(self, ledger: Ledger, flips: Flips, estimator: Estimator, cost_us_max: int) -> None:
        self._ledger, self._flips, self._estimator = ledger, flips, estimator
        self._cost_us_max = cost_us_max
        self._models: dict[str, _Model] = {}

    def look(self, waiting: Mapping[str, Sized], now_us: int) -> list[ChangeRole]:
        """To be asked at every tick; `waiting` are calls by model."""
        if not self._cost_us_max:
            return []
        under_way = {i.spec.model for i in self._ledger.instances.values() if i.wanted_role is not None}
        models = [model for model in waiting if model not in under_way]
        return [change for model in models for change in self._look_at(model, len(waiting[model]), now_us)]

    def _look_at(self, model: str, calls: int, now_us: int) -> list[ChangeRole]:
        seen = self._models.setdefault(model, _Model())
        prefill, decode = self._ledger.pool(model)
        if not prefill or not decode:
            return []
        capacity = sum(map(self._prompts_per_s, prefill))
        busy_ppm = sum(self._prompts_per_s(i) for i in prefill if i.prefilling) * PPM // capacity
        seen.busy_ppm = _smoothed(seen.busy_ppm, busy_ppm)
        seen.queued_milli = _smoothed(seen.queued_milli, calls * MILLI)
        least_milli = max(sum(len(d.decoding) for d in decode) * LEAST_MILLI, MILLI // 10)
        for role in FLIPPED:
            instance = self._candidate(prefill if role is Role.PREFILL else decode, role)
            if instance is None:
                continue
            weigh = self._without_prefill if role is Role.PREFILL else self._without_decode
            gain_milli, loss_milli = weigh(instance, prefill, decode, seen.busy_ppm, seen.queued_milli)
            if loss_milli == NEVER_MILLI:
                seen.since_us.pop(role, None)
                continue
            seen.gain_milli[role] = _smoothed(seen.gain_milli[role], gain_milli)
            seen.loss_milli[role] = _smoothed(seen.loss_milli[role], loss_milli)
            if self._pays(instance, role, seen, least_milli, now_us):
                gain_milli, loss_milli = weigh(instance, prefill, decode, busy_ppm, calls * MILLI)
                if gain_milli > loss_milli:  # still, at this moment
                    seen.since_us.clear()
                    return [self._flips.want(instance, FLIPPED[role])]
        return []

    def _candidate(self, pool: list[Instance], role: Role) -> Instance | None:
        """Who decodes fastest joins decode first and leaves it last."""
        able = [
            i
            for i in pool
            if i.spec.role is role and i.spec.flip is not None and i.spec.flip.cost_us <= self._cost_us_max
        ]
        if len(pool) < 2 or not able:
            return None
        sign = -1 if role is Role.PREFILL else 1
        return min(able, key=lambda i: (sign * self._tokens_per_s(i), i.spec.instance_id))

    def _pays(self, instance: Instance, role: Role, seen: _Model, least_milli: int, now_us: int) -> bool:
        gain_milli, loss_milli = seen.gain_milli[role], max(seen.loss_milli[role], 0)
        if gain_milli * MILLI <= max(loss_milli, least_milli) * WORTH_MILLI:
            seen.since_us.pop(role, None)
            return False
        lasts_us = now_us - seen.since_us.setdefault(role, now_us)
        assert instance.spec.flip is not None
        left_us = lasts_us - instance.spec.flip.cost_us - self._drain_us(instance)
        if lasts_us < DWELL_US or left_us <= 0 or gain_milli * left_us <= loss_milli * lasts_us:
            return False
        try:
            self._flips.check(instance, FLIPPED[role])
        except FailedPrecondition:
            return False
        return True

    # --- gain and loss ----------------------------------------------------------------------------------------
    def _without_prefill(
        self, instance: Instance, prefill: list[Instance], decode: list[Instance], busy_ppm: int, queued_milli: int
    ) -> tuple[int, int]:
        capacity, tokens_per_s = sum(map(self._prompts_per_s, prefill)), sum(map(self._tokens_per_s, decode))
        then_ppm = busy_ppm * capacity // max(capacity - self._prompts_per_s(instance), 1)
        now_milli = _queued_milli(len(prefill), busy_ppm)
        loss_milli = _queued_milli(len(prefill) - 1, then_ppm) - now_milli if then_ppm < PPM else NEVER_MILLI
        share_ppm = tokens_per_s * PPM // (tokens_per_s + self._tokens_per_s(instance))
        return self._spared_milli(decode, share_ppm), loss_milli

    def _without_decode(
        self, instance: Instance, prefill: list[Instance], decode: list[Instance], busy_ppm: int, queued_milli: int
    ) -> tuple[int, int]:
        capacity, tokens_per_s = sum(map(self._prompts_per_s, prefill)), sum(map(self._tokens_per_s, decode))
        then_ppm = busy_ppm * capacity // (capacity + self._prompts_per_s(instance))
        now_milli, then_milli = _queued_milli(len(prefill), busy_ppm), _queued_milli(len(prefill) + 1, then_ppm)
        spared_milli = max(now_milli, queued_milli) * max(now_milli - then_milli, 0) // max(now_milli, 1)
        room = sum(d.spec.kv_tokens for d in decode if d is not instance)
        if sum(d.reserved_tokens for d in decode) > scale_ppm(room, KV_MAX_PPM):
            return spared_milli, NEVER_MILLI
        share_ppm = tokens_per_s * PPM // max(tokens_per_s - self._tokens_per_s(instance), 1)
        return spared_milli, -self._spared_milli(decode, share_ppm)

    def _spared_milli(self, decode: list[Instance], share_ppm: int) -> int:
        """Decoding calls that are spared, were there `share_ppm` of them on each instance; negative = more."""
        spared = 0
        for d in decode:
            if batch_milli := len(d.decoding) * MILLI:
                now_us, then_us = _token_us(d, batch_milli), _token_us(d, scale_ppm(batch_milli, share_ppm))
                spared += batch_milli * (now_us - then_us) // max(now_us, 1)
        return spared

    def _prompts_per_s(self, instance: Instance) -> int:
        prefill_ppm, _ = self._estimator.speed_ppm(instance.spec.instance_id)
        return US_PER_S * MILLI // scale_ppm(instance.table.prefill_us(PROMPT_TOKENS), prefill_ppm)

    def _tokens_per_s(self, instance: Instance) -> int:
        _, decode_ppm = self._estimator.speed_ppm(instance.spec.instance_id)
        return US_PER_S * MILLI // scale_ppm(instance.table.decode_us(BATCH, PROMPT_TOKENS), decode_ppm)

    def _drain_us(self, instance: Instance) -> int:
        """Predicted time until what it decodes has ended."""
        longest = max((attempt.call.output_q50 for attempt in instance.decoding.values()), default=0)
        return longest * instance.decode_step_us(self._estimator, 0, 0)


def _smoothed(known: int, seen: int) -> int:
    return known + (seen - known) // LOOKS


def _queued_milli(servers: int, busy_ppm: int) -> int:
    busy_ppm = min(busy_ppm, BUSY_MAX_PPM)
    power_ppm = PPM
    for _ in range(isqrt(2 * (servers + 1))):
        power_ppm = scale_ppm(power_ppm, busy_ppm)
    return power_ppm * MILLI // (PPM - busy_ppm)


def _token_us(instance: Instance, batch_milli: int) -> int:
    """Time of a token in such a batch; what is beyond the largest one waits."""
    most, whole = instance.spec.max_batch, batch_milli // MILLI
    context = max(instance.context_sum // max(len(instance.decoding), 1), 1)
    below_us, above_us = (instance.table.decode_us(min(max(b, 1), most), context) for b in (whole, whole + 1))
    step_us = below_us + (above_us - below_us) * (batch_milli - whole * MILLI) // MILLI
    return step_us * max(batch_milli, most * MILLI) // (most * MILLI)
