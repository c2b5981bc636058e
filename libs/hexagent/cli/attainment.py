"""A picture of how many workflows are on time, by SLO scale and policy."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from hexagent.sim.metrics import required_scale

LINES: Final = 10
BAR_CELLS: Final = 20
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_COLOURS: Final = ("red", "yellow", "green", "cyan", "magenta", "blue")


def attainment(stretches: Sequence[float], scale: float) -> float:
    """The share of workflows whose stretch is at most `scale`; 0 of none."""
    return sum(stretch <= scale for stretch in stretches) / len(stretches) if stretches else 0.0


def scales(runs: Mapping[str, Sequence[float]], lines: int = LINES) -> list[float]:
    """Rising scales that show the difference: from where the first tenth of any run is on time to where all are.

    In equal ratios, because what a factor of two in lateness means does not depend on where it starts.
    """
    low = min((required_scale(run, 10) for run in runs.values() if run), default=1.0)
    finite = [stretch for run in runs.values() for stretch in run if math.isfinite(stretch)]
    high = max(finite, default=low)
    low = max(min(low, high), 0.1)
    if high <= low * 1.01:
        return [round(low, 2)]
    ratio = (high / low) ** (1 / (lines - 1))
    return [_rounded_up(low * ratio**line) for line in range(lines)]


def picture(runs: Mapping[str, Sequence[float]]) -> Table:
    """One line an SLO scale, one bar a policy: the share of workflows that complete within scale x horizon."""
    table = Table(
        title="Share of workflows on time, by SLO scale (completion time over the time alone on the cluster)",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("scale", justify="right")
    for name in runs:
        table.add_column(name)
    for scale in scales(runs):
        cells = [
            Text(f"{bar(attainment(run, scale))} {attainment(run, scale):4.0%}", style=_COLOURS[i % len(_COLOURS)])
            for i, run in enumerate(runs.values())
        ]
        table.add_row(f"{scale:g}", *cells)
    return table


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """`cells` characters, `share` of them filled, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[rest] if rest else "")
    return text.ljust(cells, "·")


def _rounded_up(scale: float) -> float:
    """To two figures and never down: the last line is where every workflow is on time."""
    step = 10.0 ** (math.floor(math.log10(scale)) - 1)
    return round(math.ceil(round(scale / step, 6)) * step, 6)
