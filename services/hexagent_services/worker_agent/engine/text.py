"""Between text and token ids: what an engine that speaks token ids needs of a model's template and tokenizer."""

from collections.abc import Sequence
from typing import Protocol

from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import EngineRequest


class Decoder(Protocol):
    """The ids of one output as text, piece by piece."""

    stopped: bool  # a stop string has been met: what would be generated behind it is not wanted

    def feed(self, token_ids: Sequence[int]) -> bytes:
        """The text that these ids settle; the rest, such as half a character, comes with later ones."""
        ...

    def end(self, finish: FinishReason, shown: bytes) -> tuple[bytes, FinishReason]:
        """What was held back, and why the output ended once its text is known (STOP, TOOL_CALLS).

        `shown` is all of the output until then, by earlier attempts and other engines, too.
        """
        ...


class Text(Protocol):
    """Of one model."""

    end_token_ids: tuple[int, ...]  # end the output and are no part of it, at least one

    async def prompt_ids(self, request: EngineRequest) -> tuple[int, ...]:
        """The rendered prompt, and behind it what was delivered. `Unsupported` for what cannot be rendered."""
        ...

    def decoder(self, request: EngineRequest) -> Decoder: ...
