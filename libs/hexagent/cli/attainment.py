"""A picture of how many workflows are on time, by SLO scale and policy."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from hexagent.sim.metrics import required_scale

LINES: Final = 12
BAR_CELLS: Final = (6, 32)  # least and most
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_COLOURS: Final = ("red", "yellow", "green", "cyan", "magenta", "blue")
_SCALE_CELLS: Final = 7  # the first column and its gap
_SHARE_CELLS: Final = 7  # " 100%" and the gap to the next column


def attainment(stretches: Sequence[float], scale: float) -> float:
    """The share of workflows whose stretch is at most `scale`; 0 of none."""
    return sum(stretch <= scale for stretch in stretches) / len(stretches) if stretches else 0.0


def scales(runs: Mapping[str, Sequence[float]], lines: int = LINES) -> list[float]:
    """Rising scales that show the difference: from where the first run has a tenth on time to where the last has 95 %.

    In equal ratios, because what a factor of two in lateness means does not depend on where it starts. The few
    latest workflows of a run are left to its figures: they can be so late that nothing else would show.
    """
    low = min((required_scale(run, 10) for run in runs.values() if run), default=1.0)
    finite = [[stretch for stretch in run if math.isfinite(stretch)] for run in runs.values()]
    high = max((required_scale(run, 95) for run in finite if run), default=low)
    low = max(min(low, high), 0.1)
    if high <= low * 1.01:
        return [round(low, 2)]
    ratio = (high / low) ** (1 / (lines - 1))
    return sorted({_rounded_up(low * ratio**line) for line in range(lines)})


def picture(runs: Mapping[str, Sequence[float]], width: int = 80) -> Table:
    """One line an SLO scale, one bar a policy: the share of workflows that complete within scale x horizon.

    `width` is the terminal's, in characters.
    """
    cells = (width - _SCALE_CELLS) // max(len(runs), 1) - _SHARE_CELLS
    cells = min(max(cells, BAR_CELLS[0]), BAR_CELLS[1])
    table = Table(
        title="Share of workflows on time, by SLO scale (completion time / time alone)",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    table.add_column("scale", justify="right", no_wrap=True)
    for name in runs:
        table.add_column(name, no_wrap=True)
    for scale in scales(runs):
        texts = [
            Text(
                f"{bar(attainment(run, scale), cells)} {attainment(run, scale):4.0%}", style=_COLOURS[i % len(_COLOURS)]
            )
            for i, run in enumerate(runs.values())
        ]
        table.add_row(f"{scale:g}", *texts)
    return table


def bar(share: float, cells: int) -> str:
    """`cells` characters, `share` of them filled, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[rest] if rest else "")
    return text.ljust(cells, "·")


def _rounded_up(scale: float) -> float:
    """To two figures and never down: the last line is where every workflow is on time."""
    step = 10.0 ** (math.floor(math.log10(scale)) - 1)
    return round(math.ceil(round(scale / step, 6)) * step, 6)
