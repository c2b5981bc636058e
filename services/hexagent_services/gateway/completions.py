"""Answers in the form of the OpenAI API: a `chat.completion`, or its chunks as server-sent events."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from hexagent.client import CallResult, FinishReason, ToolCall, Usage
from hexagent.text.reader import Piece, Whole

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": still working\n\n"

_FINISH: Final = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.TOOL_CALLS: "stop"}


class Completion(NamedTuple):
    """What every part of one answer repeats."""

    completion_id: str
    created_s: int  # wall time
    model: str
    include_usage: bool

    @classmethod
    def new(cls, node_id: str, workflow_id: str, model: str, include_usage: bool) -> "Completion":
        """With an id that follows from the call's."""
        digest = hashlib.sha256(f"{workflow_id}/{node_id}".encode()).hexdigest()
        return cls(f"chatcmpl-{digest[:29]}", int(time.time()), model, include_usage)

    def whole(self, result: CallResult, said: Whole) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        calls = said.tool_calls
        content = said.content or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if calls:
            message["tool_calls"] = [self._tool_call(i, call) for i, call in enumerate(calls)]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(result, calls)}
        return self._envelope("chat.completion", [choice]) | {"usage": _usage(result.usage)}

    def first(self) -> bytes:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, piece: Piece) -> bytes:
        """What became known of the output; nothing for nothing."""
        parts = {"reasoning_content": piece.reasoning, "content": piece.content}
        return b"".join(self._chunk({name: text}) for name, text in parts.items() if text)

    def last(self, result: CallResult, rest: Whole) -> bytes:
        """What follows: the rest of the output, tool calls, how it ended, and where asked for the usage."""
        calls = rest.tool_calls
        parts = [self.piece(Piece(rest.reasoning, rest.content))]
        for i, call in enumerate(calls):
            whole = self._tool_call(i, call)
            function = whole["function"]
            named = {**whole, "index": i, "function": {"name": function["name"], "arguments": ""}}
            parts.append(self._chunk({"tool_calls": [named]}))
            parts.append(self._chunk({"tool_calls": [{"index": i, "function": {"arguments": function["arguments"]}}]}))
        parts.append(self._chunk({}, _finish(result, calls)))
        if self.include_usage:
            parts.append(event(self._envelope("chat.completion.chunk", []) | {"usage": _usage(result.usage)}))
        return b"".join((*parts, DONE))

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._envelope("chat.completion.chunk", [choice])
        if self.include_usage:
            chunk["usage"] = None  # as the API has it: every chunk has the key, the last one the numbers
        return event(chunk)

    def _envelope(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }

    def _tool_call(self, i: int, call: ToolCall) -> dict[str, Any]:
        tool_id = call.id or f"call_{hashlib.sha256(f'{self.completion_id}/{i}'.encode()).hexdigest()[:24]}"
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        return {"id": tool_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _finish(result: CallResult, calls: Sequence[ToolCall]) -> str:
    return "tool_calls" if calls else _FINISH[result.finish_reason]


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
