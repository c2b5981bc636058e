"""A user's measurements: made into tables that never fall, refused by row, and used by everyone in the cluster."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.learner import Learner
from hexagent.core.estimate.measured import COLUMNS, csv_lines, tables_from_csv
from hexagent.core.estimate.tables import StepTable, load_table
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import InstanceLoad, Prefill, Work
from hexagent.core.instance.telemetry import StepSample, Telemetry
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.measured_files import read_measured
from hexagent.sim.conditions import CONDITIONS
from hexagent.sim.fleet import Station
from hexagent.wire.cluster import cluster_record_from_bytes, cluster_record_to_bytes

ENGINE = "h100,llama-3.1-70b,4,bf16"
HEADER = ",".join(COLUMNS)
NEW, CACHED = (64, 512, 4_096), (0, 8_192)
BATCH, CONTEXT = (1, 8, 64), (1_024, 8_192, 32_768)
ROWS = [
    *(f"{ENGINE},prefill,{new},{cached},,,{5_000 + 80 * new + cached}" for new, cached in product(NEW, CACHED)),
    *(f"{ENGINE},decode,,,{batch},{ctx},{20_000 + 100 * batch + ctx}" for batch, ctx in product(BATCH, CONTEXT)),
]  # rows 2 to 7 of a file are prefill, 8 to 16 decode
CLUSTER = """
name = "own"
noise = 0.0
hidden_factor = [1.0, 1.0]
tables = ["h100.csv"]
[[pool]]
role = "prefill"
gpu = "h100"
model = "llama-3.1-70b"
tp = 4
[[pool]]
role = "decode"
gpu = "a100"
model = "llama-3.1-70b"
tp = 4
"""


def one(rows: list[str]) -> StepTable:
    (table,) = tables_from_csv([HEADER, *rows], "m.csv")
    return table


def test_a_table_has_the_measured_times_whatever_their_order() -> None:
    table = one(ROWS)
    assert (table.source, table.kv_tokens) == ("user", load_table("h100", "llama-3.1-70b", 4).kv_tokens)
    assert [table.prefill_us(new, cached) for new, cached in product(NEW, CACHED)] == [
        5_000 + 80 * new + cached for new, cached in product(NEW, CACHED)
    ]
    assert table.decode_us(8, 8_192) == 20_000 + 800 + 8_192
    assert one(ROWS[::-1]) == table
    assert tables_from_csv(list(csv_lines([table])), "again.csv") == (table,)


def test_the_median_of_repeated_measurements_counts_and_small_falls_are_smoothed() -> None:
    repeated = [f"{ENGINE},decode,,,1,1024,{us}" for us in (21_000, 90_000)]
    assert one([*ROWS, *repeated]).decode_us(1, 1_024) == one(ROWS).decode_us(1, 1_024)
    dented = [row.replace(",8,8192,28992", ",8,8192,27000") for row in ROWS]  # 5 % under (1, 8,192)
    assert 27_000 < one(dented).decode_us(8, 8_192) < 28_992


def test_what_an_engine_has_no_room_for_goes_on_as_its_neighbours_do() -> None:
    table = one([row for row in ROWS if ",64,32768," not in row])
    assert table.decode_us(64, 32_768) == 20_000 + 6_400 + 32_768


@given(st.lists(st.integers(18_000, 20_000), min_size=9, max_size=9), st.lists(st.integers(1, 2_000), min_size=4))
@settings(max_examples=50)
def test_more_work_never_takes_less_time_within_or_beyond_the_measurements(times: list[int], at: list[int]) -> None:
    decode = [
        f"{ENGINE},decode,,,{batch},{ctx},{us}" for (batch, ctx), us in zip(product(BATCH, CONTEXT), times, strict=True)
    ]
    table = one([*ROWS[:6], *decode])
    batch, more, context, longer = at[0], at[0] + at[1], 50 * at[2], 50 * (at[2] + at[3])
    assert 0 < table.decode_us(batch, context) <= table.decode_us(more, longer)


@pytest.mark.parametrize(
    ("row", "old", "new", "column", "reason"),
    [
        (3, ",18312", ",nan", "time_us", "BAD_MEASUREMENT"),
        (3, ",18312", ",-5", "time_us", "BAD_MEASUREMENT"),
        (3, ",18312", ",inf", "time_us", "BAD_MEASUREMENT"),
        (3, ",18312", ",", "time_us", "BAD_MEASUREMENT"),
        (3, ",18312", ",4000", "time_us", "BAD_MEASUREMENT"),  # below row 2's by more than a tenth
        (9, ",8192,", ",-1,", "context", "BAD_MEASUREMENT"),
        (2, ",64,0,", ",0,0,", "new_tokens", "BAD_MEASUREMENT"),
        (2, ",64,0,", ",6.5,0,", "new_tokens", "BAD_MEASUREMENT"),
        (2, ",64,0,", f",{'9' * 5_000},0,", "new_tokens", "BAD_MEASUREMENT"),
        (2, ",64,0,", f",{'9' * 200_000},0,", "time_us", "BAD_MEASUREMENT"),  # longer than a field of CSV may be
        (4, "h100", "v100", "gpu", "UNKNOWN_GPU"),
        (4, "llama-3.1-70b", "gpt-2", "model", "UNKNOWN_MODEL"),
        (4, "bf16", "int3", "precision", "UNKNOWN_PRECISION"),
        (4, ",4,bf16", ",3,bf16", "tp", "TP_OUT_OF_RANGE"),
        (4, "prefill", "warm-up", "phase", "BAD_MEASUREMENT"),
    ],
)
def test_a_bad_row_is_named(row: int, old: str, new: str, column: str, reason: str) -> None:
    rows = [HEADER, *ROWS]
    assert old in rows[row - 1]
    rows[row - 1] = rows[row - 1].replace(old, new, 1)
    with pytest.raises(InvalidArgument) as caught:
        tables_from_csv(rows, "m.csv")
    assert (caught.value.field, caught.value.reason) == (f"m.csv: row {row}: {column}", reason)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([], "m.csv: row 1: time_us"),
        (ROWS[:6], "m.csv: row 2: batch"),  # no decode at all
        ([row for row in ROWS if ",8192,," not in row], "m.csv: row 2: cached_tokens"),  # one column
        ([row for row in ROWS if ",0,," not in row], "m.csv: row 2: cached_tokens"),  # nothing without a prefix
        ([row for row in ROWS if ",8,8192," not in row], "m.csv: row 15: batch"),  # a hole
    ],
)
def test_what_is_no_grid_is_refused(rows: list[str], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tables_from_csv([HEADER, *rows], "m.csv")
    assert caught.value.field == field


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidArgument, match="row 1: time_us: no such column"):
        tables_from_csv([HEADER.replace("time_us", "ms"), *ROWS], "m.csv")


def test_everyone_in_a_cluster_uses_its_own_tables(tmp_path: Path) -> None:
    (tmp_path / "h100.csv").write_text("\n".join([HEADER, *ROWS]))
    (tmp_path / "own.toml").write_text(CLUSTER)
    config = load_cluster(tmp_path / "own.toml")
    cluster = cluster_record_from_bytes(cluster_record_to_bytes(config.record(0))).cluster
    assert cluster == config.spec
    decode, prefill = cluster.instances
    own = one(ROWS)
    assert Estimator(cluster).table(prefill) == own
    assert Estimator(cluster).table(decode) == load_table("a100", "llama-3.1-70b", 4)
    assert Estimator(cluster).solo_us("llama-3.1-70b", 512, 1) == own.prefill_us(512)

    learner = Learner(cluster.tables)
    learner.describe_instance(prefill)
    measured = StepSample(1, own.prefill_us(512), 512, 256, 0, 0)
    load = InstanceLoad(*[0] * len(InstanceLoad._fields))
    learner.observe_telemetry(Telemetry(prefill.instance_id, 0, load, (measured,)), 0)
    snapshot = learner.snapshot(0)
    assert snapshot is not None
    assert snapshot.speeds[0].prefill_ppm == 1_000_000

    emulated = Station(prefill, cluster, CONDITIONS).model
    emulated.handle(Prefill(Work(Ticket(CallId("w", "c"), 1, 1), (), 512, 1, 1, 1)), 0)
    assert emulated.next_due_us() == own.prefill_us(512)


def test_tables_that_cannot_be_read_or_come_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(CLUSTER)
    with pytest.raises(InvalidArgument) as caught:
        load_cluster(tmp_path / "own.toml")
    assert caught.value.reason == "NO_TABLE_FILE"
    (tmp_path / "h100.csv").write_text("\n".join([HEADER, *ROWS]))
    assert read_measured(tmp_path / "h100.csv") == (one(ROWS),)
    (tmp_path / "own.toml").write_text(CLUSTER.replace('["h100.csv"]', '["h100.csv", "h100.csv"]'))
    with pytest.raises(InvalidArgument) as caught:
        load_cluster(tmp_path / "own.toml")
    assert (caught.value.reason, caught.value.field) == ("DUPLICATE_TABLE", "tables[1]")
