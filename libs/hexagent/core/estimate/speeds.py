"""Learned speed of each instance against its table, one factor a regime."""

from hexagent.core.estimate.snapshot import SpeedFactor
from hexagent.core.estimate.tables import StepTable
from hexagent.core.instance.telemetry import StepSample
from hexagent.core.units import PPM

PREFILL_WEIGHT = 5  # a prefill observation moves the factor by 1/5 of the difference
DECODE_WEIGHT = 10
LOWEST_PPM, HIGHEST_PPM = PPM // 4, 4 * PPM  # beyond this the description of the instance is wrong, not its speed


class _Factor:
    __slots__ = ("decode_ppm", "observations", "prefill_ppm")

    def __init__(self) -> None:
        self.prefill_ppm = PPM
        self.decode_ppm = PPM
        self.observations = 0


class SpeedLearner:
    """Exponentially forgetting mean of measured over predicted step time, per instance and regime.

    Mixed steps are left out: they would blame one regime for the other.
    """

    def __init__(self) -> None:
        self._factors: dict[str, _Factor] = {}

    def observe(self, instance_id: str, table: StepTable, sample: StepSample) -> None:
        if sample.steps < 1 or sample.duration_us < 1 or (sample.prefill_tokens and sample.decode_batch):
            return
        if sample.prefill_tokens:
            # Context of a chunk counts half its own growth, as `batch_prefill_us` does.
            prefix = max(0, sample.prefill_context - sample.prefill_tokens // 2)
            predicted = table.prefill_us(sample.prefill_tokens, prefix)
        elif sample.decode_batch:
            predicted = table.decode_us(sample.decode_batch, sample.mean_context)
        else:
            return
        factor = self._factors.setdefault(instance_id, _Factor())
        measured = min(max(sample.duration_us * PPM // (sample.steps * max(predicted, 1)), LOWEST_PPM), HIGHEST_PPM)
        factor.observations += 1
        if sample.prefill_tokens:
            factor.prefill_ppm += (measured - factor.prefill_ppm) // PREFILL_WEIGHT
        else:
            factor.decode_ppm += (measured - factor.decode_ppm) // DECODE_WEIGHT

    def factors(self) -> tuple[SpeedFactor, ...]:
        return tuple(
            SpeedFactor(instance_id, f.prefill_ppm, f.decode_ppm, f.observations)
            for instance_id, f in sorted(self._factors.items())
        )
