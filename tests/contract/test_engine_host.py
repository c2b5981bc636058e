"""The engine host as a program: what it may import, and what it makes of a version's abilities and events."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hexagent.core.instance.spec import Role
from hexagent_services.worker_agent import engine_host
from hexagent_services.worker_agent.engine.host_process import HostProcess
from hexagent_services.worker_agent.engine.options import TrtllmOptions
from hexagent_services.worker_agent.engine.trtllm import TrtllmEngine
from hexagent_services.worker_agent.engine_host.readers import CachedBlocks, Statistics, read_engine
from tests.contract.engines import FAKES, WALL_CLOCK, eventually, spec
from tests.fakes.byte_text import ByteText

FOLDER = Path(engine_host.__file__).parent
IMPORT_ALL = f"""
import importlib, importlib.util, pathlib, sys
folder = pathlib.Path({str(FOLDER)!r})
spec = importlib.util.spec_from_file_location("host", folder / "__init__.py", submodule_search_locations=[str(folder)])
sys.modules["host"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["host"])
for file in sorted(folder.glob("[!_]*.py")):
    importlib.import_module("host." + file.stem)
"""


@pytest.mark.parametrize("python", [sys.executable, "python3.10", "python3.12"])
def test_it_imports_the_standard_library_only(python: str) -> None:
    found = shutil.which(python)
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no {python} here")
    # Isolated and without site packages: neither this project nor what it depends on can be found.
    done = subprocess.run([found, "-I", "-S", "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def processes_of(log: Path) -> list[str]:
    """Names of the running processes of the engine that writes to `log`."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if f"HEXAGENT_ENGINE_LOG={log}\0" in (entry / "environ").read_text():
                    found.append((entry / "comm").read_text().strip())
            except OSError:
                continue
    return sorted(found)


async def test_an_engines_processes_end_with_it_and_before_another_takes_its_place(tmp_path: Path) -> None:
    def engine() -> TrtllmEngine:
        environ = {"PYTHONPATH": str(FAKES), "FAKE_TRTLLM": '{"worker": true}'}
        host = HostProcess(sys.executable, environ, tmp_path / "engine.log")
        options = TrtllmOptions("/models/none", max_seq_tokens=1000)
        return TrtllmEngine(spec("d", Role.DECODE), host, ByteText(), WALL_CLOCK, 1, options)

    left_behind, successor = engine(), engine()
    await left_behind.start()
    left_behind._held.link._reading.cancel()  # type: ignore[union-attr] # as if its agent had been killed
    await eventually(lambda: "sleep" in processes_of(tmp_path / "engine.log"))  # a process shows its environment late
    before = processes_of(tmp_path / "engine.log")
    assert len(before) == 2
    await successor.start()
    await eventually(lambda: processes_of(tmp_path / "engine.log") == before)
    await successor.close()
    await eventually(lambda: processes_of(tmp_path / "engine.log") == [])


def stored(event_id: int, *blocks: tuple[int, int], window: int = 4096) -> dict[str, object]:
    """Blocks as (hash, tokens)."""
    listed = [{"block_hash": block, "tokens": [0] * tokens} for block, tokens in blocks]
    return {"event_id": event_id, "window_size": window, "data": {"type": "stored", "blocks": listed}}


def test_cached_blocks_are_full_ones_of_the_largest_window() -> None:
    cached = CachedBlocks(32)
    cached.take({"event_id": 1, "window_size": 512, "data": {"type": "created", "num_blocks_per_cache_level": [9]}})
    cached.take(stored(2, (10, 32), (11, 32), (12, 7)))
    cached.take(stored(3, (13, 32), window=512))
    assert (len(cached), cached.gaps) == (2, 0)
    cached.take({"event_id": 4, "window_size": 4096, "data": {"type": "removed", "block_hashes": [10, 99]}})
    assert (len(cached), cached.gaps) == (1, 0)
    cached.take(stored(6, (14, 32)))
    assert (len(cached), cached.gaps) == (2, 1)


def test_silence_reports_nothing() -> None:
    statistics = Statistics()
    assert statistics.report() is None
    statistics.take({"iterLatencyMS": 2.5, "inflightBatchingStats": {"numCtxTokens": 7}, "kvCacheStats": None})
    report = statistics.report()
    assert report is not None
    assert report["steps"] == [[2500, 7, 0, 0]]
    assert statistics.report() is None


class BusyEngine:
    """Has a further iteration to tell whenever it is asked."""

    async def get_stats_async(self, timeout: float) -> AsyncIterator[str]:
        while True:
            await asyncio.sleep(0.001)
            yield '{"iterLatencyMS": 1.0}'


async def test_an_engine_that_always_has_more_to_tell_is_reported_of() -> None:
    requests: Any = SimpleNamespace(came=asyncio.Event(), running=1)
    requests.came.set()
    reports: list[Any] = []
    reading = asyncio.create_task(read_engine(BusyEngine(), requests, 32, False, reports.append))
    await asyncio.sleep(0.5)
    reading.cancel()
    assert reports
