"""Tenants in the simulator: shares of a contested cluster, and what the grammar of tenants takes."""

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.spec import TenantSpec
from hexagent.sim.experiment.cell import Cell, check_cell, cluster_of, workload_of
from hexagent.sim.experiment.run import Outcome, Run, row_of, world_of
from hexagent.sim.metrics import jain
from hexagent.sim.workloads.model import check_workflow
from hexagent.sim.workloads.tenants import TenantLoad, parse_tenants
from hexagent.sim.world import World

CELL = Cell("llama-3.1-70b", "mini", "bfcl", load=10.0, workflows=240, tenants="a:1,b:1x8")


class Contested(World):
    """Ends once both tenants had calls waiting for a minute on end."""

    def _tick(self, now_us: int) -> None:
        super()._tick(now_us)
        if self._shares.contested_us >= 60_000_000:
            raise StopIteration


@pytest.mark.parametrize("policy", ["fcfs", "hexagent"])
def test_a_contested_cluster_is_shared_by_weight_whatever_the_fan_out(policy: str) -> None:
    world = Contested(cluster_of(CELL), workload_of(CELL, 1), policy, 1)
    with pytest.raises(StopIteration):
        world.run()
    shares = world._shares.rows()
    row = row_of(Outcome(Run(CELL, policy, 1), (), 0.0, 0.0, shares, 60.0), None)
    assert row["share_a"] == pytest.approx(0.5, rel=0.05)
    assert row["share_b"] == pytest.approx(0.5, rel=0.05)
    assert isinstance(row["jain"], float)
    assert row["jain"] > 0.99


def test_what_a_tenant_leaves_is_used_by_the_other() -> None:
    """Together they take as long as if nobody waited for the other's share."""
    cell = CELL._replace(workflows=12)
    ends_us = [
        world_of(Run(cell._replace(profile=profile), "hexagent", 1)).run().ended_us
        for profile in ("", "tenant_lag_us = 86_400_000_000")
    ]
    assert ends_us[0] == pytest.approx(ends_us[1], rel=0.05)


def test_fan_out_multiplies_calls_and_leaves_the_horizon() -> None:
    plain, fanned = (workload_of(CELL._replace(tenants=text), 1).workflows for text in ("a,b", "a,b:1x3"))
    for one, other in zip(plain, fanned, strict=True):
        assert one.tenant == other.tenant
        assert len(other.items) == len(one.items) * (3 if one.tenant == "b" else 1)
        check_workflow(other)
    spans = [world_of(Run(CELL._replace(workflows=4, tenants=text), "fcfs", 1)).run().rows for text in ("b", "b:1x3")]
    assert [row.solo_us for row in spans[0]] == [row.solo_us for row in spans[1]]


def test_tenants_are_named_with_weight_and_fan_out() -> None:
    assert parse_tenants("") == (TenantLoad("default"),)
    assert parse_tenants("a, b:3,c-1:2x8") == (TenantLoad("a"), TenantLoad("b", 3), TenantLoad("c-1", 2, 8))
    assert cluster_of(CELL).tenants == (TenantSpec("a"), TenantSpec("b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,a", "twice"),
        ("a:0", "between 1 and 1000000"),
        ("a:1x0", "between 1 and 64"),
        ("a:1x99", "between 1 and 64"),
        ("a:-1", "NAME:WEIGHTxFAN_OUT"),
        ("a:1y2", "NAME:WEIGHTxFAN_OUT"),
        ("a,,b", "NAME:WEIGHTxFAN_OUT"),
        ("a b", "tenants"),
    ],
)
def test_a_bad_tenant_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_cell(CELL._replace(tenants=text))
    assert refused.value.field == "tenants"
    assert said in refused.value.message


def test_jain_is_one_for_equals_and_the_part_of_one_for_a_winner() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0, 0.0]) == 0.5


@pytest.mark.parametrize("policy", ["fcfs", "hexagent", "atlas", "hexagent:least-loaded"])
def test_ten_minutes_of_overload_leave_no_workflow_behind(policy: str) -> None:
    steady = CELL._replace(workload="sharegpt-history", workflows=0, load=1.5, duration_s=600.0, arrivals="poisson")
    result = world_of(Run(steady._replace(tenants="a:1,b:9"), policy, 1)).run()
    assert result.ended_us > 650_000_000  # it falls behind
    assert all(row.completed for row in result.rows)
    assert {row.tenant for row in result.rows} == {"a", "b"}
