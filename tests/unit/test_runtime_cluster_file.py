"""Cluster files: what is filled in, and every way to be wrong."""

from pathlib import Path

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.spec import AdmissionSpec, LinkSpec, Lora, Role, TenantSpec, TextSpec
from hexagent.runtime.cluster_file import load_cluster, parse_cluster, shipped_clusters
from hexagent.text.reader import REASONING
from hexagent.text.tools import FORMS
from hexagent.wire.cluster import cluster_record_from_bytes, cluster_record_to_bytes

PREFILL = '[[pool]]\nrole = "prefill"\ngpu = "h100"\nmodel = "llama-3.1-70b"\ntp = 4\n'
DECODE = '[[pool]]\nrole = "decode"\ngpu = "a100"\nmodel = "llama-3.1-70b"\ntp = 4\n'
GOOD = f'name = "c"\n{PREFILL}{DECODE}'


@pytest.mark.parametrize(
    ("name", "prefill"),
    [
        ("demo", {"a100": 1, "h100": 1, "h200": 1}),
        ("hetero-1", {"a100": 2, "h100": 3, "h200": 3}),
        ("hetero-2", {"a100": 3, "h100": 4, "h200": 3}),
        ("homogeneous", {"h100": 8}),
    ],
)
def test_shipped_clusters_are_as_named(name: str, prefill: dict[str, int]) -> None:
    spec = load_cluster(name).spec
    assert spec.name == name
    for role in (Role.PREFILL, Role.DECODE):
        gpus = [instance.gpu_type for instance in spec.instances if instance.role is role]
        assert {gpu: gpus.count(gpu) for gpu in set(gpus)} == prefill
    assert len({instance.instance_id for instance in spec.instances}) == len(spec.instances)
    assert list(spec.instances) == sorted(spec.instances, key=lambda instance: instance.instance_id)
    assert spec.models == ("llama-3.1-70b",)


def test_every_shipped_cluster_is_known() -> None:
    assert shipped_clusters() == ("demo", "hetero-1", "hetero-2", "homogeneous")


def test_what_is_left_out_is_filled_in() -> None:
    config = parse_cluster(GOOD, "c.toml")
    prefill = config.spec.instances[1]
    assert prefill.instance_id == "p-h100-0"
    assert prefill.kv_blocks == load_table("h100", "llama-3.1-70b", 4, "bf16").kv_tokens // 32
    assert (prefill.max_batch, prefill.max_step_tokens, prefill.block_tokens) == (128, 8192, 32)
    assert prefill.link == LinkSpec(25_000_000_000, 5_000)
    assert prefill.kv_precision == "bf16"
    assert prefill.prefix_cache
    assert config.spec.tenants == (TenantSpec("default", 1),)
    assert config.spec.noise_ppm == 70_000
    assert config.spec.hidden_factor_ppm == (800_000, 1_300_000)
    assert (config.policy, config.time_scale, config.kv_byte_scale) == ("hexagent-plus", 1.0, 1 / 4096)
    assert [(agent.agent_id, agent.instance_ids) for agent in config.agents] == [
        ("agent-decode", ("d-a100-0",)),
        ("agent-prefill", ("p-h100-0",)),
    ]


def test_overrides_reach_their_pool_only() -> None:
    extra = "kv_blocks = 7\nlink_gb_s = 12.5\nlink_setup_ms = 0\nmax_batch = 3\nprefix_cache = false\ncount = 2\n"
    head = 'name = "c"\nagents = "instance"\n[link]\ngb_s = 50\n'
    tenants = '[[tenant]]\nname = "b"\nweight = 3\n[[tenant]]\nname = "a"\n'
    text = f"{head}{tenants}{PREFILL}{extra}{DECODE}"
    config = parse_cluster(text, "c.toml")
    decode, first, second = config.spec.instances
    assert decode.link == LinkSpec(50_000_000_000, 5_000)
    assert (first.kv_blocks, first.link, first.max_batch, first.prefix_cache) == (
        7,
        LinkSpec(12_500_000_000, 0),
        3,
        False,
    )
    assert second == first._replace(instance_id="p-h100-1", agent_id="agent-p-h100-1")
    assert config.spec.tenants == (TenantSpec("a", 1), TenantSpec("b", 3))
    assert len(config.agents) == 3


def test_models_say_where_their_text_comes_from() -> None:
    model = '[[model]]\nname = "llama-3.1-70b"\ndirectory = "/models/l"\ntools = "llama3-json"\n'
    config = parse_cluster(GOOD + model, "c.toml")
    text = TextSpec("llama-3.1-70b", "/models/l", "llama3-json")
    assert config.spec.texts == (text,)
    assert (config.spec.text_of("llama-3.1-70b"), config.spec.text_of("other")) == (text, TextSpec("other"))
    assert cluster_record_from_bytes(cluster_record_to_bytes(config.record(1))).cluster == config.spec


def test_every_way_of_text_can_be_named() -> None:
    for key, values in (("tools", FORMS), ("reasoning", REASONING)):
        for value in values:
            parse_cluster(GOOD + f'[[model]]\nname = "llama-3.1-70b"\n{key} = "{value}"\n', "c.toml")


def test_adapters_are_served_by_the_pools_that_name_them() -> None:
    loras = 'loras = [{ name = "sql", rank = 16 }, { name = "chess", directory = "/adapters/chess" }]\n'
    text = f'name = "c"\n{PREFILL}{loras}max_loras = 1\n{DECODE}{loras}{DECODE}'
    config = parse_cluster(text, "c.toml")
    d0, d1, p = config.spec.instances
    assert d0.loras == p.loras == (Lora("chess", 64, "/adapters/chess"), Lora("sql", 16))
    assert (p.max_loras, d0.max_loras, d1.max_loras, d1.loras) == (1, 2, 0, ())
    record = config.record(1)
    assert cluster_record_from_bytes(cluster_record_to_bytes(record)) == record


def test_shares_limits_and_prices_are_in_the_units_of_the_core() -> None:
    tenant = (
        "[[tenant]]\nname = 'a'\nworkflows_max = 5\nqueued_tokens_max = 9\nquota_gpu_s = 1.5\nquota_window_s = 60\n"
    )
    text = f"{GOOD}{tenant}[gpu_price]\nh100 = 2.5\na100 = 1\n[admission]\nqueued_kv_max = 1.5\nrefuse_late = true\n"
    spec = parse_cluster(text, "c.toml").spec
    assert spec.tenants == (TenantSpec("a", 1, 5, 9, 1_500_000, 60_000_000),)
    assert spec.gpu_prices_milli == (("a100", 1_000), ("h100", 2_500))
    assert spec.admission == AdmissionSpec(100_000, 1_500, True)
    assert parse_cluster(GOOD, "c.toml").spec.admission == AdmissionSpec()


def test_numbers_run_on_over_pools_of_one_name() -> None:
    config = parse_cluster(GOOD + DECODE, "c.toml")
    assert [instance.instance_id for instance in config.spec.instances] == ["d-a100-0", "d-a100-1", "p-h100-0"]


def test_one_pool_may_do_both() -> None:
    both = PREFILL.replace('"prefill"', '"both"')
    assert parse_cluster(f'name = "c"\n{both}', "c.toml").spec.instances[0].instance_id == "b-h100-0"


def test_the_record_survives_the_wire() -> None:
    record = load_cluster("demo").record(1_700_000_000_000_000_000)
    assert cluster_record_from_bytes(cluster_record_to_bytes(record)) == record


@pytest.mark.parametrize(
    ("text", "reason", "field", "says"),
    [
        ("name = ", "BAD_TOML", "cluster", "not TOML"),
        (PREFILL, "BAD_CLUSTER", "name", "required"),
        ('name = "c"', "BAD_CLUSTER", "pool", "required"),
        ('name = "c d"\n' + PREFILL + DECODE, "BAD_ID", "name", "c d"),
        (f"colour = 1\n{GOOD}", "BAD_CLUSTER", "colour", "known: admission, agents, engine_profile"),
        (GOOD + "gpus = 3\n", "BAD_CLUSTER", "pool[1].gpus", "known: block_tokens, count"),
        (GOOD.replace('"a100"', '"h900"'), "UNKNOWN_GPU", "pool[1].gpu", "known: a100, b200, h100"),
        (GOOD.replace("3.1-70b", "9"), "UNKNOWN_MODEL", "pool[0].model", "known: llama-3.1-70b"),
        (GOOD.replace("tp = 4", "tp = 3"), "BAD_ENGINE", "pool[0].tp", "1, 2, 4, 8"),
        (GOOD.replace("tp = 4", "tp = 1"), "BAD_ENGINE", "pool[0].", ""),
        (GOOD + 'precision = "fp8"\n', "BAD_ENGINE", "pool[1].precision", "no fp8"),
        (GOOD + 'kv_precision = "fp8"\n', "BAD_ENGINE", "pool.kv_precision", "cannot move"),
        (GOOD + "block_tokens = 64\n", "BAD_ENGINE", "pool.block_tokens", "between blocks of 32, 64 tokens"),
        (GOOD + "loras = [{ name = 'sql' }]\n", "LORA_NOT_SERVED", "pool.loras", "adapter sql of model llama-3.1-70b"),
        (GOOD + "loras = [{ name = 'a' }, { name = 'a' }]\n", "DUPLICATE_LORA", "pool[1].loras[1].name", "twice"),
        (GOOD + "loras = [{ name = 'a b' }]\n", "BAD_ID", "pool[1].loras[0].name", "a b"),
        (GOOD + "loras = [{ name = 'a', rank = 0 }]\n", "BAD_CLUSTER", "pool[1].loras[0].rank", "1"),
        (
            GOOD + "loras = [{ name = 'a', path = '' }]\n",
            "BAD_CLUSTER",
            "pool[1].loras[0].path",
            "directory, name, rank",
        ),
        (GOOD + "max_loras = 0\n", "BAD_CLUSTER", "pool[1].max_loras", "1"),
        (GOOD + "kv_blocks = 0\n", "BAD_CLUSTER", "pool[1].kv_blocks", "greater than or equal to 1"),
        (GOOD + 'count = "two"\n', "BAD_CLUSTER", "pool[1].count", "integer"),
        (GOOD + "count = 512\n", "TOO_MANY_INSTANCES", "pool", "513"),
        (GOOD.replace("prefill", "decode"), "NO_PREFILL_INSTANCE", "pool", "llama-3.1-70b"),
        (GOOD.replace("decode", "prefill"), "NO_DECODE_INSTANCE", "pool", "llama-3.1-70b"),
        (GOOD.replace('"decode"', '"encode"'), "BAD_CLUSTER", "pool[1].role", "'both'"),
        (f'engine_profile = "vllm"\n{GOOD}', "UNKNOWN_PROFILE", "engine_profile", "known: ideal, push"),
        (f"time_scale = 0\n{GOOD}", "BAD_CLUSTER", "time_scale", "greater than 0"),
        (f"time_scale = nan\n{GOOD}", "BAD_CLUSTER", "time_scale", ""),
        (f"hidden_factor = [1.3, 0.8]\n{GOOD}", "BAD_CLUSTER", "hidden_factor", "range"),
        (f"{GOOD}[[model]]\nname = 'other'\n", "UNKNOWN_MODEL", "model[0].name", "no pool runs"),
        (f"{GOOD}[[model]]\nname = 'llama-3.1-70b'\ntools = 'x'\n", "BAD_CLUSTER", "model[0].tools", "'hermes'"),
        (GOOD + "[[model]]\nname = 'llama-3.1-70b'\n" * 2, "DUPLICATE_MODEL", "model[1].name", "twice"),
        (f"{GOOD}[[tenant]]\nname = 'a'\n[[tenant]]\nname = 'a'\n", "DUPLICATE_TENANT", "tenant[1].name", "twice"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nweight = 0\n", "BAD_CLUSTER", "tenant[0].weight", "1"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nweight = 1000001\n", "BAD_CLUSTER", "tenant[0].weight", "1000000"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nworkflows_max = 0\n", "BAD_CLUSTER", "tenant[0].workflows_max", "1"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nqueued_tokens_max = -1\n", "BAD_CLUSTER", "tenant[0].queued_tokens_max", "1"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nquota_gpu_s = -5\n", "BAD_CLUSTER", "tenant[0].quota_gpu_s", "0.001"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nquota_gpu_s = nan\n", "BAD_CLUSTER", "tenant[0].quota_gpu_s", ""),
        (f"{GOOD}[[tenant]]\nname = 'a'\nquota_window_s = 0\n", "BAD_CLUSTER", "tenant[0].quota_window_s", "1"),
        (f"{GOOD}[[tenant]]\nname = 'a'\nquota = 5\n", "BAD_CLUSTER", "tenant[0].quota", "quota_gpu_s"),
        (f"{GOOD}[gpu_price]\nh100 = 0\n", "BAD_CLUSTER", "gpu_price.h100", "0.001"),
        (f"{GOOD}[gpu_price]\nh200 = 2\n", "UNKNOWN_GPU", "gpu_price.h200", "a100, h100"),
        (f"{GOOD}[admission]\nqueued_calls_max = 0\n", "BAD_CLUSTER", "admission.queued_calls_max", "1"),
        (f"{GOOD}[admission]\nqueued_kv_max = -1\n", "BAD_CLUSTER", "admission.queued_kv_max", "0.001"),
        (f"{GOOD}[admission]\nlate = true\n", "BAD_CLUSTER", "admission.late", "refuse_late"),
    ],
)
def test_mistakes_name_file_key_and_what_is_allowed(text: str, reason: str, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_cluster(text, "c.toml")
    error = refused.value
    assert error.reason == reason
    assert error.field.startswith(field)
    assert error.message.startswith("c.toml: ")
    assert says in error.message


def test_files_are_found_by_path_or_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_cluster(path).spec.name == "c"
    with pytest.raises(InvalidArgument) as missing:
        load_cluster("nowhere")
    assert missing.value.reason == "NO_CLUSTER_FILE"
    assert "demo" in missing.value.message
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument):
        load_cluster(path)
