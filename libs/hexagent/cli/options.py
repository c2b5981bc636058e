"""Options, their values and help texts that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from hexagent.cli.failures import usage

Cluster = Annotated[str, typer.Option("--cluster", help="A shipped cluster's name, or a cluster file.")]
Policy = Annotated[str, typer.Option("--policy", help="Scheduling policy; default: the cluster file's.")]
TimeScale = Annotated[
    float | None, typer.Option("--time-scale", help="Model seconds a wall second; default: the cluster file's.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the table's rows as JSON.")]


def examples(*lines: str) -> str:
    """Example commands as the last part of a command's help."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"  {line}" for line in lines)))


def words(text: str, option: str) -> tuple[str, ...]:
    """Different values with commas between, at least one."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise usage(option, "names nothing")
    return found


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Different whole numbers with commas between, at least one."""
    found = words(text, option)
    for word in found:
        if not word.isdecimal():
            raise usage(option, f"{word!r} is not a whole number")
    return tuple(dict.fromkeys(map(int, found)))
