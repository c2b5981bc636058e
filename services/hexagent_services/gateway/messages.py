"""Chat messages as pieces of a prompt: one segment a message, so that a growing conversation shares its prefix.

The segment's role says who speaks. Its text is the message's content, or where a message has a name, calls of tools
or the id of one beside it, all of it as JSON in one form. The engine's side renders it by the model's template.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from hexagent.client import ToolCall
from hexagent.core.errors import InvalidArgument

MESSAGES_MAX: Final = 2_000  # what one event of the workflow stream can refer to

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_PART_TYPES: Final = ("text", "refusal")


class Message(NamedTuple):
    """One message of a conversation."""

    role: str  # of the segment: system, user, assistant or tool
    text: str  # of the segment
    structured: bool = False  # the text is JSON of more than the content
    output_key: str = ""  # of an assistant's message: what it is recognised by if a call of the session generated it


def parse_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The conversation. `InvalidArgument` (BAD_MESSAGE, UNSUPPORTED_CONTENT) naming the field."""
    if not messages:
        raise _bad("messages", "needs at least one message")
    if len(messages) > MESSAGES_MAX:
        raise _bad("messages", f"at most {MESSAGES_MAX} messages; got {len(messages)}", "TOO_MANY_MESSAGES")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def assistant_text(content: str, tool_calls: Sequence[ToolCall]) -> str:
    """What an assistant's message or a call's output says, in one form for both."""
    if not tool_calls:
        return content
    text = _json({"tool_calls": _shown(tool_calls)})
    content = content.rstrip()
    return f"{content}\n{text}" if content else text


def output_key(text: str) -> str:
    """What an output is recognised by in a later prompt."""
    return hashlib.sha256(text.encode()).hexdigest()


def _message(message: Mapping[str, Any], path: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _bad(f"{path}.role", f"must be one of {', '.join(_ROLES)}; got {str(role)[:40]!r}")
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise _unsupported(f"{path}.{name}")
    calls = _tool_calls(message.get("tool_calls"), f"{path}.tool_calls") if role == "assistant" else ()
    content = _content(message.get("content"), f"{path}.content", optional=bool(calls) or role == "assistant")
    headers = {"name": message.get("name"), "tool_call_id": message.get("tool_call_id") if role == "tool" else None}
    if role == "tool" and not isinstance(headers["tool_call_id"], str):
        raise _bad(f"{path}.tool_call_id", "is required: the id of the tool call that this answers")
    extras: dict[str, object] = {
        name: _header(value, f"{path}.{name}") for name, value in headers.items() if value is not None
    }
    key = output_key(assistant_text(content, calls)) if role == "assistant" and not extras else ""
    if calls:
        extras["tool_calls"] = _shown(calls)
    text = _json({"content": content, **extras}) if extras else content
    return Message(_ROLES[role], text, bool(extras), key)


def _content(content: object, path: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        if optional:
            return ""
        raise _bad(path, "is required")
    if not isinstance(content, list):
        raise _bad(path, "must be a text or a list of parts")
    texts: list[str] = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PART_TYPES:
            raise _unsupported(f"{path}[{i}].type", f"{str(kind)[:40]!r} is not supported: text only")
        text = part.get(kind)
        if not isinstance(text, str):
            raise _bad(f"{path}[{i}].{kind}", "must be a text")
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: object, path: str) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise _bad(path, "must be a list")
    found: list[ToolCall] = []
    for i, call in enumerate(calls):
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            raise _unsupported(f"{path}[{i}].type", "only function calls are supported")
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _bad(f"{path}[{i}].function.name", "is required")
        found.append(ToolCall(function["name"], _arguments(function.get("arguments"), f"{path}[{i}].function")))
    return tuple(found)


def _arguments(arguments: object, path: str) -> Mapping[str, Any]:
    if not isinstance(arguments, str):
        raise _bad(f"{path}.arguments", "must be JSON as a text")
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    # What a model got wrong stays in the conversation as it was.
    return value if isinstance(value, dict) else {"": arguments}


def _shown(calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    return [{"arguments": dict(call.arguments), "name": call.name} for call in calls]


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _header(value: object, path: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 256:
        raise _bad(path, "at most 256 printable characters")
    return value


def _bad(field: str, text: str, reason: str = "BAD_MESSAGE") -> InvalidArgument:
    return InvalidArgument(f"{field}: {text}", reason=reason, field=field)


def _unsupported(field: str, text: str = "is not supported") -> InvalidArgument:
    return _bad(field, text, "UNSUPPORTED_CONTENT")
