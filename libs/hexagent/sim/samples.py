"""Steps and transfers of one instance between two telemetry reports."""

from hexagent.core.instance.io import InstanceLoad, KvSent, StepDone
from hexagent.core.instance.telemetry import StepSample, Telemetry, TransferSample

SAMPLES_MAX = 64  # of each kind in a report; what comes later tells no more about the same second


class Samples:
    """Collects; `report` hands out and starts again."""

    __slots__ = ("_generated", "_prefilled", "_steps", "_transfers")

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._steps: list[StepSample] = []
        self._transfers: list[TransferSample] = []
        self._prefilled = 0
        self._generated = 0

    def step(self, done: StepDone) -> None:
        """Runs of decode steps of one batch size are taken together, prefill steps each for itself."""
        new = sum([tokens for tokens, _ in done.prefill_chunks])
        self._prefilled += new
        self._generated += done.decode_batch * done.steps
        last = self._steps[-1] if self._steps else None
        if last is not None and not new and not last.prefill_tokens and last.decode_batch == done.decode_batch:
            steps = last.steps + done.steps
            context = (last.mean_context * last.steps + done.mean_context * done.steps) // steps
            self._steps[-1] = last._replace(
                steps=steps, duration_us=last.duration_us + done.duration_us, mean_context=context
            )
        elif len(self._steps) < SAMPLES_MAX:
            attended = sum([tokens * (2 * prefix + tokens) for tokens, prefix in done.prefill_chunks])
            context = attended // (2 * new) if new else 0
            self._steps.append(
                StepSample(done.steps, done.duration_us, new, context, done.decode_batch, done.mean_context)
            )

    def transfer(self, source: str, sent: KvSent) -> None:
        if len(self._transfers) < SAMPLES_MAX:
            duration_us = sent.end_us - sent.start_us
            self._transfers.append(TransferSample(source, sent.to_instance, sent.start_us, duration_us, sent.kv_bytes))

    def report(self, instance_id: str, load: InstanceLoad, now_us: int) -> Telemetry:
        telemetry = Telemetry(
            instance_id,
            now_us,
            load,
            tuple(self._steps),
            tuple(self._transfers),
            prefilled_tokens=self._prefilled,
            generated_tokens=self._generated,
        )
        self._start()
        return telemetry
