"""Step times, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hexagent.cli.simulate.pictures import save
from hexagent.core.estimate.tables import StepTable

_COLOURS: Final = {"a100": "#1f77b4", "b200": "#9467bd", "h100": "#2ca02c", "h200": "#d62728", "l40s": "#ff7f0e"}
_STYLES: Final = {"silicon": "-", "roofline": ":", "user": "--"}
_PROMPTS: Final = tuple(2**power for power in range(4, 18))
_BATCHES: Final = tuple(2**power for power in range(9))
_PREFIX: Final = 16_384
_CONTEXT: Final = 4_096


def draw_curves(tables: Sequence[StepTable], path: Path) -> None:
    """Prefill over new tokens, cold and behind a cached prefix, and decode over the batch; a line a GPU."""
    figure = Figure((10.5, 3.4), layout="constrained")
    cold, cached, decode = (figure.add_subplot(1, 3, number) for number in (1, 2, 3))
    for table in tables:
        style: dict[str, Any] = {
            "label": f"{table.gpu_type} ({table.source})",
            "color": _COLOURS.get(table.gpu_type),
            "linestyle": _STYLES[table.source],
            "linewidth": 1.3,
        }
        cold.plot(_PROMPTS, [table.prefill_us(new) / 1e3 for new in _PROMPTS], **style)
        cached.plot(_PROMPTS, [table.prefill_us(new, _PREFIX) / 1e3 for new in _PROMPTS], **style)
        decode.plot(_BATCHES, [table.decode_us(batch, _CONTEXT) / 1e3 for batch in _BATCHES], **style)
    _finish(cold, "prefill, nothing cached", "new tokens")
    _finish(cached, f"prefill behind {_PREFIX:,} cached tokens", "new tokens")
    _finish(decode, f"decode step at {_CONTEXT:,} tokens of context", "calls in the batch")
    handles, labels = cold.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    figure.suptitle(f"{tables[0].model}, {tables[0].tp} GPUs, {tables[0].precision}", fontsize=9)
    save(figure, path)


def _finish(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel("ms", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.tick_params(labelsize=7)
    axes.grid(True, which="major", color="#eeeeee", linewidth=0.6)
