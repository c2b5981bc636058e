"""What an engine that runs elsewhere is seen to do: its load, and samples of its steps and transfers."""

from collections.abc import Collection, Mapping
from typing import Any

from hexagent.core.instance.io import InstanceLoad, StepDone
from hexagent.core.instance.samples import SampleBuffer
from hexagent.core.instance.spec import InstanceSpec
from hexagent.core.instance.telemetry import Incidents, TransferSample
from hexagent_services.worker_agent.engine.port import KvPiece
from hexagent_services.worker_agent.engine.run import Kind, Phase, Run


class Observed:
    """Of one engine since it was started."""

    def __init__(self, spec: InstanceSpec) -> None:
        self.samples = SampleBuffer()
        self.sampled_at_us = 0
        self._spec = spec
        self._cached_blocks = 0
        self._event_gaps = 0
        self._event_gaps_before = 0  # of earlier starts

    def incidents(self, dropped_hand_offs: int, leaked_blocks: int) -> Incidents:
        return Incidents(dropped_hand_offs, leaked_blocks, self._event_gaps_before + self._event_gaps)

    def forget_cache(self) -> None:
        """The engine is gone, and what it had cached."""
        self._cached_blocks = 0
        self._event_gaps_before += self._event_gaps
        self._event_gaps = 0

    def take_stats(self, stats: Mapping[str, Any], runs: Collection[Run], now_us: int) -> None:
        """A report of the engine host. The engine does not say how long contexts are; the agent knows."""
        contexts = [run.context for run in runs if run.phase is Phase.DECODING]
        mean_context = sum(contexts) // len(contexts) if contexts else 0
        for duration_us, prefill_tokens, batch, accepted in stats["steps"]:
            chunks = ((prefill_tokens, 0),) if prefill_tokens else ()
            if accepted and not chunks:  # what is learned is the time of one token of each call
                duration_us = duration_us * batch // (batch + accepted)
            self.samples.step(StepDone(now_us, duration_us, 1, chunks, batch, mean_context if batch else 0))
        self.samples.speculated(stats["drafted_tokens"], stats["accepted_tokens"])
        self.sampled_at_us = now_us
        self._cached_blocks = stats["cached_blocks"]
        self._event_gaps = stats["event_gaps"]

    def transferred(self, source: str, transfer: KvPiece) -> None:
        duration_us = transfer.end_us - transfer.start_us
        to_instance = self._spec.instance_id
        moved = (transfer.start_us, duration_us, transfer.kv_bytes)
        self.samples.transfer(TransferSample(source, to_instance, *moved, held_us=duration_us))

    def load(self, runs: Collection[Run], used_blocks: int, capacity: int) -> InstanceLoad:
        """`runs` are all that hold or wait for something, also those that nobody waits for any more."""
        queued = [run for run in runs if run.phase is Phase.WAITING and run.kind is not Kind.DECODE]
        phases = [run.phase for run in runs]
        left = max(0, capacity - used_blocks)
        cached = min(self._cached_blocks, left)
        return InstanceLoad(
            queued=len(queued),
            queued_tokens=sum(len(run.prompt_ids) or run.request.prompt_tokens for run in queued),
            oldest_queued_us=min((run.arrived_us for run in queued), default=0),
            prefilling=phases.count(Phase.COMPUTING),
            pinned=phases.count(Phase.PINNED),
            waiting=phases.count(Phase.WAITING) - len(queued),
            decoding=phases.count(Phase.DECODING),
            transferring=phases.count(Phase.PULLING),
            kv_used_blocks=used_blocks,
            kv_cached_blocks=cached,
            kv_free_blocks=left - cached,
        )
