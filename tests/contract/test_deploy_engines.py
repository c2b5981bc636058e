"""deploy/engines/: every engine of its clusters is configured, on GPUs of its own, and can exchange KV with others."""

from collections import defaultdict
from pathlib import Path

import pytest

from hexagent.runtime.cluster_file import load_cluster
from hexagent_services.worker_agent.engines_file import read_engines_file

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[2] / "deploy" / "engines").glob("*/cluster.toml"))
GPUS_A_MACHINE = 8


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_engines_fit_their_cluster(folder: Path) -> None:
    config = load_cluster(folder / "cluster.toml")
    assert config.time_scale == 1
    instances = config.spec.instances
    assert {spec.gpu_type for spec in instances} == {"a100", "h100", "h200"}
    assert {spec.model for spec in instances} == {folder.name} == {text.model for text in config.spec.texts}
    transceivers, lengths = set(), set()
    used: dict[str, list[str]] = defaultdict(list)  # by machine
    for spec in instances:
        table = read_engines_file(folder / f"{spec.gpu_type}.toml", instances)[spec.instance_id]
        gpus = table.environ["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(gpus) == spec.tp
        used[spec.gpu_type if 2 * spec.tp <= GPUS_A_MACHINE else spec.instance_id] += gpus
        assert table.arguments.get("moe_expert_parallel_size", spec.tp) == spec.tp
        transceivers.add(table.transceiver)
        lengths.add(table.max_seq_tokens)
        assert table.max_seq_tokens <= spec.kv_tokens
    for gpus in used.values():
        assert sorted(gpus) == [str(i) for i in range(GPUS_A_MACHINE)]
    assert len(transceivers) == len(lengths) == 1


def test_both_models_are_there() -> None:
    assert [folder.name for folder in FOLDERS] == ["llama-3.1-70b", "qwen3-235b-a22b"]
