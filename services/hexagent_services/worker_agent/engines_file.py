"""Real engines of an agent: a TOML file beside it, one table an instance. Instances without a table are emulated."""

import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.tables import load_table
from hexagent.core.instance.spec import InstanceSpec
from hexagent.runtime.clock import Clock
from hexagent_services.worker_agent.engine.host_process import Host, HostProcess
from hexagent_services.worker_agent.engine.model_text import EngineText
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from hexagent_services.worker_agent.engine.trtllm_serve.host import ServeHost
from hexagent_services.worker_agent.engine.trtllm_serve.process import ServeProcess


class EngineTable(BaseModel):
    """How an instance's engine is started, or reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["trtllm", "trtllm-serve"]
    model_dir: str = ""  # of the weights; "" = the model's directory in the cluster file
    max_seq_tokens: int = Field(default=131_072, ge=1, le=2**24)  # of the longest prompt and its output
    transceiver: Literal["UCX", "NIXL", "MOONCAKE"] = "UCX"
    transfer_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    load_timeout_s: float = Field(default=1800.0, gt=0, le=86400)
    stall_s: float = Field(default=60.0, ge=5, le=3600)  # without progress on its work it counts as hung
    arguments: dict[str, Any] = {}  # of the `LLM` constructor, or keys of the server's configuration; they win
    environ: dict[str, str] = {}  # such as CUDA_VISIBLE_DEVICES
    python: str = sys.executable  # trtllm: the Python that `tensorrt_llm` is installed in
    command: list[str] = Field(default=["trtllm-serve"], min_length=1)  # trtllm-serve: program and first arguments
    url: str = Field(default="", pattern=r"^(https?://.+)?$")  # trtllm-serve: one that somebody else has started
    auth_key_file: Path | None = None  # trtllm-serve: holds the key that hand-offs are signed with
    guided_decoding: bool = False  # trtllm-serve at a `url`: it was started with a `guided_decoding_backend`


def read_engines_file(path: Path, instances: tuple[InstanceSpec, ...]) -> dict[str, EngineTable]:
    """Tables by instance. `InvalidArgument` (BAD_ENGINES_FILE) naming file and key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(path, "", str(error)) from error
    known = {spec.instance_id for spec in instances}
    found: dict[str, EngineTable] = {}
    for name, table in tables.items():
        if name not in known:
            continue  # of another agent on this machine
        try:
            found[name] = EngineTable.model_validate(table)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, (name, *first["loc"])))
            raise _bad(path, key, first["msg"]) from None
    return found


def real_engine(
    spec: InstanceSpec, table: EngineTable, texts: Mapping[str, EngineText], clock: Clock, folder: Path
) -> TrtllmEngine:
    """The engine of an instance; `folder` is for its output.

    `InvalidArgument`: NO_MODEL_DIRECTORY or NO_LORA_DIRECTORY where the cluster file names none for its model or an
    adapter, NO_ENGINE_PROGRAM.
    """
    text = texts.get(spec.model)
    if text is None:
        raise InvalidArgument(
            f"{spec.instance_id}: real engines need the directory of {spec.model} in the cluster file",
            reason="NO_MODEL_DIRECTORY",
            field="model.directory",
        )
    if lacking := [lora.name for lora in spec.loras if not lora.directory]:
        raise InvalidArgument(
            f"{spec.instance_id}: real engines need the directory of adapter {lacking[0]} in the cluster file",
            reason="NO_LORA_DIRECTORY",
            field="pool.loras.directory",
        )
    options = TrtllmOptions(
        model_dir=table.model_dir or text.directory,
        max_seq_tokens=table.max_seq_tokens,
        transceiver=table.transceiver,
        transfer_timeout_s=table.transfer_timeout_s,
        load_timeout_s=table.load_timeout_s,
        stall_s=table.stall_s,
        arguments=table.arguments,
        restarts=not table.url,
    )
    kv_bytes_per_token = load_table(spec.gpu_type, spec.model, spec.tp, spec.precision).kv_bytes_per_token
    host = _host(spec, table, folder / spec.instance_id)
    return TrtllmEngine(spec, host, text, clock, kv_bytes_per_token, options)


def _host(spec: InstanceSpec, table: EngineTable, folder: Path) -> Host:
    if table.kind == "trtllm":
        return HostProcess(_program(spec, table.python), table.environ, folder / "engine.log")
    key = table.auth_key_file.read_text(encoding="utf-8").strip() if table.auth_key_file is not None else ""
    if table.url:
        return ServeHost(table.url, key, guided=table.guided_decoding)
    command = (_program(spec, table.command[0]), *table.command[1:])
    return ServeHost(ServeProcess(command, table.environ, folder), key)


def _program(spec: InstanceSpec, name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise InvalidArgument(
            f"{spec.instance_id}: there is no program {name}", reason="NO_ENGINE_PROGRAM", field="HEXAGENT_ENGINES_FILE"
        )
    return found


def _bad(path: Path, key: str, text: str) -> InvalidArgument:
    where = f"{path}: {key}" if key else str(path)
    return InvalidArgument(f"{where}: {text}", reason="BAD_ENGINES_FILE", field=key or "HEXAGENT_ENGINES_FILE")
