"""An output as its client sees it: reasoning, answer and calls of tools told apart while it comes."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from hexagent.text.output import held_back
from hexagent.text.tools import FORMS, ToolCall, ToolForm, calls_in

THINK: Final = "<think>"
THINK_END: Final = "</think>"
REASONING: Final[Mapping[str, bool]] = {"": False, "think": False, "think-open": True}  # whether outputs begin inside


class Piece(NamedTuple):
    """What became known of an output."""

    reasoning: str = ""
    content: str = ""


class Whole(NamedTuple):
    """A finished output."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...]


class OutputReader:
    """Takes an output in pieces. `tools` names how the model's family asks for tools, `reasoning` how it reasons.

    From the first mark of a tool call on everything is held back until the end. Without `may_ask` nothing is.
    """

    def __init__(self, tools: str, reasoning: str, may_ask: bool) -> None:
        self._tools = _ToolHold(FORMS[tools]) if may_ask else None
        self._reasoning = _Reasoning(REASONING[reasoning]) if reasoning else None

    def take(self, text: str) -> Piece:
        """What can be shown now."""
        thought, answer = self._reasoning.take(text) if self._reasoning is not None else ("", text)
        return Piece(thought, self._tools.take(answer) if self._tools is not None else answer)

    def end(self, asked: bool) -> Whole:
        """The rest. `asked` says whether the engine's side has found the output to ask for tools."""
        thought, answer = self._reasoning.end() if self._reasoning is not None else ("", "")
        if self._tools is None:
            return Whole(thought, answer, ())
        shown = self._tools.take(answer)
        calls, held = self._tools.end(asked)
        return Whole(thought, shown + held, calls)


def read_output(reader: OutputReader, text: str, asked: bool) -> Whole:
    """A finished output at once; line ends between an answer and tools it asks for are left out."""
    first, last = reader.take(text), reader.end(asked)
    content = first.content + last.content
    return Whole(first.reasoning + last.reasoning, content.rstrip() if last.tool_calls else content, last.tool_calls)


class _Reasoning:
    """Parts an output into what stands between the tags at its begin and the answer behind them."""

    def __init__(self, inside: bool) -> None:
        self._state = "inside" if inside else "begin"  # then "inside", "gap" behind the end tag, "answer"
        self._held = ""

    def take(self, text: str) -> tuple[str, str]:
        thought, self._held = "", self._held + text
        if self._state == "begin":
            start = self._held.lstrip()
            if start != THINK and THINK.startswith(start):
                return "", ""
            self._state = "inside" if start.startswith(THINK) else "answer"
            self._held = start.removeprefix(THINK) if start.startswith(THINK) else self._held
        if self._state == "inside":
            thought, end, rest = self._held.partition(THINK_END)
            hold = 0 if end else held_back(thought, THINK_END)
            self._held = rest if end else thought[len(thought) - hold :]
            thought = thought[: len(thought) - hold]
            if not end:
                return thought, ""
            self._state = "gap"
        if self._state == "gap":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "gap"
        return thought, self._rest()

    def end(self) -> tuple[str, str]:
        rest = self._rest()
        return (rest, "") if self._state == "inside" else ("", rest)

    def _rest(self) -> str:
        rest, self._held = self._held, ""
        return rest


class _ToolHold:
    """Holds an answer back from where it may ask for tools."""

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._held = ""
        self._begun = False  # text was shown
        self._marked = False

    def take(self, text: str) -> str:
        """What can be shown now."""
        self._held += text
        if self._marked:
            return ""
        if self._begun and not self._form.anywhere:
            return self._rest()
        start = self._held if self._begun else self._held.lstrip()
        at = min((at for mark in self._form.marks if (at := start.find(mark)) >= 0), default=-1)
        if at == 0 or (at > 0 and self._form.anywhere):
            self._marked = True
            shown = self._show(len(self._held) - len(start) + at)
            return shown if shown.strip() or self._begun else ""
        if any(mark.startswith(start) for mark in self._form.marks):
            return ""
        hold = max(held_back(self._held, mark) for mark in self._form.marks) if self._form.anywhere else 0
        return self._show(len(self._held) - hold)

    def end(self, asked: bool) -> tuple[tuple[ToolCall, ...], str]:
        """The calls, or what was held back and is text."""
        calls = calls_in(self._held, self._form) if asked else ()
        return calls, "" if calls else self._rest()

    def _show(self, size: int) -> str:
        shown, self._held = self._held[:size], self._held[size:]
        self._begun = self._begun or bool(shown.strip())
        return shown

    def _rest(self) -> str:
        return self._show(len(self._held))
