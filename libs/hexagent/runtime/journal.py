"""The scheduler's journal: a bounded file of everything it handled and decided."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hexagent.core.errors import InvalidArgument
from hexagent.core.scheduling.events import SchedulerEvent
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.wire.journal import JournalEntry, JournalHeader, journal_entry_from_bytes, journal_entry_to_bytes

log = logging.getLogger(__name__)

_LENGTH_BYTES = 4  # big-endian, before each entry


class JournalWriter:
    """Appends entries; `flush` writes them out. Beyond `bytes_max` nothing more is kept, and a warning says so:
    the inputs of a replay have to be complete up to where they end."""

    def __init__(self, path: Path, header: JournalHeader, bytes_max: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._left = bytes_max
        self._sequence = 0
        self._buffer: list[bytes] = []
        self.append(header, 0)
        self.flush()

    def append(self, event: SchedulerEvent | DecisionRecord | JournalHeader, now_us: int, stored: bytes = b"") -> None:
        """Keep one input or decision; `stored` as for `journal_entry_to_bytes`."""
        if self._left <= 0:
            return
        self._sequence += 1
        data = journal_entry_to_bytes(JournalEntry(self._sequence, now_us, event), stored)
        self._left -= len(data) + _LENGTH_BYTES
        self._buffer += (len(data).to_bytes(_LENGTH_BYTES, "big"), data)
        if self._left <= 0:
            log.warning("the journal %s is full; it ends here", self.path)

    def flush(self) -> None:
        if self._buffer:
            self._file.write(b"".join(self._buffer))
            self._file.flush()
            self._buffer.clear()

    async def close(self) -> None:
        self.flush()
        self._file.close()


def read_journal(path: Path) -> Iterator[JournalEntry]:
    """Entries in order; one that a crash cut off at the end is left out.

    `InvalidArgument` (NO_JOURNAL, BAD_JOURNAL) where the file is missing or is no journal.
    """
    try:
        with path.open("rb") as file:
            while len(length := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
                size = int.from_bytes(length, "big")
                data = file.read(size)
                if len(data) < size:
                    return
                yield journal_entry_from_bytes(data)
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error}", reason="NO_JOURNAL", field="journal") from error
