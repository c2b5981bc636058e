"""Options and help texts that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the table's rows as JSON.")]


def examples(*lines: str) -> str:
    """Example commands as the last part of a command's help."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"  {line}" for line in lines)))
