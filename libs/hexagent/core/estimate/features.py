"""What is known of a call before it runs that may tell how long its output will be, and views of it."""

from collections.abc import Callable
from typing import Final, NamedTuple
from zlib import crc32

ROUNDS_MAX: Final = 12  # later rounds of a loop are alike
MODEL: Final = "model"  # the view that tells something only where there are several
NOTHING_YET: Final = -1  # bucket of a workflow that has no earlier output of the role


class OwnOutputs(NamedTuple):
    """Outputs of a workflow's earlier calls of one role."""

    calls: int = 0
    tokens: int = 0  # of all of them
    last: int = 0  # tokens of the latest

    def then(self, output_tokens: int) -> "OwnOutputs":
        return OwnOutputs(self.calls + 1, self.tokens + output_tokens, output_tokens)


NO_OUTPUTS: Final = OwnOutputs()


class CallFeatures(NamedTuple):
    workflow_class: str
    role: str
    prompt_tokens: int
    round: int = 0  # of its loop, 0 = none
    own: OwnOutputs = NO_OUTPUTS
    model: str = ""


def half_octave(tokens: int) -> int:
    """Two buckets a doubling: 2 * log2(tokens), rounded down and shifted, for tokens >= 1."""
    bits = tokens.bit_length()
    return 2 * bits + (tokens * tokens >> 2 * bits - 1)


def _own_mean(features: CallFeatures) -> int:
    own = features.own
    return half_octave(max(own.tokens // own.calls, 1)) if own.calls else NOTHING_YET


def _own_last(features: CallFeatures) -> int:
    return features.own.last.bit_length() if features.own.calls else NOTHING_YET


# Ways to sort the calls of one class and role into buckets of alike output lengths, by name.
VIEWS: Final[dict[str, Callable[[CallFeatures], int]]] = {
    "own-last": _own_last,
    "own-mean": _own_mean,
    "prompt": lambda features: half_octave(max(features.prompt_tokens, 1)),
    "round": lambda features: min(features.round, ROUNDS_MAX),
    MODEL: lambda features: crc32(features.model.encode()) >> 1,
}
