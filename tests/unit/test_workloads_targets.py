"""Workloads whose calls run on several models."""

from collections import Counter

import pytest

from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.sim.experiment.cell import Cell, check_cell, cluster_of, workload_of
from hexagent.sim.experiment.load import capacity
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.model import Target
from hexagent.sim.workloads.options import Options
from hexagent.sim.workloads.targets import aimed, parse_targets

BOTH = Cell("llama-3.1-70b", "mini", "bfcl", models="llama-3.1-8b,qwen3-32b", workflows=20)


def test_targets_are_models_adapters_and_precisions() -> None:
    assert parse_targets("") == ()
    assert parse_targets("a, a:sql,a@bf16,b:sql:2@fp8") == (
        Target("a"),
        Target("a", "sql"),
        Target("a", "", "bf16"),
        Target("b", "sql:2", "fp8"),
    )
    for text in ("a,", ":sql", "a:", "a@", "a::b", "a@b:c@d", "a b"):
        with pytest.raises(InvalidArgument):
            parse_targets(text)


def test_calls_are_spread_evenly_and_each_workflow_keeps_its_own() -> None:
    workload = generate("bfcl", Options(workflows=100))
    whole = aimed(workload, (Target("a"), Target("b")))
    counts = Counter(item.target.model for script in whole.workflows for item in script.items)
    assert abs(counts["a"] - counts["b"]) < 0.1 * (counts["a"] + counts["b"])
    part = aimed(workload._replace(workflows=workload.workflows[5:6]), (Target("a"), Target("b")))
    assert part.workflows == whole.workflows[5:6]
    assert aimed(workload, ()) is workload


def test_each_model_of_a_cell_has_the_cluster_for_itself() -> None:
    check_cell(BOTH)
    cluster = cluster_of(BOTH)
    assert cluster.models == ("llama-3.1-8b", "qwen3-32b")
    assert Counter(spec.model for spec in cluster.instances) == {"llama-3.1-8b": 2, "qwen3-32b": 2}
    assert len({spec.instance_id for spec in cluster.instances}) == 4
    with pytest.raises(InvalidArgument, match="names of models alone"):
        check_cell(BOTH._replace(models="llama-3.1-8b:sql"))
    with pytest.raises(NotFound, match="llama-9"):
        check_cell(BOTH._replace(models="llama-9"))


def test_load_is_that_of_the_busiest_model() -> None:
    """Half of the calls each: a model alone takes about twice the rate of what it is given."""
    workload, cluster = workload_of(BOTH, 1), cluster_of(BOTH)
    both = capacity(workload, cluster).workflows_per_s
    alone = [
        capacity(
            aimed(workload, (Target(model),)),
            cluster._replace(instances=tuple(s for s in cluster.instances if s.model == model)),
        ).workflows_per_s
        for model in cluster.models
    ]
    assert 1.7 < both / min(alone) < 2.3
    with pytest.raises(NotFound, match="name the model 'phi'; the cluster has llama"):
        capacity(aimed(workload, (Target("phi"), Target("qwen3-32b"))), cluster)
