"""What an emulated call generates: deterministic text of a scripted or drawn length, tool calls included."""

import json

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import InvalidArgument
from hexagent.core.ids import CallId
from hexagent.core.instance.noise import hash64, mix64
from hexagent.core.units import ceil_div
from hexagent.core.workflow.model import FinishReason
from hexagent.wire.segments import output_segment

BYTES_PER_TOKEN = 4
DRAWN_MIN, DRAWN_SPREAD = 16, 240  # tokens of an unscripted output: uniform in 16..255
# fmt: off
_WORDS = (
    b"the ", b"of  ", b"and ", b"to  ", b"in  ", b"is  ", b"it  ", b"for ", b"on  ", b"was ", b"as  ", b"at  ",
    b"by  ", b"we  ", b"or  ", b"an  ", b"be  ", b"if  ", b"so  ", b"no  ", b"do  ", b"go  ", b"up  ", b"me  ",
)
# fmt: on


class EmulatedOutput:
    """The output of one call, addressable by token.

    Engine options: `emulated.output_tokens` sets the length, `emulated.text` the text, `emulated.tool_calls` a JSON
    list of `{"name", "arguments"}` that becomes the text. Without them the length is drawn from the call's id.
    """

    def __init__(self, call_id: CallId, call: call_pb2.CallRequest, max_tokens: int) -> None:
        options = call.engine_options
        self._key = hash64("output", call_id.workflow_id, call_id.node_id)
        self._text = options.get("emulated.text", "").encode()
        tool_calls = options.get("emulated.tool_calls", "")
        if tool_calls:
            self._text = _tool_calls_text(tool_calls)
        drawn = ceil_div(len(self._text), BYTES_PER_TOKEN) or DRAWN_MIN + self._key % DRAWN_SPREAD
        wanted = _positive(options.get("emulated.output_tokens", ""), drawn)
        self.tokens = max(1, min(wanted, max_tokens))
        if self.tokens < wanted:
            self.finish = FinishReason.LENGTH
        else:
            self.finish = FinishReason.TOOL_CALLS if tool_calls else FinishReason.STOP

    @property
    def digest(self) -> str:
        """Of the segment that the output becomes."""
        return output_segment(self.text(0, self.tokens), self.tokens).digest

    def text(self, start: int, end: int) -> bytes:
        """Bytes of tokens `start` to `end`; a scripted text is spread over the tokens, the last takes the rest."""
        if not self._text:
            return b"".join(_WORDS[mix64(self._key + i) % len(_WORDS)] for i in range(start, end))
        whole = end >= self.tokens and self.finish is not FinishReason.LENGTH
        return self._text[start * BYTES_PER_TOKEN : None if whole else end * BYTES_PER_TOKEN]


def _tool_calls_text(tool_calls: str) -> bytes:
    try:
        return json.dumps({"tool_calls": json.loads(tool_calls)}, separators=(",", ":")).encode()
    except ValueError as error:
        raise InvalidArgument(
            f"engine_options[emulated.tool_calls] is not JSON: {error}",
            reason="BAD_ENGINE_OPTION",
            field="engine_options[emulated.tool_calls]",
        ) from error


def _positive(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise InvalidArgument(
            f"engine_options[emulated.output_tokens] must be a whole number of at least 1; got {text[:20]!r}",
            reason="BAD_ENGINE_OPTION",
            field="engine_options[emulated.output_tokens]",
        )
    return int(text)
