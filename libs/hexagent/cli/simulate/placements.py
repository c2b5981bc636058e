"""Which GPU types got which calls: tokens by phase, size of the call and instance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hexagent.cli.report import Row
from hexagent.cli.simulate.pictures import save
from hexagent.cli.simulate.spans import outcomes_of
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.sim.world import World

PHASES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE}
INSTANCES: Final = "instances"  # the bar of the phase's own instances
_COLOURS: Final = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e")
_STEP_BITS: Final = 2  # sizes begin at powers of four


class Place(NamedTuple):
    gpu_type: str
    kept: bool  # on an instance of the other phase

    def __str__(self) -> str:
        return f"{self.gpu_type} of the other phase" if self.kept else self.gpu_type


class Placed(NamedTuple):
    """Calls of one size in one phase."""

    phase: str  # of PHASES
    size: str  # tokens: of the prompt that are not cached, of the output
    calls: int
    tokens: Mapping[Place, int]


def placed_calls(world: World) -> list[Placed]:
    """By phase and size, all sizes last; of the calls of all workflows that the tracker remembers."""
    specs = {name: station.spec for name, station in world.fleet.stations.items()}
    tokens: dict[tuple[str, int], Counter[Place]] = {}
    calls = Counter[tuple[str, int]]()
    for _, outcome in outcomes_of(world):
        computed, decoded = outcome.prompt_tokens - outcome.cached_tokens, outcome.output_tokens - 1
        parts = (("prefill", outcome.prefill_instance, computed), ("decode", outcome.decode_instance, decoded))
        for phase, instance, count in parts:
            if count > 0:
                size = (count.bit_length() - 1) // _STEP_BITS * _STEP_BITS
                place = Place(specs[instance].gpu_type, specs[instance].role not in (PHASES[phase], Role.BOTH))
                tokens.setdefault((phase, size), Counter())[place] += count
                calls[phase, size] += 1
    placed = []
    for phase in PHASES:
        keys = sorted(key for key in tokens if key[0] == phase)
        placed += [Placed(phase, f"from {1 << key[1]:,}", calls[key], tokens[key]) for key in keys]
        whole = sum((tokens[key] for key in keys), Counter[Place]())
        placed.append(Placed(phase, "all", sum(calls[key] for key in keys), whole))
    return placed


def placed_rows(placed: Sequence[Placed]) -> list[Row]:
    """Shares of the tokens, one row a phase and size."""
    places = _places(placed)
    return [
        {
            "phase": each.phase,
            "tokens": each.size,
            "calls": each.calls,
            **{str(place): f"{each.tokens.get(place, 0) / max(sum(each.tokens.values()), 1):.0%}" for place in places},
        }
        for each in placed
    ]


def draw_placements(placed: Sequence[Placed], instances: Sequence[InstanceSpec], title: str, path: Path) -> None:
    """A panel a phase; a bar a size, its height the shares of GPU types in the tokens, and one of the instances."""
    places = _places(placed)
    types = sorted({spec.gpu_type for spec in instances})
    colour = {gpu_type: _COLOURS[number % len(_COLOURS)] for number, gpu_type in enumerate(types)}
    figure = Figure((10, 3.6), layout="constrained")
    for number, phase in enumerate(PHASES, 1):
        axes = figure.add_subplot(1, 2, number)
        own = Counter(Place(spec.gpu_type, False) for spec in instances if spec.role in (PHASES[phase], Role.BOTH))
        bars = [each for each in placed if each.phase == phase]
        _stack(axes, [*bars, Placed(phase, INSTANCES, own.total(), own)], places, colour)
        axes.set_title(
            "prefill: tokens computed of a prompt" if phase == "prefill" else "decode: tokens of an output", fontsize=8
        )
    figure.supylabel("share of the tokens, %", fontsize=8)
    figure.suptitle(title, fontsize=9)
    handles = [Patch(facecolor=colour[p.gpu_type], hatch="///" if p.kept else None, label=str(p)) for p in places]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    save(figure, path)


def _stack(axes: Axes, bars: Sequence[Placed], places: Sequence[Place], colour: Mapping[str, str]) -> None:
    bottom = [0.0] * len(bars)
    for place in places:
        heights = [100 * bar.tokens.get(place, 0) / max(sum(bar.tokens.values()), 1) for bar in bars]
        axes.bar(
            range(len(bars)),
            heights,
            bottom=bottom,
            color=colour[place.gpu_type],
            hatch="///" if place.kept else None,
            edgecolor="white",
            linewidth=0.5,
        )
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    labels = [f"{bar.size}\n{bar.calls:,}{'' if bar.size == INSTANCES else ' calls'}" for bar in bars]
    axes.set_xticks(range(len(bars)), labels, fontsize=6)
    axes.tick_params(axis="y", labelsize=7)


def _places(placed: Sequence[Placed]) -> list[Place]:
    return sorted({place for each in placed for place in each.tokens})
