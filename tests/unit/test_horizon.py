"""The horizon by hand: joins, exclusions, paths."""

import pytest

from hexagent.core.workflow.horizon import Horizon
from hexagent.core.workflow.model import Join, JoinKind

ALL = Join()
ANY = Join(JoinKind.ANY)
TWO = Join(JoinKind.K_OF_N, 2)


def diamond(join: Join) -> Horizon:
    """0 -> 1, 2, 3 -> 4 with branches of 10, 20 and 30."""
    horizon = Horizon()
    horizon.add(0, (), ALL, 5)
    for node, cost in ((1, 10), (2, 20), (3, 30)):
        horizon.add(node, (0,), ALL, cost)
    horizon.add(4, (1, 2, 3), join, 100)
    return horizon


@pytest.mark.parametrize(("join", "start", "path"), [(ALL, 35, (0, 3, 4)), (TWO, 25, (0, 2, 4)), (ANY, 15, (0, 1, 4))])
def test_a_join_starts_at_its_kth_parent(join: Join, start: int, path: tuple[int, ...]) -> None:
    horizon = diamond(join)
    assert (horizon.start_us(4), horizon.finish_us(4), horizon.total_us()) == (start, start + 100, start + 100)
    assert horizon.critical_path() == path


def test_an_empty_graph_takes_no_time() -> None:
    horizon = Horizon()
    assert (horizon.total_us(), horizon.critical_path(), horizon.remaining_us(())) == (0, (), 0)


def test_costs_move_what_follows_only() -> None:
    horizon = diamond(ALL)
    horizon.set_cost(1, 40)
    assert (horizon.total_us(), horizon.critical_path()) == (145, (0, 1, 4))
    horizon.set_cost(1, 10)
    assert (horizon.total_us(), horizon.critical_path()) == (135, (0, 3, 4))
    horizon.set_cost(0, 0)
    assert [horizon.start_us(n) for n in range(5)] == [0, 0, 0, 0, 30]


def test_excluded_nodes_are_on_no_path() -> None:
    horizon = diamond(TWO)
    horizon.exclude(1)
    assert horizon.start_us(4) == 35
    horizon.exclude(3)
    assert horizon.start_us(4) == 25  # fewer than two left: the last of them
    horizon.exclude(2)
    assert (horizon.start_us(4), horizon.total_us()) == (0, 100)
    horizon.exclude(4)
    assert (horizon.total_us(), horizon.critical_path()) == (5, (0,))
    assert horizon.below_us(0) == 5


def test_the_path_below_and_what_remains() -> None:
    horizon = diamond(ANY)
    assert [horizon.below_us(n) for n in range(5)] == [135, 110, 120, 130, 100]
    horizon.add(5, (4,), ALL, 7)
    assert [horizon.below_us(n) for n in range(6)] == [142, 117, 127, 137, 107, 7]
    horizon.exclude(4)
    assert horizon.below_us(0) == 35
    assert horizon.remaining_us((1, 2, 4, 5)) == 20


def test_nodes_come_in_order() -> None:
    with pytest.raises(ValueError, match="not the next"):
        Horizon().add(1, (), ALL, 5)


def test_long_chains_and_wide_joins_stay_cheap() -> None:
    """Ten thousand links and a wide lattice: no recursion, and no path counted one by one."""
    horizon = Horizon()
    for node in range(10_000):
        horizon.add(node, (node - 1,) if node else (), ALL, 1)
    assert (horizon.total_us(), horizon.below_us(0), len(horizon.critical_path())) == (10_000, 10_000, 10_000)
    lattice = Horizon()
    for node in range(400):
        layer = node // 20 * 20
        lattice.add(node, tuple(range(layer - 20, layer)) if layer else (), ALL, 1)
    assert (lattice.total_us(), lattice.below_us(0)) == (20, 20)
