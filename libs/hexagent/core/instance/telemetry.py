"""What an instance reports about itself a few times a second."""

from typing import NamedTuple

from hexagent.core.instance.io import InstanceLoad


class StepSample(NamedTuple):
    """Engine steps of one batch composition; the raw material of speed learning."""

    steps: int
    duration_us: int  # of all steps
    prefill_tokens: int  # new tokens of one step, 0 = pure decode
    prefill_context: int  # token-weighted mean prefix of the chunks plus half their own growth
    decode_batch: int
    mean_context: int


class TransferSample(NamedTuple):
    from_instance: str
    to_instance: str
    start_us: int
    duration_us: int
    kv_bytes: int
    held_us: int  # how long it kept the receiver from the next one: messages and the sender's queue included


class SpeculationSample(NamedTuple):
    """Speculative decoding since the last report. A step gives a call one token and what it accepts of its draft."""

    drafted_tokens: int
    accepted_tokens: int


class Incidents(NamedTuple):
    """What went wrong with an instance since its agent started."""

    dropped_hand_offs: int = 0  # prompts prefilled and never pulled
    leaked_blocks: int = 0  # KV blocks that the engine holds for nothing, at present
    event_gaps: int = 0  # times that KV events were missing
    restarts: int = 0  # of its engine
    quarantines: int = 0


class Telemetry(NamedTuple):
    """One instance's report, a few times a second of wall time."""

    instance_id: str
    at_us: int
    load: InstanceLoad
    steps: tuple[StepSample, ...] = ()
    transfers: tuple[TransferSample, ...] = ()
    reused_tokens: int = 0  # since the last report
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    speculation: SpeculationSample | None = None  # None: nothing was drafted
