"""What a topology says of all pairs at once is what holds of each."""

import numpy as np

from hexagent.core.estimate.snapshot import LinkFit, Snapshot
from hexagent.core.estimate.tables import model_figures
from hexagent.core.instance.spec import InstanceSpec, LinkSpec, Role
from hexagent.core.policy.topology import Topology
from hexagent.core.scheduling.ledger import Mixing
from hexagent.core.units import US_PER_S
from tests.sim.cases import MODEL, Desk, decodes, instance, prefills


def mixed() -> tuple[InstanceSpec, ...]:
    slow = [
        spec._replace(instance_id=f"slow-{spec.instance_id}", link=LinkSpec(10**9, 9_000)) for spec in prefills("h100")
    ]
    narrow = (*prefills("h100"), *decodes("h200"))
    fp8 = [spec._replace(instance_id=f"fp8-{spec.instance_id}", kv_precision="fp8") for spec in narrow]
    both = [instance(f"both{n}", "a100", Role.BOTH) for n in range(2)]
    local = [d._replace(profile="trtllm-1.3") for d in decodes("a100", "h100", "h100")]
    specs = (*prefills("a100", "h100", "a100"), *slow, *fp8, *both, *local)
    return tuple(spec._replace(prefix_cache=True) for spec in specs)


def test_pairs_and_links_are_those_of_each_pair() -> None:
    desk = Desk(mixed())
    pairs = (LinkFit("p1", "d2", 7_000, 2_000_000, 500, 30), LinkFit("gone", "d2", 1, 1_000_000, 1, 30))
    kinds = (LinkFit("a100", "h100", 6_000, 1_500_000, 300, 90),)
    desk.tell(Snapshot(1, 0, links=pairs, link_kinds=kinds))
    estimator = desk.core.estimator
    for mixing in Mixing:
        topology = Topology(*desk.core.ledger.pool(MODEL, mixing), estimator)
        topology.update(())
        assert topology.local.any()
        assert not topology.uniform
        for i, p in enumerate(topology.prefill):
            for j, d in enumerate(topology.decode):
                stays = p.spec.role is not Role.PREFILL or d.spec.role is not Role.DECODE
                assert topology.local[i, j] == (p is d)
                assert topology.pairs[i, j] == (p is d if stays else p.spec.kv_precision == d.spec.kv_precision)
                link = estimator.link(p.spec, d.spec)
                assert topology.rate[i, j] == link.bytes_per_s
                assert topology.setup_us[i, j] == link.setup_us
                kv_bytes = 1_000 * model_figures(MODEL).kv_bytes_per_token(p.spec.kv_precision)
                moved_us = 0 if p is d else kv_bytes * US_PER_S // link.bytes_per_s + link.setup_us
                assert topology.move_us(i, j, 1_000) == topology.transfer_us(np.array([1_000]))[i, j, 0] == moved_us
