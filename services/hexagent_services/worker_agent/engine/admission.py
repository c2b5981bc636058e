"""Which attempts an engine is given: a short queue in order of rank, and a ledger of its KV blocks and places."""

from bisect import insort
from collections import deque
from typing import Final, NamedTuple

from hexagent.core.instance.spec import PROFILES, InstanceSpec
from hexagent.core.units import ceil_div

# Before and behind every call. A call's rank is its policy's score: of either sign, microseconds since the start too.
FIRST_RANK: Final = -(1 << 63)
LAST_RANK: Final = (1 << 63) - 1
EXCESS_SAMPLES: Final = 8  # that must all show blocks nobody here holds, before they count as leaked


class Claim(NamedTuple):
    """What an attempt takes while the engine has it; compared by rank, then order of arrival."""

    rank: int
    number: int  # of the attempt on this engine
    blocks: int
    prompt_tokens: int  # to be computed here; 0 for what comes with its KV
    decodes: bool


class Admission:
    """Claims wait until the engine has room for them, so that its own queue stays short and no call in it overtakes.

    Room is blocks by the engine's rule, a place in the decode batch, and for prompts a step's worth of tokens in the
    engine at a time, unless they advance equally there. The first that does not fit makes the others wait.
    """

    def __init__(self, spec: InstanceSpec) -> None:
        self._spec = spec
        self._equal_progress = PROFILES[spec.profile].equal_progress
        self._blocks = spec.kv_blocks
        self._waiting: list[Claim] = []
        self._held: dict[int, Claim] = {}
        self._computing: dict[int, int] = {}  # prompt tokens in the engine that are not computed yet
        self._excess: deque[int] = deque([0] * EXCESS_SAMPLES, EXCESS_SAMPLES)

    @property
    def used_blocks(self) -> int:
        return sum(claim.blocks for claim in self._held.values())

    @property
    def leaked_blocks(self) -> int:
        """Blocks that the engine holds for none of the attempts here; they come back with a restart."""
        return max(0, min(self._excess))

    @property
    def capacity(self) -> int:
        """Blocks there are to give."""
        return self._blocks - self.leaked_blocks

    def need(self, tokens: int) -> int:
        return ceil_div(tokens, self._spec.block_tokens)

    def add(self, claim: Claim) -> None:
        insort(self._waiting, claim)

    def withdraw(self, number: int) -> None:
        """It no longer waits, or what it held is free."""
        self._waiting = [claim for claim in self._waiting if claim.number != number]
        self._held.pop(number, None)
        self._computing.pop(number, None)

    def computed(self, number: int) -> None:
        """Its prompt is done; its blocks stay."""
        self._computing.pop(number, None)

    def admitted(self) -> list[int]:
        """The attempts that have room, in order; they hold their claims from here on."""
        numbers: list[int] = []
        while self._waiting and self._fits(self._waiting[0]):
            claim = self._waiting.pop(0)
            self._held[claim.number] = claim
            if claim.prompt_tokens:
                self._computing[claim.number] = claim.prompt_tokens
            numbers.append(claim.number)
        return numbers

    def observe(self, engine_used_blocks: int, engine_blocks: int) -> None:
        """What the engine itself says is in use, of how many: it may have got less memory than it was to have."""
        self._excess.append(engine_used_blocks - self.used_blocks)
        if engine_blocks:
            self._blocks = min(engine_blocks, self._spec.kv_blocks)

    def _fits(self, claim: Claim) -> bool:
        if claim.decodes and sum(held.decodes for held in self._held.values()) >= self._spec.max_batch:
            return False
        computing = 0 if self._equal_progress else sum(self._computing.values())
        if claim.prompt_tokens and computing and computing + claim.prompt_tokens > self._spec.max_step_tokens:
            return False
        return self.used_blocks + claim.blocks <= self.capacity
