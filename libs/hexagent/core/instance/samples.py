"""What an instance gathers between two telemetry reports, bounded."""

from typing import Final, NamedTuple

from hexagent.core.instance.io import StepDone
from hexagent.core.instance.telemetry import SpeculationSample, StepSample, TransferSample

SAMPLES_MAX: Final = 64  # of each kind in a report; what comes later tells no more about the same second


class Samples(NamedTuple):
    """Gathered since the last time; the fields of `Telemetry` in its order."""

    steps: tuple[StepSample, ...]
    transfers: tuple[TransferSample, ...]
    reused_tokens: int
    prefilled_tokens: int
    generated_tokens: int
    speculation: SpeculationSample | None


class SampleBuffer:
    """Of one instance. `take` hands out and starts again."""

    __slots__ = (
        "_accepted_tokens",
        "_drafted_tokens",
        "_generated_tokens",
        "_prefilled_tokens",
        "_steps",
        "_transfers",
        "reused_tokens",
    )

    def __init__(self) -> None:
        self._start()

    @property
    def empty(self) -> bool:
        """Nothing was gathered that tells of speeds or links."""
        return not (self._steps or self._transfers)

    def _start(self) -> None:
        self._steps: list[StepSample] = []
        self._transfers: list[TransferSample] = []
        self.reused_tokens = 0
        self._prefilled_tokens = 0
        self._generated_tokens = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0

    def step(self, done: StepDone) -> None:
        """Runs of decode steps of one batch size are taken together, prefill steps each for itself."""
        new = sum([tokens for tokens, _ in done.prefill_chunks])
        self._prefilled_tokens += new
        self._generated_tokens += done.decode_batch * done.steps
        last = self._steps[-1] if self._steps else None
        if last is not None and not new and not last.prefill_tokens and last.decode_batch == done.decode_batch:
            steps = last.steps + done.steps
            context = (last.mean_context * last.steps + done.mean_context * done.steps) // steps
            duration_us = last.duration_us + done.duration_us
            self._steps[-1] = StepSample(steps, duration_us, 0, 0, done.decode_batch, context)
        elif len(self._steps) < SAMPLES_MAX:
            attended = sum([tokens * (2 * prefix + tokens) for tokens, prefix in done.prefill_chunks])
            context = attended // (2 * new) if new else 0
            self._steps.append(
                StepSample(done.steps, done.duration_us, new, context, done.decode_batch, done.mean_context)
            )

    def speculated(self, drafted_tokens: int, accepted_tokens: int) -> None:
        """Besides the one token that each step gives a call."""
        self._drafted_tokens += drafted_tokens
        self._accepted_tokens += accepted_tokens
        self._generated_tokens += accepted_tokens

    def transfer(self, sample: TransferSample) -> None:
        if len(self._transfers) < SAMPLES_MAX:
            self._transfers.append(sample)

    def take(self) -> Samples:
        taken = Samples(
            tuple(self._steps),
            tuple(self._transfers),
            self.reused_tokens,
            self._prefilled_tokens,
            self._generated_tokens,
            SpeculationSample(self._drafted_tokens, self._accepted_tokens) if self._drafted_tokens else None,
        )
        self._start()
        return taken
