"""What a step takes: the tables an instance is built on, and the truth that bends them."""

from collections.abc import Sequence
from typing import Protocol

from hexagent.core.instance.noise import Truth
from hexagent.core.units import PPM


class StepTimes(Protocol):
    """Nominal step times of an engine in microseconds; `chunks` are (new, prefix) tokens of each prefilled call."""

    def batch_prefill_us(self, chunks: Sequence[tuple[int, int]]) -> int: ...

    def decode_us(self, batch: int, mean_context: int) -> int: ...

    def mixed_us(self, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int) -> int: ...


class TrueTimes:
    """Step times as they really happen here: nominal x truth, at least one microsecond."""

    __slots__ = ("_decode_ppm", "_prefill_ppm", "_times", "truth")

    def __init__(self, times: StepTimes, truth: Truth) -> None:
        self.truth = truth
        self._times = times
        self._prefill_ppm = truth.prefill_ppm
        self._decode_ppm = truth.decode_ppm

    def decode_us(self, batch: int, mean_context: int, call_key: int, position: int) -> int:
        """One step that gives each of `batch` calls a token; the noise is that of its leading call."""
        nominal = self._times.decode_us(batch, mean_context)
        return self._bent(nominal * self._decode_ppm, call_key, position)

    def prefill_us(
        self, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int, call_key: int, position: int
    ) -> int:
        """One step with prefill chunks and, if `batch` is not 0, a token for each decoding call.

        Of a mixed step the pure decode time scales as decode does and what the chunks add scales as prefill does.
        """
        if not batch:
            return self._bent(self._times.batch_prefill_us(chunks) * self._prefill_ppm, call_key, position)
        mixed = self._times.mixed_us(chunks, batch, mean_context)
        if self._prefill_ppm == self._decode_ppm:
            return self._bent(mixed * self._decode_ppm, call_key, position)
        decode = min(mixed, self._times.decode_us(batch, mean_context))
        return self._bent(decode * self._decode_ppm + (mixed - decode) * self._prefill_ppm, call_key, position)

    def _bent(self, scaled_ppm: int, call_key: int, position: int) -> int:
        return max(1, scaled_ppm * self.truth.noise(call_key, position) // (PPM * PPM))
