"""Seeded generators of the benchmark's workloads, by name."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from hexagent.core.errors import NotFound
from hexagent.sim.workloads.agents import SHAPES, shape_items
from hexagent.sim.workloads.arrivals import arrival_times, parse_arrivals
from hexagent.sim.workloads.chains import (
    BFCL_CALLS,
    SHAREGPT_CALLS,
    Calls,
    bfcl_items,
    sharegpt_history_items,
    sharegpt_items,
)
from hexagent.sim.workloads.draws import shuffled, stream
from hexagent.sim.workloads.model import ScriptedWorkflow, WorkItem, Workload
from hexagent.sim.workloads.options import Options, checked_size, drawn_tenant
from hexagent.sim.workloads.tree import LATS_CALLS, lats_items


class Kind(NamedTuple):
    """A class of generated workflows."""

    calls: Calls
    items: Callable[[list[str], list[int]], list[tuple[WorkItem, ...]]]  # of workflow ids and their numbers of calls


class Generator(NamedTuple):
    description: str  # shown to users
    kinds: tuple[str, ...]  # classes of workflows, in equal parts
    workflows: int
    rate_per_s: int


KINDS = {
    "sharegpt": Kind(SHAREGPT_CALLS, sharegpt_items),
    "sharegpt-history": Kind(SHAREGPT_CALLS, sharegpt_history_items),
    "bfcl": Kind(BFCL_CALLS, bfcl_items),
    "lats": Kind(LATS_CALLS, lats_items),
    **{name: Kind(shape.calls, partial(shape_items, name)) for name, shape in SHAPES.items()},
}
GENERATORS = {
    "sharegpt": Generator(
        "chat sessions, mean 6.66 calls (at most 80); 256 prompt and 277 output tokens a call", ("sharegpt",), 100, 10
    ),
    "sharegpt-history": Generator(
        "chat sessions whose prompts hold all earlier turns; 256 new prompt tokens a call",
        ("sharegpt-history",),
        100,
        10,
    ),
    "bfcl": Generator(
        "function-calling chains, mean 10.75 calls (at most 70), tools of 50-500 ms; 735 prompt and 34 output tokens",
        ("bfcl",),
        400,
        40,
    ),
    "lats": Generator(
        "tree search, mean 159.7 calls, bursts of fan-out with joins; 467 prompt and 72.6 output tokens",
        ("lats",),
        100,
        40,
    ),
    "mixed": Generator("sharegpt, bfcl and lats in equal parts", ("sharegpt", "bfcl", "lats"), 100, 10),
    **{
        name: Generator(shape.description, (name,), shape.workflows, shape.rate_per_s) for name, shape in SHAPES.items()
    },
    "agents": Generator(f"{', '.join(SHAPES)} in equal parts", tuple(SHAPES), 100, 10),
}


def generate(name: str, options: Options = Options()) -> Workload:
    """The workload `name` under `options`; same arguments, same bytes. `NotFound` lists the known names."""
    generator = GENERATORS.get(name)
    if generator is None:
        known = ", ".join(sorted(GENERATORS))
        raise NotFound(
            f"no workload {name!r}; known: {known}",
            reason="UNKNOWN_WORKLOAD",
            field="workload",
            details={"known": known},
        )
    arrivals = parse_arrivals(options.arrivals)
    size = checked_size(options, generator.workflows, generator.rate_per_s)
    times = arrival_times(size.workflows, size.rate_milli, arrivals, options.seed)
    order = shuffled(stream(name, options.seed, "order"), size.workflows)
    workflows: list[ScriptedWorkflow] = []
    for part, kind in enumerate(generator.kinds):
        places = order[part :: len(generator.kinds)]
        if places:
            workflows += _of_kind(name, kind, sorted(places), times, options)
    workflows.sort(key=lambda workflow: (workflow.arrival_us, workflow.workflow_id))
    source = f"generator {name}: {size.workflows} workflows, {size.rate_milli / 1_000:g}/s {options.arrivals},"
    return Workload(name, f"{source} seed {options.seed}", tuple(workflows))


def _of_kind(name: str, kind: str, places: list[int], times: list[int], options: Options) -> list[ScriptedWorkflow]:
    """The workflows of one class, at these places in the order of arrival."""
    calls = KINDS[kind].calls.table(options.calls_sigma_milli)
    counts = calls.stratified(stream(name, options.seed, kind, "calls"), len(places))
    ids = [f"{kind}-s{options.seed}-{place:06d}" for place in places]
    return [
        ScriptedWorkflow(ids[i], kind, drawn_tenant(options.tenants, ids[i]), times[place], items)
        for i, (place, items) in enumerate(zip(places, KINDS[kind].items(ids, counts), strict=True))
    ]
