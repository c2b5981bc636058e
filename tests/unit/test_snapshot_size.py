"""A snapshot is at most as large as its limit, and what it then lacks is missed least."""

from hexagent.core.estimate.snapshot import LengthQuantiles, LinkFit, Snapshot, SpeedFactor, ToolQuantiles, smaller
from hexagent.wire.estimator import SNAPSHOT_BYTES_MAX, fitting, snapshot_from_bytes

SPEEDS = tuple(SpeedFactor(f"i{n:03}", 900_000, 1_100_000, 500) for n in range(100))
ROLES = tuple(LengthQuantiles(f"class{n:04}", "role" * 30, "", 0, n, 10, 20, 30, 12) for n in range(1_000))
BUCKETS = tuple(LengthQuantiles(f"class{n:04}", "role" * 30, "round", 3, n, 10, 20, 30, 12) for n in range(1_000))
TOOLS = tuple(ToolQuantiles(f"tool{n:04}", n, 1_000, 2_000, 3_000) for n in range(1_000))
LINKS = tuple(LinkFit(f"i{n:03}", f"i{n + 1:03}", 5_000, 1_000_000, 4_000, n) for n in range(999))


def test_a_snapshot_within_the_limit_stays_as_it_is() -> None:
    snapshot = Snapshot(7, 1, SPEEDS, ROLES[:10], TOOLS, LINKS)
    fitted, data = fitting(snapshot)
    assert fitted == snapshot == snapshot_from_bytes(data)


def test_a_larger_one_loses_first_what_wider_groups_answer_for() -> None:
    snapshot = Snapshot(7, 1, SPEEDS, tuple(sorted((*ROLES, *BUCKETS))), TOOLS, LINKS)
    fitted, data = fitting(snapshot)
    assert SNAPSHOT_BYTES_MAX // 2 < len(data) <= SNAPSHOT_BYTES_MAX
    assert snapshot_from_bytes(data) == fitted
    assert (fitted.revision, fitted.speeds, fitted.tools) == (7, SPEEDS, TOOLS)
    kept = [row.samples for row in fitted.lengths if row.view]
    assert kept == sorted(kept) == list(range(1_000 - len(kept), 1_000)), "those with the most samples"
    assert len([row for row in fitted.lengths if not row.view]) == 1_000
    assert fitting(snapshot) == (fitted, data)


def test_nothing_is_left_in_the_end() -> None:
    snapshot, steps = Snapshot(7, 1, SPEEDS, ROLES, TOOLS, LINKS, LINKS[:3]), 0
    while (less := smaller(snapshot)) != snapshot:
        snapshot, steps = less, steps + 1
    assert snapshot == Snapshot(7, 1)
    assert steps < 100
