"""The file that says which instances have real engines."""

import sys
from pathlib import Path
from typing import Any

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.spec import Lora, Role, TextSpec
from hexagent.text.model import load_model_text
from hexagent_services.worker_agent.engine.host_process import HostProcess
from hexagent_services.worker_agent.engine.model_text import EngineText, TextThreads
from hexagent_services.worker_agent.engine.trtllm_serve.host import ServeHost
from hexagent_services.worker_agent.engines_file import EngineTable, read_engines_file, real_engine
from tests.contract.engines import MODEL, WALL_CLOCK, spec
from tests.models import write_model

INSTANCE = spec("p", Role.PREFILL)


def tables(folder: Path, text: str) -> dict[str, EngineTable]:
    file = folder / "engines.toml"
    file.write_text(text)
    return read_engines_file(file, (INSTANCE,))


def test_tables_of_the_agents_own_instances_are_read(tmp_path: Path) -> None:
    found = tables(tmp_path, '[p]\nkind = "trtllm"\nmax_seq_tokens = 9000\n[elsewhere]\nkind = "trtllm"\n')
    assert list(found) == ["p"]
    assert (found["p"].max_seq_tokens, found["p"].transceiver) == (9000, "UCX")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[p", "HEXAGENT_ENGINES_FILE"),
        ('[p]\nkind = "vllm"', "p.kind"),
        ('[p]\nkind = "trtllm"\ncolour = 1', "p.colour"),
        ('[p]\nkind = "trtllm-serve"\nurl = "here"', "p.url"),
        ('[p]\nkind = "trtllm"\nenviron = { CUDA_VISIBLE_DEVICES = 0 }', "p.environ.CUDA_VISIBLE_DEVICES"),
    ],
)
def test_wrong_files_are_refused_by_key(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tables(tmp_path, text)
    assert (caught.value.reason, caught.value.field) == ("BAD_ENGINES_FILE", field)
    assert "engines.toml" in caught.value.message


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"kind": "trtllm"}, HostProcess),
        ({"kind": "trtllm-serve", "command": [sys.executable]}, ServeHost),
        ({"kind": "trtllm-serve", "url": "http://127.0.0.1:1"}, ServeHost),
    ],
)
async def test_an_engine_of_each_kind(tmp_path: Path, table: dict[str, Any], kind: type) -> None:
    model = write_model(tmp_path / "model", "qwen")
    text = EngineText(load_model_text(model), TextSpec(MODEL, str(model)), TextThreads())
    engine = real_engine(INSTANCE, EngineTable(**table), {MODEL: text}, WALL_CLOCK, tmp_path)
    assert isinstance(engine._held.link._host, kind)
    assert engine._options.model_dir == str(model)
    await engine.close()


async def test_what_an_engine_needs_is_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        real_engine(INSTANCE, EngineTable(kind="trtllm"), {}, WALL_CLOCK, tmp_path)
    assert caught.value.reason == "NO_MODEL_DIRECTORY"
    model = write_model(tmp_path / "model", "qwen")
    text = EngineText(load_model_text(model), TextSpec(MODEL, str(model)), TextThreads())
    with pytest.raises(InvalidArgument) as caught:
        real_engine(INSTANCE, EngineTable(kind="trtllm-serve"), {MODEL: text}, WALL_CLOCK, tmp_path)
    assert caught.value.reason == "NO_ENGINE_PROGRAM"
    adapted = INSTANCE._replace(loras=(Lora("sql", 16),), max_loras=1)
    with pytest.raises(InvalidArgument, match="directory of adapter sql") as caught:
        real_engine(adapted, EngineTable(kind="trtllm"), {MODEL: text}, WALL_CLOCK, tmp_path)
    assert caught.value.reason == "NO_LORA_DIRECTORY"
