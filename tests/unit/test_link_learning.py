"""Learned links: set-up and rate through noise and stalls, without the queue at the sender."""

import random

import pytest

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.links import REFIT, TRUSTED, LinkLearner, described
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec
from hexagent.core.instance.telemetry import TransferSample
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World

CLUSTER = named_cluster("mixed-3")
SPECS = {spec.instance_id: spec for spec in CLUSTER.instances}
P, D = SPECS["prefill-a100-0"], SPECS["decode-h100-0"]
MB = 1_000_000


def sample(kv_bytes: int, duration_us: int, besides_us: int = 0, source: InstanceSpec = P) -> TransferSample:
    return TransferSample(source.instance_id, D.instance_id, 0, duration_us, kv_bytes, duration_us + besides_us)


def observe(learner: LinkLearner, count: int, seed: int, stalls: float = 0.0) -> None:
    """Set-up 8 ms and 10 GB/s where 5 ms and 25 GB/s are described; 7 % noise; some take ten times as long."""
    rng = random.Random(seed)
    for _ in range(count):
        kv_bytes = rng.randrange(50, 2_000) * MB
        us = (8_000 + kv_bytes / 10_000) * rng.lognormvariate(0, 0.07) * (10 if rng.random() < stalls else 1)
        learner.observe(P, D, sample(kv_bytes, round(us), rng.randrange(4_000, 90_000)))


@pytest.mark.parametrize("stalls", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(10))
def test_set_up_and_rate_are_told_apart(seed: int, stalls: float) -> None:
    learner = LinkLearner()
    observe(learner, 64, seed, stalls)
    (fit,) = learner.pairs()
    for kv_bytes in (100 * MB, 1_500 * MB):
        us = fit.setup_us + kv_bytes / 25_000 * fit.moving_ppm / 1e6
        assert us == pytest.approx(8_000 + kv_bytes / 10_000, rel=0.1, abs=5_000)
    assert 4_000 <= fit.besides_us < 20_000, "of a busy sender only what it takes when it is free"


def test_of_transfers_alike_both_parts_scale() -> None:
    learner = LinkLearner()
    for _ in range(TRUSTED):
        learner.observe(P, D, sample(250 * MB, 30_000))  # described: 5 ms and 10 ms
    assert learner.pairs()[0][2:4] == (10_000, 2_000_000)


def test_a_link_that_changes_is_followed() -> None:
    learner = LinkLearner()
    for us in (15_000, 45_000):
        for _ in range(64 + REFIT):
            learner.observe(P, D, sample(250 * MB, us))
        learner.pairs()
    assert learner.pairs()[0].moving_ppm == 3_000_000


@pytest.mark.parametrize("bad", [sample(0, 10), sample(10, 0), sample(-1, 10), sample(10, -5)])
def test_what_is_no_measurement_is_left_out(bad: TransferSample) -> None:
    learner = LinkLearner()
    for _ in range(TRUSTED):
        learner.observe(P, D, bad)
    assert learner.kinds() == ()


def test_a_pair_that_is_not_known_takes_its_gpu_types_then_the_description() -> None:
    cluster: ClusterSpec = named_cluster("hetero-1")
    specs = {spec.instance_id: spec for spec in cluster.instances}
    known, alike, other = (specs[f"prefill-{gpu}"] for gpu in ("a100-0", "a100-1", "h200-0"))
    target = specs[D.instance_id]
    estimator, learner = Estimator(cluster), LinkLearner()
    for _ in range(TRUSTED):
        learner.observe(known, target, sample(250 * MB, 30_000, 1_000))
    estimator.update(estimator.snapshot._replace(revision=1, links=learner.pairs(), link_kinds=learner.kinds()))
    assert [estimator.transfer_us(s, target, 250 * MB) for s in (known, alike, other)] == [31_000, 31_000, 15_000]
    assert estimator.link(other, target) == described(other, target)


def test_hidden_links_of_a_simulated_cluster_are_learned() -> None:
    world = World(CLUSTER, generate("bfcl", Options(workflows=50, rate_per_s=10, seed=1)), "hexagent", 5)
    world.run()
    estimator, kv_bytes = world.scheduler.estimator, 2_000 * 327_680
    wrong: list[float] = []
    for fit in estimator.snapshot.links:
        source, target = SPECS[fit.source], SPECS[fit.target]
        told_us = 5_000 + kv_bytes / 25_000
        true_us = told_us * world.fleet.stations[fit.source].truth.link_ppm(fit.source, fit.target) / 1e6
        wrong.append(abs(estimator.transfer_us(source, target, kv_bytes) - fit.besides_us - true_us) / true_us)
    assert len(wrong) >= 3
    assert sum(wrong) / len(wrong) < 0.04
