"""Solo times: the least over tables, wherever their curves cross."""

from random import Random

from hexagent.core.estimate.solo import LeastTime, SoloTimes
from hexagent.core.estimate.tables import Grid
from hexagent.core.estimate.variants import table_of
from hexagent.core.instance.spec import LinkSpec, Role
from hexagent.core.units import US_PER_S
from hexagent.sim.clusters import named_cluster

CLUSTER = named_cluster("hetero-1")


def test_the_least_of_curves_is_what_their_grids_say_everywhere() -> None:
    rng = Random(1)
    for _ in range(50):
        curves = []
        for _ in range(rng.randint(1, 4)):
            axis = sorted(rng.sample(range(1, 60), rng.randint(2, 5)))
            curves.append((axis, sorted(rng.choices(range(100), k=len(axis)))))
        grids = [Grid(tuple(axis), (0, 1), tuple([(us, us) for us in times])) for axis, times in curves]
        least = LeastTime(curves)
        for place in range(100):
            assert least.at(place) == min(grid.at(place, 0) for grid in grids), (curves, place)


def test_a_call_alone_takes_the_best_pair_of_tables() -> None:
    solo, rng = SoloTimes([(spec, table_of(spec, ())) for spec in CLUSTER.instances]), Random(2)
    tables = {
        role: [table_of(spec, ()) for spec in CLUSTER.instances if spec.role is role]
        for role in (Role.PREFILL, Role.DECODE)
    }
    (link,) = {LinkSpec(*spec.link) for spec in CLUSTER.instances}
    for _ in range(300):
        prompt, output = rng.randint(1, 50_000), rng.randint(2, 3_000)
        moved = -(-prompt * tables[Role.PREFILL][0].kv_bytes_per_token * US_PER_S // link.bytes_per_s)
        first_us = min(table.prefill_us(prompt) for table in tables[Role.PREFILL])
        step_us = min(table.decode_us(1, prompt + output // 2) for table in tables[Role.DECODE])
        expected_us = first_us + link.setup_us + moved + (output - 1) * step_us
        assert solo.solo_us(CLUSTER.models[0], prompt, output) == expected_us
        assert solo.solo_us(CLUSTER.models[0], prompt, 1) == first_us
    assert solo.solo_us("nobody's", 10, 10) == 0
