"""The manifest of TensorRT-LLM's interface: we fail without each name of it that we use, and find drift in source."""

import asyncio
import copy
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hexagent.core.workflow.model import FinishReason
from hexagent_services.worker_agent.engine.port import EngineAborted, EngineRequest, Finished, Generated
from hexagent_services.worker_agent.engine_host.frames import Frame
from tests.contract.engines import request_of
from tests.contract.trtllm.manifest import Manifest, breaks, drifts, load_manifest, version_of
from tests.contract.trtllm.session import ADAPTER, Side, decode, finished, started
from tests.fakes.local_host import fake_library
from tests.fakes.virtual_loop import run_virtually

# Names of the manifest that nothing here calls; each other one is needed.
UNUSED = {
    *(("BaseLLM.__init__", p) for p in ("tokenizer", "tokenizer_mode", "trust_remote_code", "dtype", "revision")),
    ("BaseLLM.__init__", "tokenizer_revision"),
    *(("BaseLLM.generate_async", p) for p in ("prompt_adapter_request", "trace_headers")),
    *(("BaseLLM.generate_async", p) for p in ("_postproc_params", "scheduling_params", "cache_salt")),
    *(("DisaggregatedParams", f) for f in ("draft_tokens", "multimodal_embedding_handles", "multimodal_hashes")),
    *(("DisaggregatedParams", f) for f in ("mrope_position_ids_handle", "mrope_position_deltas_handle")),
    ("CacheTransceiverConfig", "kv_transfer_sender_future_timeout_ms"),
    ("SchedulerConfig", "dynamic_batch_config"),
    *(("CapacitySchedulerPolicy", m) for m in ("MAX_UTILIZATION", "STATIC_BATCH")),
    ("ContextChunkingPolicy", "FIRST_COME_FIRST_SERVED"),
    *(("RequestPerfMetrics", "kv_cache_metrics"), ("KvCacheMetrics", "num_reused_blocks")),  # without `cached_tokens`
    ("IterationStats", "iter"),  # by way of `trtllm-serve` only
}


def names(manifest: Manifest) -> Iterator[tuple[str, str, str, str]]:
    """Every name as (file, kind, owner, name)."""
    for path, kinds in manifest.items():
        if path == "version":
            continue
        for kind, owners in kinds.items():
            for owner, members in owners.items():
                if kind == "arguments":
                    yield path, kind, "", owner
                    continue
                for name in members["params"] if kind == "methods" else members:
                    yield path, kind, owner, name


def without(manifest: Manifest, path: str, kind: str, owner: str, name: str) -> Manifest:
    changed = copy.deepcopy(manifest)
    owners = changed[path][kind]
    members = owners if kind == "arguments" else owners[owner]["params"] if kind == "methods" else owners[owner]
    if isinstance(members, list):
        members.remove(name)
    else:
        del members[name]
    return changed


def demanding(node: str) -> EngineRequest:
    """A call that asks for everything an engine is passed."""
    request = request_of(node, stream="yes")
    sampling = request.call.sampling
    sampling.temperature = sampling.top_p = sampling.repetition_penalty = 0.5
    sampling.min_p = sampling.presence_penalty = sampling.frequency_penalty = 0.1
    sampling.top_k = sampling.seed = 3
    sampling.stop_token_ids.append(17)
    request.call.lora = ADAPTER.name
    request.call.kv_retention.priority = 80
    request.call.kv_retention.ttl.FromMilliseconds(1500)
    return request


async def abort_halfway(side: Side, request: EngineRequest) -> None:
    generated = 0
    async for event in side.engine.local(request):
        generated += event.tokens if isinstance(event, Generated) else 0
        if generated > request.max_tokens // 2:
            side.engine.abort(request.ticket)


class Heard:
    """The largest of each number that an engine's host has said; what it reads leniently would be 0."""

    def __init__(self, side: Side) -> None:
        self.largest: dict[str, int] = {}
        link = side.engine._held.link
        self._hear = link._hear
        link._hear = self.hear

    def hear(self, frame: Frame) -> None:
        body = frame.body
        steps = [{"step_us": s[0], "prefilled": s[1], "decoding": s[2]} for s in body.get("steps", ())]
        for numbers in (body, body.get("timing", {}), *steps):
            for name, value in numbers.items():
                if isinstance(value, int):
                    self.largest[name] = max(value, self.largest.get(name, 0))
        self._hear(frame)

    def check(self, *names: str) -> None:
        assert [name for name in names if not self.largest.get(name)] == []


async def use_everything(manifest: Path) -> None:
    library = fake_library(manifest)
    source = await started("p", library, profile="trtllm-equal-progress")
    target = await started("d", library)
    prefill, decoding = Heard(source), Heard(target)
    target.llm.faults.drafts = 2
    try:
        request = demanding("a")
        async with asyncio.timeout(5):
            events = await decode(source, target, request, await source.engine.prefill(request))
            assert finished(events).finish is FinishReason.STOP
            long = request_of("d", prompt_tokens=1_100)  # of its blocks others' have to go
            for again in (demanding("b"), demanding("b"), long):
                last = [event async for event in target.engine.local(again)][-1]
                assert isinstance(last, Finished)
                assert last.output_tokens == 12
            with pytest.raises(EngineAborted):
                await abort_halfway(target, request_of("c", output_tokens=400, max_tokens=500, stream="yes"))
            await asyncio.sleep(0.3)
        assert target.engine.take_samples().generated_tokens > 20
        assert target.engine.load().kv_cached_blocks == len(target.llm.blocks._cached) > 0
        assert target.llm.blocks.used == 0
        assert target.llm.retentions[0].ranges[0].priority == 80
        for side in (source, target):
            assert {(r.lora_name, r.lora_int_id, r.lora_path) for r in side.llm.loras} == {("sql", 1, "/adapters/sql")}
            config = side.llm.arguments["lora_config"]
            assert (config.lora_dir, config.max_lora_rank, config.max_loras) == (["/adapters/sql"], 16, 1)
            assert config.max_cpu_loras == 1
        prefill.check("max_blocks", "cached_blocks", "step_us", "prefilled", "compute_us")
        decoding.check("active", "used_blocks", "max_blocks", "decoding", "drafted_tokens", "accepted_tokens")
        decoding.check("cached_tokens", "transfer_us", "kv_bytes", "step_us")
    finally:
        await source.engine.close()
        await target.engine.close()


def test_every_name_we_use_is_needed(tmp_path: Path) -> None:
    manifest, file = load_manifest(), tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest))
    run_virtually(use_everything(file))
    unnoticed = set()
    for path, kind, owner, name in names(manifest):
        file.write_text(json.dumps(without(manifest, path, kind, owner, name)))
        try:
            run_virtually(use_everything(file))
        except Exception:
            pass
        else:
            unnoticed.add((owner, name))
    assert unnoticed == UNUSED


def write_tree(folder: Path, manifest: Manifest) -> Path:
    """Source in the shape of the manifest; it is read, never run."""
    for path, kinds in manifest.items():
        if path == "version":
            continue
        classes: dict[str, list[str]] = {}
        for name, method in kinds.get("methods", {}).items():
            owner, function = name.split(".")
            defaults = {p: "None" for p in method["params"] if p != "self"} | method.get("defaults", {})
            parameters = [f"{p}={defaults[p]}" if p in defaults else p for p in method["params"]]
            parameters += ["**kwargs"] if method.get("varkw") else []
            classes.setdefault(owner, []).append(f"def {function}({', '.join(parameters)}): ...")
        for owner, fields in (kinds.get("fields", {}) | kinds.get("uses", {})).items():
            classes[owner] = [f"{field}: object = Field(default={value})" for field, value in fields.items()]
        if arguments := kinds.get("arguments"):
            classes["TorchLlmArgs"] = [f"{name}: object = {value or 'None'}" for name, value in arguments.items()]
        for owner, members in kinds.get("enums", {}).items():
            classes[owner] = [f"{member} = {member!r}" for member in members]
        reads = [f"{owner}: {' '.join(read)}" for owner, read in kinds.get("reads", {}).items()]
        blocks = [f"class {owner}:\n" + "".join(f"    {line}\n" for line in lines) for owner, lines in classes.items()]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("\n".join(("import nothing_that_exists", *blocks, *(f"# {line}" for line in reads))))
    return folder


def test_source_is_checked_without_being_run(tmp_path: Path) -> None:
    manifest = load_manifest()
    tree = write_tree(tmp_path / "tree", manifest)
    assert drifts(tree, manifest) == []
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in tree.rglob("*.py"):  # without the files of other languages
            archive.write(file, file.relative_to(tree))
    assert drifts(wheel, manifest) == []
    for path, kind, owner, name in names(manifest):
        lacking = {"version": "", path: without(manifest, path, kind, owner, name)[path]}
        found = drifts(write_tree(tmp_path / "other", lacking), {path: manifest[path]})
        assert found
        assert all(name in drift for drift in found)


def test_drift_of_other_kinds_is_found(tmp_path: Path) -> None:
    manifest = load_manifest()
    tree = write_tree(tmp_path, manifest)
    file = tree / "tensorrt_llm/llmapi/llm.py"
    file.write_text(file.read_text().replace("cache_salt=None", "cache_salt=None, priority=0.5").replace("=2", "=3"))
    file = tree / "tensorrt_llm/disaggregated_params.py"
    file.write_text(file.read_text() + "    disagg_request_id: object = None\n")
    (tree / "tensorrt_llm/executor/result.py").unlink()
    (tree / "cpp/tensorrt_llm/nanobind/executor/request.cpp").unlink()
    found = drifts(tree, manifest)
    assert [drift.partition(": ")[2] for drift in found] == [
        "BaseLLM.generate_async gained priority",
        "BaseLLM.get_stats_async(timeout=) is 3, not 2",
        "BaseLLM.get_kv_cache_events_async(timeout=) is 3, not 2",
        "DisaggregatedParams gained disagg_request_id",
        "missing file",
        "missing file",
    ]
    # Of another version only what is gone matters: its defaults are its own, what it has more is looked for.
    assert [drift for drift in found if breaks(drift)] == found[-2:]
    assert version_of(tree) == ""
    (tree / "tensorrt_llm/version.py").write_text('__version__ = "1.2.1"\n')
    assert version_of(tree) == manifest["version"]


@pytest.mark.skipif("TRTLLM_SRC" not in os.environ, reason="TRTLLM_SRC names no TensorRT-LLM source tree or wheel")
def test_the_real_source_is_as_the_manifest_says() -> None:
    """Exactly, where it is of the manifest's version; of another, what we use is there."""
    source, manifest = Path(os.environ["TRTLLM_SRC"]), load_manifest()
    exactly = version_of(source) == manifest["version"]
    assert [drift for drift in drifts(source, manifest) if exactly or breaks(drift)] == []
