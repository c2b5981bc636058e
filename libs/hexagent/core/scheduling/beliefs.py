"""What the scheduler believes engines have in their prefix caches, and how far that was right."""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from hexagent.core.ids import Ticket
from hexagent.core.instance.blocks import BlockPool, Holding
from hexagent.core.instance.io import PrefixSegment
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.units import PPM

JUDGED: Final = 32  # latest prefills with a hit, predicted or found, that drift is a mean of
JUDGED_MIN: Final = 8  # fewer say nothing
ALARM_PPM: Final = 250_000  # of the tokens predicted or found that were not both
CALM: Final = 128  # prefills with a hit and without an alarm after which twice as much is believed to be kept


class Drift:
    """How far predicted and reported hits of one instance have lately been apart, and whether that is an alarm."""

    __slots__ = ("_latest", "alarm", "alarms", "wrong_ppm")

    def __init__(self) -> None:
        self._latest: deque[tuple[int, int]] = deque(maxlen=JUDGED)  # tokens
        self.wrong_ppm = 0
        self.alarm = False
        self.alarms = 0  # ever begun

    def observe(self, predicted_tokens: int, reported_tokens: int) -> bool:
        """Whether this makes an alarm of too much that was predicted; judging then begins anew."""
        self._latest.append((predicted_tokens, reported_tokens))
        apart = sum([abs(predicted - reported) for predicted, reported in self._latest])
        self.wrong_ppm = apart * PPM // max(sum([max(pair) for pair in self._latest]), 1)
        if len(self._latest) < JUDGED_MIN:
            return False
        wrong = self.wrong_ppm > ALARM_PPM
        self.alarms += wrong and not self.alarm
        self.alarm = wrong
        missed = sum([predicted - reported for predicted, reported in self._latest])
        if not wrong or missed <= 0:
            return False
        self._latest.clear()
        return True


class CacheBelief:
    """The prefix cache of one instance, kept by the engine's own rules from what its attempts are known to do.

    What is not known in time, or not at all, makes it differ from the engine: so does every other user of the engine.
    When too much of what is predicted is not found, nothing is believed any more, as after an engine's restart; when
    that comes again soon, the engine keeps less than it could, and only half as much is believed to stay.
    """

    __slots__ = ("_calm", "_held", "_kept_max", "_pool", "drift")

    def __init__(self, spec: InstanceSpec) -> None:
        self._pool = BlockPool(spec.kv_blocks, spec.block_tokens, reuse=True)
        self._held: dict[Ticket, Holding] = {}
        self._kept_max = spec.kv_blocks  # blocks believed to stay though no attempt holds them
        self._calm = CALM  # prefills with a hit since the last alarm
        self.drift = Drift()

    @property
    def cached_blocks(self) -> int:
        """Blocks that are kept though no attempt holds them."""
        return self._pool.cached

    @property
    def block_tokens(self) -> int:
        return self._pool.block_tokens

    def match(self, chain: Sequence[PrefixSegment], prompt_tokens: int) -> int:
        """Tokens of a prompt that would be found if it came now."""
        return self._pool.match(chain, prompt_tokens)

    def watch(self) -> None:
        """From now on `changes` has something to say."""
        self._pool.changes = []

    def changes(self) -> list[PrefixSegment]:
        """Segments of which blocks came or went since the last time."""
        changed, self._pool.changes = self._pool.changes or [], []
        return changed

    def begin(self, ticket: Ticket, chain: Sequence[PrefixSegment], prompt_tokens: int, kv_tokens: int) -> int:
        """An attempt was dispatched to here. Returns the tokens of its prompt it should find."""
        holding = self._pool.take(self._pool.need(kv_tokens), chain, prompt_tokens)
        if holding is None:  # the engine lets it wait for room
            return self.match(chain, prompt_tokens)
        self._held[ticket] = holding
        return self._pool.cached_tokens(holding, prompt_tokens)

    def computed(
        self,
        ticket: Ticket,
        chain: Sequence[PrefixSegment],
        prompt_tokens: int,
        predicted_tokens: int,
        found_tokens: int,
    ) -> None:
        """Its prompt is computed, of which the engine had `found_tokens`; `begin` said `predicted_tokens`."""
        if predicted_tokens or found_tokens:
            self._judge(predicted_tokens, found_tokens)
        holding = self._held.get(ticket)
        if holding is not None:
            if found_tokens < self._pool.cached_tokens(holding, prompt_tokens):
                self._pool.missed(holding, found_tokens)
            self._pool.commit(holding, chain, prompt_tokens)

    def _judge(self, predicted_tokens: int, found_tokens: int) -> None:
        self._calm += 1
        if self.drift.observe(predicted_tokens, found_tokens):
            if self._calm < CALM:
                self._kept_max = max(self._pool.cached // 2, 1)
            self._calm = 0
            self._pool.trim(0)
        elif self._calm % CALM == 0:
            self._kept_max = min(2 * self._kept_max, self._pool.capacity)

    def arrived(self, ticket: Ticket, chain: Sequence[PrefixSegment], prompt_tokens: int, kv_tokens: int) -> None:
        """The KV of a prompt that was computed elsewhere is here."""
        holding = self._pool.take(self._pool.need(kv_tokens))
        if holding is not None:
            self._held[ticket] = holding
            self._pool.commit(holding, chain, prompt_tokens)

    def end(self, ticket: Ticket) -> None:
        """The attempt holds nothing here any more."""
        holding = self._held.pop(ticket, None)
        if holding is not None:
            self._pool.release(holding)
            self._pool.trim(self._kept_max)

    def keep(self, chain: Sequence[PrefixSegment], tokens: int) -> None:
        """The first `tokens` of `chain` stay behind an attempt that ended here."""
        holding = self._pool.take(self._pool.need(tokens), chain, tokens)
        if holding is not None:
            self._pool.commit(holding, chain, tokens)
            self._pool.release(holding)
            self._pool.trim(self._kept_max)


class Reuse(NamedTuple):
    """Prompt tokens of attempts on instances with a prefix cache, from prefills that ended."""

    attempts: int = 0
    prompt_tokens: int = 0
    predicted_tokens: int = 0  # believed cached when they were dispatched
    reported_tokens: int = 0  # that engines found
    wrong_tokens: int = 0  # sum of the differences of the two

    def plus(self, prompt_tokens: int, predicted_tokens: int, reported_tokens: int) -> "Reuse":
        return Reuse(
            self.attempts + 1,
            self.prompt_tokens + prompt_tokens,
            self.predicted_tokens + predicted_tokens,
            self.reported_tokens + reported_tokens,
            self.wrong_tokens + abs(predicted_tokens - reported_tokens),
        )
