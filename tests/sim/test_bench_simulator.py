"""What `bench simulator` measures, on runs of a second."""

import pytest

from hexagent.cli.bench.simulator import SimulatorOptions, copies, profile_rows, speed_rows
from hexagent.sim.clusters import named_cluster

OPTIONS = SimulatorOptions(("fcfs", "hexagent"), ("bfcl",), 5, "mixed-3", 1, False)


def test_a_row_a_run() -> None:
    said: list[str] = []
    rows = speed_rows(OPTIONS, said.append)
    assert [(row["policy"], row["instances"], row["workflows"]) for row in rows] == [("fcfs", 6, 5), ("hexagent", 6, 5)]
    for row in rows:
        calls, cpu_s, calls_per_s = row["calls"], row["cpu_s"], row["calls_per_s"]
        assert isinstance(calls, int)
        assert isinstance(cpu_s, float)
        assert calls >= 5
        assert calls_per_s == pytest.approx(calls / cpu_s)
    assert len(said) == 2


def test_the_profile_shares_out_all_of_the_time() -> None:
    rows = profile_rows(OPTIONS._replace(policies=("hexagent",)))
    assert sum(float(str(row["percent"])) for row in rows) == pytest.approx(100)
    assert {"core.policy", "core.workflow", "core.instance", "sim"} <= {row["part"] for row in rows}


def test_copies_of_a_cluster_differ_in_nothing_but_names() -> None:
    one = named_cluster("mixed-3")
    three = copies(one, 3)
    assert len({spec.instance_id for spec in three.instances}) == 18
    assert list(three.instances) == sorted(three.instances)
    assert {spec._replace(instance_id="") for spec in three.instances} == {
        spec._replace(instance_id="") for spec in one.instances
    }
