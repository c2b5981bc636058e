"""What commands leave behind: tables for people, one JSON file for programs."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from hexagent import __version__
from hexagent.core.errors import InvalidArgument

Value = str | int | float | bool | None
Row = Mapping[str, Value]

_DIGITS: Final = 6  # of fractions in JSON: a microsecond


def json_document(command: str, seed: int | None, rows: Iterable[Row]) -> dict[str, object]:
    """`command`, `version`, `seed` and flat `rows`; what is not a finite number becomes null."""
    return {
        "command": command,
        "version": __version__,
        "seed": seed,
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
    }


def write_json(path: Path | None, command: str, seed: int | None, rows: Iterable[Row]) -> None:
    """Write the document, by way of a second file so that nobody reads half of it. `InvalidArgument` if it cannot."""
    if path is None:
        return
    text = json.dumps(json_document(command, seed, rows), indent=1, allow_nan=False) + "\n"
    unfinished = path.with_name(path.name + ".new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from None


def check_writable(path: Path | None, option: str = "json") -> None:
    """Say before the work, not after it, that its result cannot be written."""
    if path is None:
        return
    what = ""
    if path.is_dir():
        what = f"{path} is a folder"
    elif not os.access(path.absolute().parent, os.W_OK):
        what = f"cannot write into {path.absolute().parent}"
    if what:
        raise InvalidArgument(f"--{option.replace('_', '-')}: {what}", reason="NOT_WRITABLE", field=option)


def made_folder(path: Path, option: str) -> Path:
    """The folder, made if there is none. `InvalidArgument` (NOT_WRITABLE)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}", reason="NOT_WRITABLE", field=option) from None
    return path


def table_of(title: str, rows: Sequence[Row], right: Iterable[str] = ()) -> Table:
    """A table whose columns are the keys of the first row; numbers stand right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    aligned = set(right)
    for key, value in rows[0].items() if rows else ():
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        table.add_column(key, justify="right" if numeric or key in aligned else "left", overflow="fold")
    for row in rows:
        table.add_row(*[shown(value) for value in row.values()])
    return table


def shown(value: Value) -> str:
    """A value as people read it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float() if not math.isfinite(value):
            return "-"
        case float():
            return f"{value:,.2f}" if abs(value) < 1_000 else f"{value:,.0f}"
        case _:
            return str(value)


def console() -> Console:
    """Where tables go: stdout, so that they can be piped; progress goes to stderr."""
    return Console(highlight=False)


def error_console() -> Console:
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line of progress on stderr, as it is: not wrapped, brackets are no markup."""
    error_console().print(text, soft_wrap=True, markup=False)


def _plain(value: Value) -> Value:
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value


def _not_writable(path: Path, error: OSError) -> InvalidArgument:
    return InvalidArgument(f"--json: {path}: {error.strerror}", reason="NOT_WRITABLE", field="json")
