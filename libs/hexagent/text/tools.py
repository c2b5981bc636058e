"""Calls of tools in outputs, in the forms that families of models write them."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple


class ToolCall(NamedTuple):
    """A tool the model asks for."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


class ToolForm(NamedTuple):
    """How a family asks for tools."""

    marks: tuple[str, ...]  # what such a part of an output begins with
    anywhere: bool  # it may follow text; else the whole output asks for tools
    parse: Callable[[str], tuple[ToolCall, ...]]  # from the first mark on; () = it is text after all


def tool_calls(text: str) -> tuple[ToolCall, ...]:
    """The tools an output asks for in whichever form, reasoning before it left out; () for other text."""
    answer = text.rpartition("</think>")[2].strip()
    return next((calls for form in FORMS.values() if (calls := form.parse(answer))), ())


def calls_in(answer: str, form: ToolForm) -> tuple[ToolCall, ...]:
    """The tools that an answer asks for in this form."""
    answer = answer.strip()
    starts = [at for mark in form.marks if (at := answer.find(mark)) >= 0]
    if not starts or (min(starts) and not form.anywhere):
        return ()
    return form.parse(answer[min(starts) :])


def _scripted(text: str) -> tuple[ToolCall, ...]:
    """A JSON list of calls, or an object that holds one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    items = value.get("tool_calls", [value]) if isinstance(value, dict) else value
    return _all(items if isinstance(items, list) else [])


def _llama3_json(text: str) -> tuple[ToolCall, ...]:
    """JSON objects with `name` and `parameters`, one behind the other or with semicolons between them."""
    items: list[object] = []
    rest = text.removeprefix(_PYTHON_TAG)
    while rest := rest.strip("; \n\r\t"):
        try:
            item, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            return ()
        items.append(item)
        rest = rest[end:]
    return _all(items)


def _hermes(text: str) -> tuple[ToolCall, ...]:
    """JSON objects with `name` and `arguments`, each between tags."""
    items: list[object] = []
    for block in _TAGGED.findall(text):
        try:
            items.append(json.loads(block))
        except (ValueError, RecursionError):
            return ()
    return _all(items)


def _all(items: list[object]) -> tuple[ToolCall, ...]:
    """Every item as a call, or none."""
    calls = tuple(call for item in items if (call := _tool_call(item)) is not None)
    return calls if len(calls) == len(items) else ()


def _tool_call(item: object) -> ToolCall | None:
    if not isinstance(item, dict):
        return None
    function = item.get("function", item)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return ToolCall(function["name"], arguments, str(item.get("id", "")))


_PYTHON_TAG: Final = "<|python_tag|>"
_TAGGED: Final = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)

FORMS: Final[Mapping[str, ToolForm]] = {
    "": ToolForm(('{"tool_calls":', "<tool_call>"), False, lambda text: _scripted(text) or _hermes(text)),
    "hermes": ToolForm(("<tool_call>",), True, _hermes),
    "llama3-json": ToolForm((_PYTHON_TAG, "{"), False, _llama3_json),
}
