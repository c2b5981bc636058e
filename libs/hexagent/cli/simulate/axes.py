"""Cells, seeds and policies from what the command line gives: comma-separated values, one cell for each combination."""

import re
import tomllib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from hexagent.cli.failures import options_named, usage
from hexagent.cli.options import words
from hexagent.cli.replay import profile_text
from hexagent.cli.simulate.options import Axes
from hexagent.core.policy.profile import parse_profile
from hexagent.sim.experiment.cell import WORLDS, Cell, check_cell, cluster_of
from hexagent.sim.experiment.policies import POLICIES, unhinted
from hexagent.sim.workloads.model import Workload
from hexagent.sim.world import World

SEED_MAX: Final = 1_000_000
SEEDS_MAX: Final = 1_000  # in one experiment
_SEEDS: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def cells(axes: Axes) -> list[Cell]:
    """Every combination, checked. The error's field is the option that is wrong."""
    if bool(axes.workload) == (axes.trace is not None):
        raise usage("--workload", "give either the name of a workload or --trace FILE")
    choices: dict[str, Sequence[Any]] = {
        "model": words(axes.model, "model"),
        "cluster": words(axes.cluster, "cluster"),
        "workload": words(axes.workload, "--workload") if axes.trace is None else [axes.trace.stem],
        "world": words(axes.world, "world"),
        "engine_profile": words(axes.engine_profile, "engine_profile"),
        "load": _numbers(axes.load, "load"),
        "arrivals": words(axes.arrivals, "arrivals"),
        "duration_s": [axes.duration],
        "workflows": [axes.workflows],
        "noise": _numbers(axes.noise, "noise"),
        "link_gb_per_s": _numbers(axes.link, "link_gb_per_s"),
        "hardware": words(axes.hardware, "hardware"),
        "tp": _whole_numbers(axes.tp, "tp"),
        "tools": _numbers(axes.tools, "tools"),
        "spread": _numbers(axes.spread, "spread"),
        "hints": _numbers(axes.hints, "hints"),
        "lengths": words(axes.lengths, "lengths"),
        "flip_s": _numbers(axes.flip, "flip_s"),
        "profile": [_overrides(axes.profile)],
        "trace": [str(axes.trace or "")],
        "tenants": [axes.tenants],
        "models": [axes.models],
    }
    made = [Cell(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())]
    with options_named({"workload": "--workload"}):
        for cell in made:
            check_cell(cell)
    return made


def policies(text: str, cell: Cell, option: str = "--policies") -> tuple[str, ...]:
    """Names of known policies; "" = those compared by default in the cell's world."""
    if not text:
        return POLICIES[cell.world]
    names = words(text, option)
    with options_named({"policy": option}):
        for name in names:
            World(cluster_of(cell), Workload("none", "", ()), unhinted(name), 0)
    return names


def settings(world: str, engine_profiles: str) -> list[tuple[str, str]]:
    """The world, or both, with each engine profile; without prefix caches with the first alone."""
    if world not in (*WORLDS, "both"):
        raise usage("world", f"no world {world!r}; known: {', '.join(WORLDS)}, both")
    profiles = words(engine_profiles, "engine-profile")
    return [
        (name, profile)
        for name in (WORLDS if world == "both" else [world])
        for profile in (profiles if WORLDS[name] else profiles[:1])
    ]


def trace_files(folder: Path | None) -> tuple[Path, ...]:
    """The traces in it, by name."""
    files = tuple(sorted(folder.glob("*.jsonl"))) if folder is not None else ()
    if folder is not None and not files:
        raise usage("--traces", f"no *.jsonl in {folder}")
    return files


def seeds(text: str) -> tuple[int, ...]:
    """Ascending seeds from `1`, `1-5` or `1,3,7-9`."""
    found: set[int] = set()
    for word in words(text, "seeds"):
        match = _SEEDS.fullmatch(word)
        if match is None:
            raise usage("seeds", f"{word!r} is neither a number nor a range such as 1-5")
        low, high = int(match[1]), int(match[2] or match[1])
        if high > SEED_MAX:
            raise usage("seeds", f"{high} is above {SEED_MAX}")
        if low > high or high - low >= SEEDS_MAX:
            raise usage("seeds", f"{word} holds none or more than {SEEDS_MAX} seeds")
        found.update(range(low, high + 1))
    if len(found) > SEEDS_MAX:
        raise usage("seeds", f"names {len(found)} seeds, more than {SEEDS_MAX}")
    return tuple(sorted(found))


def _overrides(path: Path | None) -> str:
    """What the profile sets, one key a line, whatever its file looks like."""
    if path is None:
        return ""
    text = profile_text(path)
    parse_profile(text, str(path))
    return "\n".join([f"{key} = {value}" for key, value in sorted(tomllib.loads(text).items())])


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in words(text, option)]
    except ValueError:
        raise usage(option, f"{text!r} is not a list of whole numbers") from None


def _numbers(text: str, option: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in words(text, option)))
    except ValueError:
        raise usage(option, f"{text!r} is not a list of numbers") from None
