"""Pictures of experiments, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from hexagent.cli.simulate.tables import name_of
from hexagent.core.errors import InvalidArgument
from hexagent.core.policy.registry import RECIPES
from hexagent.sim.experiment.capacity import PERCENT, Search
from hexagent.sim.experiment.policies import HINTED, unhinted
from hexagent.sim.experiment.pooling import Pooled

_COLOURS: Final = ("#7f7f7f", "#bcbd22", "#e377c2", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf")
_EMPHASIS: Final = {"hexagent": "#d62728", "hexagent-plus": "#9a0000", "clairvoyant": "#000000"}
_COLUMNS: Final = 4
_PANEL: Final = (3.4, 2.6)  # inches
_DPI: Final = 90
_LEGEND: Final[dict[str, Any]] = {"fontsize": 7, "frameon": False}


def draw_attainment(pools: Sequence[Pooled], path: Path) -> None:
    """The paper's figure: the share of workflows on time over the SLO scale, a panel a cell."""
    figure, panels = _panels([name_of(pool.cell) for pool in pools])
    for axes, pool in zip(panels, pools, strict=True):
        for policy, stretches in zip(pool.policies, pool.stretches, strict=True):
            ordered = np.sort(stretches[np.isfinite(stretches)])
            share = 100 * np.arange(1, len(ordered) + 1) / len(stretches)
            axes.step(ordered, share, where="post", **_style(policy))
        axes.axhline(95, color="#cccccc", linewidth=0.7, zorder=0)
        axes.set_xlim(_low(pool), float(np.quantile(pool.stretches, 0.995, method="nearest")))
        axes.set_xscale("log")
        _plain_ticks(axes)
        axes.set_ylim(0, 101)
    _finish(figure, panels, "SLO scale (completion time / time alone)", "on time, %", path)


def draw_stretches(pools: Sequence[Pooled], path: Path) -> None:
    """Boxes from the 25th to the 75th percentile of stretch, lines from the 5th to the 95th, a tick at the 99th."""
    figure, panels = _panels([name_of(pool.cell) for pool in pools], legend=False)
    for axes, pool in zip(panels, pools, strict=True):
        for place, (policy, stretches) in enumerate(zip(pool.policies, pool.stretches, strict=True)):
            colour = _style(policy)["color"]
            p5, p25, p50, p75, p95, p99 = np.quantile(
                stretches, (0.05, 0.25, 0.5, 0.75, 0.95, 0.99), method="inverted_cdf"
            )
            axes.plot((p5, p95), (place, place), color=colour, linewidth=1)
            axes.barh(place, p75 - p25, left=p25, height=0.6, color=colour, alpha=0.55)
            axes.plot((p50,), (place,), "|", color="black", markersize=7)
            axes.plot((p99,), (place,), "|", color=colour, markersize=7, markeredgewidth=2)
        axes.set_xscale("log")
        _plain_ticks(axes)
        axes.set_yticks(range(len(pool.policies)), [_short(name) for name in pool.policies], fontsize=6)
        axes.invert_yaxis()
    _finish(figure, panels, "stretch (completion time / time alone)", "", path, legend=False)


def draw_loads(pools: Sequence[Pooled], path: Path) -> None:
    """Req95 over load, a panel for the cells that differ in nothing else."""
    by_rest: dict[str, list[Pooled]] = {}
    for pool in sorted([pool for pool in pools if pool.cell.load], key=lambda pool: pool.cell.load):
        by_rest.setdefault(name_of(pool.cell._replace(load=0.0)), []).append(pool)
    figure, panels = _panels(list(by_rest))
    for axes, several in zip(panels, by_rest.values(), strict=True):
        for policy in several[0].policies:
            reqs = [(pool.cell.load, pool.req(policy, 95)) for pool in several if policy in pool.policies]
            axes.plot([load for load, _ in reqs], [req.value for _, req in reqs], marker=".", **_style(policy))
        axes.set_yscale("log")
        _plain_ticks(axes, of_x=False)
    _finish(figure, panels, "load of the bottleneck phase", "Req95", path)


def draw_capacities(searches: Sequence[Search], path: Path) -> None:
    """Req of the loads that were tried, and the SLO scale up to which they are held, a panel a cell."""
    cells = list(dict.fromkeys(search.cell for search in searches))
    figure, panels = _panels([name_of(cell) for cell in cells])
    for axes, cell in zip(panels, cells, strict=True):
        for search in [search for search in searches if search.cell == cell]:
            loads, reqs = zip(*sorted(search.tried), strict=True)
            axes.plot(loads, reqs, marker=".", **_style(search.policy))
            axes.axhline(search.alpha, color="#cccccc", linewidth=0.7, zorder=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes)
        _plain_ticks(axes, of_x=False)
    _finish(figure, panels, "load of the bottleneck phase", f"Req{PERCENT}", path)


def _panels(titles: Sequence[str], legend: bool = True) -> tuple[Figure, list[Axes]]:
    """One panel a title, in rows of at most four."""
    columns = min(len(titles), _COLUMNS)
    rows = -(-len(titles) // columns)
    figure = Figure((_PANEL[0] * max(columns, 2), _PANEL[1] * rows + (0.7 if legend else 0.2)), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number) for number in range(1, len(titles) + 1)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(fill(title, 44), fontsize=7)
        axes.tick_params(labelsize=7)
        axes.grid(True, which="major", color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def _finish(figure: Figure, panels: Sequence[Axes], x: str, y: str, path: Path, legend: bool = True) -> None:
    figure.supxlabel(x, fontsize=8)
    if y:
        figure.supylabel(y, fontsize=8)
    if legend:
        labelled: dict[str, Any] = {}
        for axes in panels:
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
        figure.legend(list(labelled.values()), list(labelled), loc="outside upper center", ncols=5, **_LEGEND)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As PNG. `InvalidArgument` (NOT_WRITABLE) if it cannot be written."""
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": None})
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}", reason="NOT_WRITABLE", field="out") from None


def _style(policy: str) -> dict[str, Any]:
    """A colour for the order, a dashed line for placement by count."""
    order, _, dispatch = unhinted(policy).partition(":")
    hinted = policy.endswith(HINTED)
    fallback = _COLOURS[list(RECIPES).index(order) % len(_COLOURS)]
    return {
        "label": _short(policy),
        "color": _EMPHASIS.get(order, fallback),
        "linestyle": "--" if dispatch == "least-loaded" else ":" if hinted else "-",
        "linewidth": 1.6 if order in _EMPHASIS else 1.0,
    }


def _short(policy: str) -> str:
    """Placement by predicted finish goes without saying."""
    order, _, dispatch = policy.partition(":")
    return f"{order} ({dispatch})" if dispatch and dispatch != "predicted-finish" else order


def _low(pool: Pooled) -> float:
    return float(np.quantile(pool.stretches, 0.01, method="nearest"))


def _plain_ticks(axes: Axes, of_x: bool = True) -> None:
    """1, 2, 5, 10 rather than powers of ten: stretches rarely span one."""
    axis = axes.xaxis if of_x else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FormatStrFormatter("%g"))
