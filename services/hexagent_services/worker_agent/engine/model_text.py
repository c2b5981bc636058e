"""Text of a model for engines that speak token ids: prompts rendered off the event loop, outputs read as they come."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.core.errors import Unsupported
from hexagent.core.instance.spec import ClusterSpec, TextSpec
from hexagent.core.workflow.model import FinishReason
from hexagent.text.model import ModelText, load_model_text
from hexagent.text.output import OutputText
from hexagent.text.reader import OutputReader, read_output
from hexagent_services.worker_agent.engine.port import EngineRefused, EngineRequest

THREADS: Final = 2
WAITING_MAX: Final = 512  # prompts, on all threads together

T = TypeVar("T")

_ROLES: Final = {
    enums_pb2.SEGMENT_ROLE_SYSTEM: "system",
    enums_pb2.SEGMENT_ROLE_USER: "user",
    enums_pb2.SEGMENT_ROLE_ASSISTANT: "assistant",
    enums_pb2.SEGMENT_ROLE_TOOL: "tool",
}


class TextThreads:
    """Where prompts are rendered and tokenised; tokenising lets go of the interpreter."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """`EngineRefused` (TEXT_QUEUE_FULL) where too many wait already."""
        if self._waiting >= WAITING_MAX:
            raise EngineRefused("TEXT_QUEUE_FULL")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def load_texts(cluster: ClusterSpec, models: Sequence[str], threads: TextThreads) -> "dict[str, EngineText]":
    """Text of those of the models that have a directory; errors as `load_model_text`."""
    specs = (cluster.text_of(model) for model in models)
    return {s.model: EngineText(load_model_text(s.directory), s, threads) for s in specs if s.directory}


class EngineText:
    """Text of one model, as `engine.text.Text` says."""

    def __init__(self, model: ModelText, spec: TextSpec, threads: TextThreads) -> None:
        self.directory: Final = spec.directory
        self.end_token_ids = model.end_ids
        self._model = model
        self._spec = spec
        self._threads = threads

    async def prompt_ids(self, request: EngineRequest) -> tuple[int, ...]:
        """Also `InvalidArgument` (BAD_PROMPT) for a conversation the template does not take, and `EngineRefused`."""
        _refuse_forced_tools(request.call)
        return await self._threads.run(lambda: self._ids(request))

    def decoder(self, request: EngineRequest) -> "OutputDecoder":
        return OutputDecoder(self._model, self._spec, request)

    def _ids(self, request: EngineRequest) -> tuple[int, ...]:
        call = request.call
        plain = any(
            s.role == enums_pb2.SEGMENT_ROLE_RAW or s.kind == enums_pb2.SEGMENT_KIND_TOKEN_IDS for s in call.segments
        )
        ids = self._plain_ids(call) if plain else self._chat_ids(call)
        return ids + self._model.plain_ids(request.delivered_text.decode(), begins=False)

    def _plain_ids(self, call: call_pb2.CallRequest) -> tuple[int, ...]:
        """A prompt with a raw part, or one of ids, is outside the template as a whole."""
        ids: tuple[int, ...] = ()
        for segment in call.segments:
            text = segment.body.text.decode(errors="replace")
            ids += tuple(segment.body.token_ids) or self._model.plain_ids(text, begins=not ids)
        return ids

    def _chat_ids(self, call: call_pb2.CallRequest) -> tuple[int, ...]:
        offered = call.tool_choice.mode != call_pb2.ToolChoice.MODE_NONE
        return self._model.chat_ids(
            [_message(segment) for segment in call.segments],
            [_tool(tool) for tool in call.tools] if offered else [],
            json.loads(call.template_options or "{}"),
        )


class OutputDecoder:
    """One output, as `engine.text.Decoder` says. A token takes microseconds, so it stays on the event loop."""

    def __init__(self, model: ModelText, spec: TextSpec, request: EngineRequest) -> None:
        self.stopped = False
        self._output = OutputText(model.tokenizer, tuple(request.call.sampling.stop))
        self._spec = spec
        self._call = request.call

    def feed(self, token_ids: Sequence[int]) -> bytes:
        shown = self._output.take(token_ids)
        self.stopped = self._output.stopped
        return shown.encode()

    def end(self, finish: FinishReason, shown: bytes) -> tuple[bytes, FinishReason]:
        """An output asks for tools where the request has them and every call is one of these."""
        rest = self._output.end().encode()
        if self.stopped:
            finish = FinishReason.STOP
        if finish is FinishReason.STOP and self._asks_for_tools((shown + rest).decode()):
            finish = FinishReason.TOOL_CALLS
        return rest, finish

    def _asks_for_tools(self, text: str) -> bool:
        call, spec = self._call, self._spec
        if not call.tools or not spec.tools or call.tool_choice.mode == call_pb2.ToolChoice.MODE_NONE:
            return False
        asked = read_output(OutputReader(spec.tools, spec.reasoning, may_ask=True), text, asked=True).tool_calls
        return bool(asked) and {tool.name for tool in asked} <= {tool.name for tool in call.tools}


def _message(segment: call_pb2.PromptSegment) -> Mapping[str, Any]:
    """A segment as templates know messages. An output stands as it was generated: with reasoning and calls of tools."""
    role, text = _ROLES[segment.role], segment.body.text.decode(errors="replace")
    if segment.kind != enums_pb2.SEGMENT_KIND_MESSAGE:
        return {"role": role, "content": text}
    message = json.loads(text)
    calls = [{"type": "function", "function": call} for call in message.pop("tool_calls", [])]
    return {"role": role, **message, **({"tool_calls": calls} if calls else {})}


def _tool(tool: call_pb2.Tool) -> Mapping[str, Any]:
    function = {"name": tool.name, "description": tool.description}
    parameters = {"parameters": json.loads(tool.json_schema)} if tool.json_schema else {}
    return {"type": "function", "function": {**function, **parameters}}


def _refuse_forced_tools(call: call_pb2.CallRequest) -> None:
    """Nothing constrains an output to calls of tools."""
    modes = call_pb2.ToolChoice
    if call.tool_choice.mode in (modes.MODE_REQUIRED, modes.MODE_NAMED):
        raise Unsupported(
            "tool_choice: engines cannot force a call of a tool", reason="UNSUPPORTED_TOOL_CHOICE", field="tool_choice"
        )
    for i, tool in enumerate(call.tools):
        if tool.strict:
            field = f"tools[{i}].strict"
            raise Unsupported(
                f"{field}: engines cannot hold arguments to a schema", reason="UNSUPPORTED_STRICT_TOOL", field=field
            )
