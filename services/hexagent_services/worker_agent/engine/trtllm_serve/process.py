"""`trtllm-serve` as a child process of the agent."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from hexagent.runtime.tether import tethered
from hexagent_services.worker_agent.engine_host.arguments import engine_arguments
from hexagent_services.worker_agent.engine_host.library import Library

STOP_S: Final = 20.0  # wall time from SIGTERM to SIGKILL
PERF_METRICS_MAX: Final = 10_000  # of requests that end between two readings


class ServeProcess:
    """Leader of a process group of its own, on a free port of this machine; a `Launcher`."""

    def __init__(self, program: tuple[str, ...], environ: Mapping[str, str], folder: Path) -> None:
        self._program = program
        self._environ = environ
        self._folder = folder  # of its configuration and its output
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, order: Mapping[str, Any]) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "trtllm-serve.yaml"  # every JSON text is YAML
        config.write_text(json.dumps(configuration(order), indent=1), encoding="utf-8")
        port = _free_port()
        argv = (*self._program, order["model"], "--host", "127.0.0.1", "--port", str(port), "--backend", "pytorch")
        with (self._folder / "trtllm-serve.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered((*argv, "--config", str(config))), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self._environ}, start_new_session=True,
            )  # fmt: skip
        return f"http://127.0.0.1:{port}"

    async def ended(self) -> str:
        assert self._process is not None
        return f"trtllm-serve ended with status {await self._process.wait()}; its output is in {self._folder}"

    async def stop(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
            await self.kill()

    async def kill(self) -> None:
        """The group outlives its leader where the engine's workers do."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def configuration(order: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine host passes to the constructor, as the server's configuration file."""
    found = {"pipelined_transfer": False}
    arguments = engine_arguments(_PLAIN, found, dict(order))
    for name in ("model", "backend", "skip_tokenizer_init"):  # on the command line, or the server's own business
        arguments.pop(name, None)
    return {"perf_metrics_max_requests": PERF_METRICS_MAX, "guided_decoding_backend": "xgrammar", **arguments}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_PLAIN: Final = Library(
    version="",
    LLM=None,
    SamplingParams=None,
    DisaggregatedParams=None,
    KvCacheConfig=dict,
    KvCacheRetentionConfig=None,
    CacheTransceiverConfig=dict,
    SchedulerConfig=dict,
    CapacitySchedulerPolicy=SimpleNamespace(GUARANTEED_NO_EVICT="GUARANTEED_NO_EVICT"),
    ContextChunkingPolicy=SimpleNamespace(EQUAL_PROGRESS="EQUAL_PROGRESS"),
    LoraConfig=dict,
    LoRARequest=None,
    RequestError=None,
)
