"""How predictions of the snapshot in force compare with what then happens, by quantity and subject."""

from typing import Final, NamedTuple

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.features import CallFeatures
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import StepSample, TransferSample
from hexagent.core.units import PPM, scale_ppm

FORGET: Final = 256  # a comparison counts 1/e after so many later ones
SUBJECTS_MAX: Final = 4_000  # later ones are not scored
ANY_LENGTH: Final = 1 << 31  # tokens: a cap that no prediction meets


class CalibrationRow(NamedTuple):
    """Latest comparisons of one subject; means in parts per million."""

    quantity: str  # prefill_step, decode_step, transfer, output_tokens, tool
    subject: str  # instance, SOURCE>TARGET, CLASS/ROLE, tool
    samples: int  # ever
    bias_ppm: int  # measured over predicted median
    error_ppm: int  # of the predicted median, by what was measured
    below_q50_ppm: int  # share of measurements up to the predicted quantile
    below_q90_ppm: int  # 0 where none is predicted


class _Score:
    __slots__ = ("means", "samples")

    def __init__(self) -> None:
        self.samples = 0
        self.means = [0, 0, 0, 0]

    def observe(self, measured: int, q50: int, q90: int) -> None:
        """All at least 1, but `q90` may be 0: not predicted."""
        self.samples += 1
        values = (
            measured * PPM // q50,
            abs(measured - q50) * PPM // measured,
            PPM * (measured <= q50),
            PPM * (measured <= q90),
        )
        weight = min(self.samples, FORGET)
        self.means = [mean + (value - mean) // weight for mean, value in zip(self.means, values, strict=True)]


class Calibration:
    """Compares before anything is learned of what it compares with; nothing as long as there is no snapshot."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._scores: dict[tuple[str, str], _Score] = {}

    def step(self, spec: InstanceSpec, sample: StepSample) -> None:
        """Steps of one phase; mixed ones blame neither."""
        table, speeds = self._estimator.table(spec), self._estimator.speed_ppm(spec.instance_id)
        measured_us = sample.duration_us // max(sample.steps, 1)
        if sample.prefill_tokens and not sample.decode_batch:
            pairs = 2 * sample.prefill_tokens * sample.prefill_context
            predicted_us = scale_ppm(table.attended_prefill_us(sample.prefill_tokens, pairs), speeds[0])
            self._score("prefill_step", spec.instance_id, measured_us, predicted_us)
        elif sample.decode_batch and not sample.prefill_tokens:
            predicted_us = scale_ppm(table.decode_us(sample.decode_batch, sample.mean_context), speeds[1])
            self._score("decode_step", spec.instance_id, measured_us, predicted_us)

    def transfer(self, source: InstanceSpec, target: InstanceSpec, sample: TransferSample) -> None:
        """From its first byte to its last."""
        estimator, subject = self._estimator, f"{source.instance_id}>{target.instance_id}"
        predicted_us = estimator.transfer_us(source, target, sample.kv_bytes) - estimator.besides_us(source, target)
        self._score("transfer", subject, sample.duration_us, predicted_us)

    def output(self, features: CallFeatures, output_tokens: int) -> None:
        told = self._estimator.output_tokens(features, ANY_LENGTH, 0)
        subject = f"{features.workflow_class}/{features.role}"
        self._score("output_tokens", subject, output_tokens, told.q50, told.q90)

    def tool(self, name: str, duration_us: int) -> None:
        """Of a tool that is known."""
        self._score("tool", name, duration_us, self._estimator.tool_us(name, 0))

    def rows(self) -> tuple[CalibrationRow, ...]:
        """Sorted by quantity and subject."""
        scores = sorted(self._scores.items())
        return tuple([CalibrationRow(*name, score.samples, *score.means) for name, score in scores])

    def _score(self, quantity: str, subject: str, measured: int, q50: int, q90: int = 0) -> None:
        if not self._estimator.revision or measured < 1 or q50 < 1:
            return
        name = (quantity, subject)
        if name in self._scores or len(self._scores) < SUBJECTS_MAX:
            self._scores.setdefault(name, _Score()).observe(measured, q50, q90)
