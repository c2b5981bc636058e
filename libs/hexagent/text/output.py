"""Text of an output from its token ids, as they come: whole characters, cut at the first stop text."""

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class StopTexts:
    """Finds stop texts wherever token boundaries lie; what may turn out to begin one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def take(self, piece: str) -> str:
        """What can be shown now; nothing more once `stopped`, and never a stop text itself."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((held_back(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def rest(self) -> str:
        """What was held back, once nothing follows."""
        text, self._held = self._held, ""
        return text


def held_back(text: str, mark: str) -> int:
    """How many of the last characters of `text` may be the begin of `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


class OutputText:
    """One output. Special tokens have no text.

    Equal ids in any stretches give equal text, so that a retry or another agent can go on where the ids end.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.text = ""  # all that was shown
        self._tokenizer: Final = tokenizer
        self._stops = StopTexts(stops)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0  # characters, shown or held back

    @property
    def stopped(self) -> bool:
        """A stop text has come."""
        return self._stops.stopped

    def take(self, ids: Sequence[int]) -> str:
        """The text that can be shown after these ids; ids behind the one that completes a stop text are left out."""
        shown = ""
        for token_id in ids:
            if self.stopped:
                break
            self._ids.append(token_id)
            piece = self._stream.step(self._tokenizer, token_id) or ""
            self._decoded += len(piece)
            shown += self._stops.take(piece)
        self.text += shown
        return shown

    @property
    def tokens(self) -> int:
        """Ids that were taken."""
        return len(self._ids)

    def end(self) -> str:
        """The rest, when no id follows: bytes that are no character appear as U+FFFD."""
        cut = self._tokenizer.decode(self._ids, skip_special_tokens=True)[self._decoded :]
        shown = self._stops.take(cut) + self._stops.rest()
        self.text += shown
        return shown
