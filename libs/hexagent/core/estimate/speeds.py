"""Learned speed of each instance against its table, one factor a regime."""

from bisect import bisect_left, insort
from collections import defaultdict, deque
from typing import Final

from hexagent.core.estimate.snapshot import SpeedFactor
from hexagent.core.estimate.tables import StepTable
from hexagent.core.instance.telemetry import StepSample
from hexagent.core.units import PPM

LOWEST_PPM, HIGHEST_PPM = PPM // 4, 4 * PPM  # beyond this the description of the instance is wrong, not its speed
WINDOW: Final = 64  # observations a factor is the median of: with 7 % noise a step it is right within 2 %
CHANGED: Final = 8  # observations in a row on one side of the median that make a change of speed rather than chance ...
CHANGED_PPM: Final = PPM // 10  # ... if their own median is this far off; less than that the window forgets soon enough


class Factor:
    """Median of the last measured-over-predicted ratios, in ppm: an outlier moves it by no more than any other
    observation. It starts again from the latest ones when the speed changes."""

    __slots__ = ("_ascending", "_ratios", "observations", "ppm")

    def __init__(self) -> None:
        self._ratios: deque[int] = deque()  # the latest WINDOW
        self._ascending: list[int] = []  # the same
        self.observations = 0
        self.ppm = PPM

    def observe(self, measured_us: int, predicted_us: int) -> None:
        ratio = min(max(measured_us * PPM // max(predicted_us, 1), LOWEST_PPM), HIGHEST_PPM)
        if len(self._ratios) == WINDOW:
            del self._ascending[bisect_left(self._ascending, self._ratios.popleft())]
        self._ratios.append(ratio)
        insort(self._ascending, ratio)
        self.observations += 1
        if len(self._ratios) > CHANGED:
            latest = list(self._ratios)[-CHANGED:]
            beyond = min(latest) > self.ppm or max(latest) < self.ppm
            if beyond and abs(_median(sorted(latest)) - self.ppm) * PPM > CHANGED_PPM * self.ppm:
                self._ratios, self._ascending = deque(latest), sorted(latest)
        self.ppm = _median(self._ascending)


class SpeedLearner:
    """A factor per instance and regime."""

    def __init__(self) -> None:
        # (prefill, decode)
        self._factors: defaultdict[str, tuple[Factor, Factor]] = defaultdict(lambda: (Factor(), Factor()))

    def observe(self, instance_id: str, table: StepTable, sample: StepSample) -> None:
        """Learn from steps of one composition.

        Of a mixed step what its prompts added tells of prefill, decode being priced by what is known of it. It must
        be the larger part: the noise of the whole step would be a large error of a small one.
        """
        if sample.steps < 1 or sample.duration_us < 1 or not (sample.prefill_tokens or sample.decode_batch):
            return
        prefill, decode = self._factors[instance_id]
        measured_us = sample.duration_us // sample.steps
        decode_us = table.decode_us(sample.decode_batch, sample.mean_context) if sample.decode_batch else 0
        if not sample.prefill_tokens:
            decode.observe(measured_us, decode_us)
            return
        work = sample.prefill_tokens, 2 * sample.prefill_tokens * sample.prefill_context
        if not decode_us:
            prefill.observe(measured_us, table.attended_prefill_us(*work))
            return
        added_us = table.attended_mixed_us(*work, sample.decode_batch, sample.mean_context) - decode_us
        if added_us >= decode_us:
            prefill.observe(measured_us - decode_us * decode.ppm // PPM, added_us)

    def factors(self) -> tuple[SpeedFactor, ...]:
        return tuple(
            SpeedFactor(instance_id, prefill.ppm, decode.ppm, prefill.observations + decode.observations)
            for instance_id, (prefill, decode) in sorted(self._factors.items())
        )


def _median(ascending: list[int]) -> int:
    """The lower of the two middle ones where there are two."""
    return ascending[(len(ascending) - 1) // 2]
