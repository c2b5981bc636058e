"""What an engine gathers between two telemetry reports, bounded."""

from collections import deque
from typing import Final

from hexagent.core.instance.io import StepDone
from hexagent.core.instance.telemetry import StepSample, TransferSample
from hexagent_services.worker_agent.engine.port import Samples

SAMPLES_MAX: Final = 128  # of each kind; the newest win


class SampleBuffer:
    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._steps: deque[StepSample] = deque(maxlen=SAMPLES_MAX)
        self._transfers: deque[TransferSample] = deque(maxlen=SAMPLES_MAX)
        self.reused_tokens = 0
        self._prefilled_tokens = 0
        self._generated_tokens = 0

    def step(self, done: StepDone) -> None:
        tokens = sum(new for new, _ in done.prefill_chunks)
        context = sum(new * (prefix + new // 2) for new, prefix in done.prefill_chunks) // max(tokens, 1)
        self._steps.append(
            StepSample(done.steps, done.duration_us, tokens, context, done.decode_batch, done.mean_context)
        )
        self._prefilled_tokens += tokens
        self._generated_tokens += done.steps * done.decode_batch

    def transfer(self, sample: TransferSample) -> None:
        self._transfers.append(sample)

    def take(self) -> Samples:
        """What was gathered since the last time, which is then forgotten."""
        taken = Samples(
            tuple(self._steps),
            tuple(self._transfers),
            self.reused_tokens,
            self._prefilled_tokens,
            self._generated_tokens,
        )
        self._clear()
        return taken
