"""The incremental horizon equals the longest path computed from scratch, however the graph grows and changes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.workflow.horizon import Horizon
from hexagent.core.workflow.model import Join, JoinKind


class Scratch:
    """The definition, evaluated anew for each question."""

    def __init__(self) -> None:
        self.parents: list[tuple[int, ...]] = []
        self.needed: list[int] = []
        self.cost: list[int] = []
        self.excluded: list[bool] = []

    def starts(self) -> list[int]:
        starts: list[int] = []
        for node, parents in enumerate(self.parents):
            ends = sorted(starts[p] + self.cost[p] for p in parents if not self.excluded[p])
            starts.append(ends[min(self.needed[node], len(ends)) - 1] if ends else 0)
        return starts

    def below(self) -> list[int]:
        below = list(self.cost)
        for child in reversed(range(len(below))):
            if not self.excluded[child]:
                for parent in self.parents[child]:
                    below[parent] = max(below[parent], self.cost[parent] + below[child])
        return below


def joins(parents: int) -> st.SearchStrategy[Join]:
    kinds = [st.just(Join()), st.just(Join(JoinKind.ANY))]
    if parents:
        kinds.append(st.integers(1, parents).map(lambda k: Join(JoinKind.K_OF_N, k)))
    return st.one_of(kinds)


@given(st.data())
def test_the_horizon_equals_the_longest_path(data: st.DataObject) -> None:
    horizon, scratch = Horizon(), Scratch()
    costs = st.one_of(st.integers(0, 5), st.integers(0, 1_000))
    for _ in range(data.draw(st.integers(1, 40))):
        size = len(horizon)
        step = data.draw(st.sampled_from(("add", "add", "cost", "exclude"))) if size else "add"
        if step == "add":
            parents = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=5).map(tuple)) if size else ()
            join, cost = data.draw(joins(len(parents))), data.draw(costs)
            horizon.add(size, parents, join, cost)
            scratch.parents.append(parents)
            scratch.needed.append(join.needed(len(parents)))
            scratch.cost.append(cost)
            scratch.excluded.append(False)
        else:
            node = data.draw(st.integers(0, size - 1))
            if step == "cost":
                scratch.cost[node] = data.draw(costs)
                horizon.set_cost(node, scratch.cost[node])
            else:
                scratch.excluded[node] = True
                horizon.exclude(node)
        if data.draw(st.booleans()):  # asking must not change what later answers are
            check(horizon, scratch)
    check(horizon, scratch)


def check(horizon: Horizon, scratch: Scratch) -> None:
    nodes = range(len(horizon))
    starts, below = scratch.starts(), scratch.below()
    ends = [start + cost for start, cost in zip(starts, scratch.cost, strict=True)]
    kept = [node for node in nodes if not scratch.excluded[node]]
    total = max((ends[node] for node in kept), default=0)
    assert [horizon.start_us(node) for node in nodes] == starts
    assert [horizon.finish_us(node) for node in nodes] == ends
    assert horizon.total_us() == total
    assert [horizon.below_us(node) for node in nodes] == below
    assert horizon.remaining_us(nodes) == max((below[node] for node in kept), default=0)
    path = horizon.critical_path()
    assert not any(scratch.excluded[node] for node in path)
    assert sum(scratch.cost[node] for node in path) == total
    assert all(a in scratch.parents[b] for a, b in pairwise(path))
