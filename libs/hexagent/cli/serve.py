"""One process of a stack in the foreground, for containers and for debugging."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

from hexagent.core.errors import NotFound
from hexagent.runtime.nats_server import NatsServer

MODULES: Final = {
    "dag-tracker": "dag_tracker",
    "estimator": "estimator",
    "scheduler": "scheduler",
    "worker-agent": "worker_agent",
    "gateway": "gateway",
}
NATS: Final = "nats"


def serve_service(name: str) -> None:
    """Become the service; its settings come from the environment. `NotFound` lists the known names."""
    if name not in MODULES:
        known = ", ".join(sorted((*MODULES, NATS)))
        raise NotFound(f"no service {name!r}; known: {known}", reason="UNKNOWN_SERVICE", field="NAME")
    sys.stdout.flush()
    # The same process, so that signals and exit status are the service's own.
    os.execv(sys.executable, [sys.executable, "-m", f"hexagent_services.{MODULES[name]}"])


async def serve_nats(data_dir: Path, host: str, port: int) -> int:
    """Run a nats-server on the folder until SIGTERM, SIGINT or its own end; gives the exit status."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = NatsServer(data_dir, host, port)
    await server.start()
    try:
        ready = {"service": NATS, "port": server.port, "pid": server.pid, "url": server.url}
        print(json.dumps(ready), flush=True)
        ended, told = asyncio.create_task(server.wait()), asyncio.create_task(stopping.wait())
        await asyncio.wait((ended, told), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not ended.done():
            ended.cancel()
            return 0
        return ended.result() or 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            await server.stop()
