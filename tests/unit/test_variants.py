"""Tables of engines with KV in another precision and with speculative decoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.estimate.tables import load_table
from hexagent.core.estimate.variants import table_of, variant
from hexagent.core.instance.spec import Speculation
from hexagent.runtime.cluster_file import parse_cluster
from hexagent.wire.cluster import cluster_from_proto, cluster_to_proto

FP8 = load_table("h100", "llama-3.1-70b", 4, "fp8")
EAGLE = Speculation("eagle", 3, 700_000, 30_000)
POOLS = """
name = "c"
[[pool]]
role = "prefill"
gpu = "h100"
model = "llama-3.1-70b"
tp = 4
precision = "fp8"
kv_precision = "bf16"
[[pool]]
role = "decode"
gpu = "h100"
model = "llama-3.1-70b"
tp = 4
precision = "fp8"
kv_precision = "bf16"
speculation = { method = "eagle", draft_tokens = 3, acceptance = 0.7 }
"""


def test_a_table_as_it_is_when_nothing_differs() -> None:
    spec = parse_cluster(POOLS.replace('kv_precision = "bf16"\n', ""), "c.toml").spec.instances[1]
    assert table_of(spec._replace(speculation=None), ()) is FP8


def test_kv_of_two_bytes_doubles_transfers_and_attention_and_halves_capacity() -> None:
    wide = variant(FP8, "bf16", None)
    assert wide.kv_bytes_per_token == 2 * FP8.kv_bytes_per_token == 327_680
    assert wide.kv_tokens == FP8.kv_tokens // 2
    assert wide.prefill == FP8.prefill
    short = FP8.decode_us(64, 16)
    assert wide.decode_us(64, 16) == pytest.approx(short, rel=0.01)
    attention = FP8.decode_us(64, 16_384) - short
    assert wide.decode_us(64, 16_384) - wide.decode_us(64, 16) == pytest.approx(2 * attention, rel=0.02)


def test_tokens_a_step_follow_from_the_chance_of_each() -> None:
    assert EAGLE.kept_ppm == 1_000_000 + 700_000 + 490_000 + 343_000
    assert EAGLE._replace(acceptance_ppm=0).kept_ppm == 1_000_000
    assert EAGLE._replace(acceptance_ppm=1_000_000).kept_ppm == 4_000_000


def test_speculation_pays_for_small_batches_and_costs_compute_for_large_ones() -> None:
    fast = variant(FP8, "fp8", EAGLE)
    assert fast.decode_us(1, 1_024) < 0.55 * FP8.decode_us(1, 1_024)
    gain = [fast.decode_us(batch, 1_024) / FP8.decode_us(batch, 1_024) for batch in (1, 32, 128, 512)]
    assert gain == sorted(gain)
    assert gain[-1] > 1
    never = variant(FP8, "fp8", EAGLE._replace(acceptance_ppm=0))
    assert never.decode_us(8, 1_024) > FP8.decode_us(8, 1_024)


@given(st.sampled_from(["bf16", "fp8"]), st.sampled_from([None, EAGLE]), st.lists(st.integers(1, 600), min_size=4))
def test_more_work_never_takes_less_time(kv_precision: str, speculation: Speculation | None, at: list[int]) -> None:
    table = variant(FP8, kv_precision, speculation)
    least = table.decode_us(at[0], 200 * at[1])
    assert 0 < least <= table.decode_us(at[0] + at[2], 200 * (at[1] + at[3]))


def test_a_cluster_file_says_both_and_its_record_keeps_them() -> None:
    cluster = parse_cluster(POOLS, "c.toml").spec
    assert cluster_from_proto(cluster_to_proto(cluster)) == cluster
    decode, prefill = cluster.instances
    assert (decode.speculation, prefill.speculation) == (EAGLE, None)
    assert Estimator(cluster).table(decode) == variant(FP8, "bf16", EAGLE)
    assert decode.kv_blocks == variant(FP8, "bf16", None).kv_tokens // 32


@pytest.mark.parametrize(
    ("old", "new", "field", "reason"),
    [
        ("draft_tokens = 3", "draft_tokens = 0", "pool[1].speculation.draft_tokens", "BAD_CLUSTER"),
        ("acceptance = 0.7", "acceptance = 1.5", "pool[1].speculation.acceptance", "BAD_CLUSTER"),
        ("acceptance = 0.7", "acceptance = nan", "pool[1].speculation.acceptance", "BAD_CLUSTER"),
        ('method = "eagle"', 'method = "guess"', "pool[1].speculation.method", "BAD_CLUSTER"),
        ("acceptance = 0.7", "acceptances = 0.7", "pool[1].speculation.acceptance", "BAD_CLUSTER"),
        ('role = "prefill"\ngpu = "h100"', 'role = "prefill"\ngpu = "a100"', "pool[0].precision", "BAD_ENGINE"),
        ('kv_precision = "bf16"', 'kv_precision = "fp8"', "pool.kv_precision", "BAD_ENGINE"),  # of one side only
    ],
)
def test_keys_are_checked_and_kv_that_cannot_move_is_refused(old: str, new: str, field: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_cluster(POOLS.replace(old, new, 1), "c.toml")
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_an_unknown_key_of_speculation_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="known: acceptance, draft_cost, draft_tokens, method"):
        parse_cluster(POOLS.replace("acceptance =", "accepted ="), "c.toml")
