"""The offline search: at least as good as the rule it competes with, never below the bound, the same each time."""

import json
import pathlib

import pytest

from hexagent.cli.main import run_command
from hexagent.core.errors import InvalidArgument
from hexagent.sim.bounds.search import Search
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options


def test_a_search_finds_the_same_again_and_tells_of_each_try() -> None:
    workload = generate("bfcl", Options(workflows=3, rate_per_s=40, seed=3))
    told: list[int] = []
    found = [Search(named_cluster("mini"), workload, 1).best(14, lambda: told.append(1)) for _ in range(2)]
    assert found[0] == found[1]
    assert len(told) == 28


def test_a_search_of_a_large_cell_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="1 to 10"):
        Search(named_cluster("mini"), generate("bfcl", Options(workflows=11)), 1)


def test_what_is_found_lies_between_the_bound_and_the_policies(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "rows.json"
    arguments = ["bench", "bounds", "--cells", "bfcl:6", "--seeds", "2", "--noise", "0", "--tries", "20"]
    assert run_command([*arguments, "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["lower_bound"] <= row["offline_best"] <= row["clairvoyant"]
    assert row["offline_best"] < row["hexagent"]


@pytest.mark.parametrize(
    ("option", "value"), [("--cells", "bfcl"), ("--cells", "bfcl:11"), ("--cells", "bfcl:0"), ("--seeds", "1,x")]
)
def test_cells_and_seeds_that_cannot_be_are_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", "bounds", option, value]) == 2
    assert f"hexagent: {option}: " in capsys.readouterr().err
