"""The largest load at which a policy still serves nearly all workflows in time, by bisection."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from hexagent.core.scheduling.charges import Prices
from hexagent.core.units import MILLI
from hexagent.sim.experiment.cell import LOAD_RANGE, Cell, cluster_of, rate_per_s
from hexagent.sim.experiment.policies import PRACTICE
from hexagent.sim.experiment.run import Outcome, Run, Value
from hexagent.sim.metrics import required_scale

PERCENT: Final = 99  # of the workflows are to be in time
PRECISION: Final = 1.05  # a search ends where a load is too much and one that is less by this factor is not
_FIRST: Final = 1.0
_S_PER_HOUR: Final = 3_600


class Search(NamedTuple):
    """Of one policy in a cell, whose own load is of no account."""

    cell: Cell
    policy: str
    alpha: float  # SLO scale
    tried: tuple[tuple[float, float], ...] = ()  # loads with the Req of PERCENT that they needed

    @property
    def over(self) -> float:
        """The smallest load found to be too much."""
        return min([load for load, req in self.tried if req > self.alpha], default=math.inf)

    @property
    def held(self) -> float:
        """The largest load below it that was served in time; 0 = none."""
        return max([load for load, req in self.tried if req <= self.alpha and load < self.over], default=0.0)

    @property
    def next_load(self) -> float | None:
        """To be tried next: doubled or halved until the answer lies between two loads, then between them."""
        held, over = self.held, self.over
        low, high = LOAD_RANGE
        if not self.tried:
            return _FIRST
        if not held:
            return max(over / 2, low) if over > low else None
        if over == math.inf:
            return min(2 * held, high) if held < high else None
        return math.sqrt(held * over) if over > held * PRECISION else None

    def runs(self, load: float, seeds: Sequence[int]) -> list[Run]:
        return [Run(self.cell._replace(load=load), self.policy, seed) for seed in seeds]

    def after(self, load: float, outcomes: Sequence[Outcome]) -> "Search":
        """With what the runs at this load, one a seed, came to."""
        req = required_scale([row.stretch for outcome in outcomes for row in outcome.rows], PERCENT)
        return self._replace(tried=(*self.tried, (load, req)))


def capacity_rows(searches: Sequence[Search], seeds: Sequence[int]) -> list[dict[str, Value]]:
    """A row a search that has ended. `ratio_to_best` is to the best of PRACTICE in the same cell, None if none held
    anything; a priced GPU-hour is one of an A100.
    """
    rows: list[dict[str, Value]] = []
    for search in searches:
        cell, held = search.cell, search.held
        rate = sum(rate_per_s(cell._replace(load=held), seed) for seed in seeds) / len(seeds) if held else 0.0
        best = max([s.held for s in searches if s.cell == cell and s.policy in PRACTICE], default=0.0)
        rows.append(
            {
                "policy": search.policy,
                "model": cell.model,
                "cluster": cell.cluster,
                "workload": cell.workload,
                "world": cell.world,
                "engine_profile": cell.engine_profile,
                "alpha": search.alpha,
                "load": held,
                "rate_per_s": rate,
                "workflows_per_gpu_hour": rate * _S_PER_HOUR * MILLI / Prices(cluster_of(cell)).cluster_milli,
                "ratio_to_best": held / best if best else None,
                "req99": dict(search.tried).get(held),
            }
        )
    return rows
