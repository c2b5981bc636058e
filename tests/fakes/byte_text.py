"""Text of the model that the fake TensorRT-LLM runs: a token is a byte."""

from collections.abc import Sequence

from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import EngineRequest
from tests.fakes.tensorrt_llm.model import END_ID


class ByteDecoder:
    """Stops behind the call's first stop text."""

    def __init__(self, request: EngineRequest) -> None:
        self.stopped = False
        self._stop = bytes(request.call.sampling.stop[0], "ascii") if request.call.sampling.stop else b""

    def feed(self, token_ids: Sequence[int]) -> bytes:
        text = bytes(i for i in token_ids if i != END_ID)
        if self._stop and self._stop in text:
            self.stopped = True
            text = text.partition(self._stop)[0]
        return text

    def end(self, finish: FinishReason, shown: bytes) -> tuple[bytes, FinishReason]:
        return b"", finish


class ByteText:
    end_token_ids: tuple[int, ...] = (END_ID,)

    async def prompt_ids(self, request: EngineRequest) -> tuple[int, ...]:
        return tuple(
            b"".join(bytes(s.body.token_ids) or s.body.text for s in request.call.segments) + request.delivered_text
        )

    def decoder(self, request: EngineRequest) -> ByteDecoder:
        return ByteDecoder(request)
