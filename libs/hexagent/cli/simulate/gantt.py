"""A picture of what every instance did when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hexagent.cli.simulate.pictures import save
from hexagent.cli.simulate.spans import Span
from hexagent.core.units import US_PER_S

_COLOURS: Final = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#17becf")
_LANE: Final = 0.8  # height of a lane that is full


def draw_gantt(spans: Sequence[Span], instances: Sequence[str], title: str, path: Path) -> None:
    """A lane an instance: prompts in blocks by class of workflow; decoding as high as calls are in the batch."""
    classes = sorted({span.workflow_class for span in spans})
    colour = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(classes)}
    figure = Figure((10, 1.4 + 0.28 * len(instances)), layout="constrained")
    axes = figure.add_subplot()
    largest = max((_batches(spans, name)[1].max(initial=0) for name in instances), default=0)
    for lane, instance in enumerate(instances):
        _prefills(axes, lane, [span for span in spans if span.prefill and span.instance == instance], colour)
        times, batch = _batches(spans, instance)
        if len(times):
            height = _LANE * batch / max(largest, 1)
            base = lane + _LANE / 2
            axes.fill_between(times / US_PER_S, base, base - height, step="post", color="#555555", linewidth=0)
    axes.set_yticks(range(len(instances)), instances, fontsize=7)
    axes.set_ylim(len(instances) - 0.4, -0.6)
    axes.set_xlim(0, max((span.end_us for span in spans), default=US_PER_S) / US_PER_S)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=9)
    handles = [Patch(color=colour[name], label=f"prefill, {name}") for name in classes]
    handles.append(Patch(color="#555555", label=f"decode: full height is {largest} calls"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    save(figure, path)


def _prefills(axes: Axes, lane: int, spans: Sequence[Span], colour: dict[str, str]) -> None:
    for name in sorted({span.workflow_class for span in spans}):
        blocks = [
            (span.start_us / US_PER_S, (span.end_us - span.start_us) / US_PER_S)
            for span in spans
            if span.workflow_class == name
        ]
        axes.broken_barh(blocks, (lane - _LANE / 2, _LANE), facecolors=colour[name], linewidth=0)


def _batches(spans: Sequence[Span], instance: str) -> tuple[np.ndarray, np.ndarray]:
    """Times in microseconds at which the number of calls decoding changes, and the number from then on."""
    changes: dict[int, int] = {}
    for span in spans:
        if span.instance == instance and not span.prefill:
            changes[span.start_us] = changes.get(span.start_us, 0) + 1
            changes[span.end_us] = changes.get(span.end_us, 0) - 1
    times = sorted(changes)
    return np.array(times, dtype=np.int64), np.cumsum([changes[time] for time in times], dtype=np.int64)
