"""The host as a process: connect to the agent, serve it, and leave nothing running."""

import asyncio
import os
import signal
import sys
import threading
import traceback

from .library import load_library
from .session import serve

STOP_S = 20.0  # wall time for the engine to shut down before the process group is killed


def run(socket_path: str) -> int:
    """Exit status: 0 after the agent has closed the connection, 1 when the engine broke."""
    status = 0
    try:
        asyncio.run(_run(socket_path))
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of a broken engine would keep the process


async def _run(socket_path: str) -> None:
    library = load_library()
    reader, writer = await asyncio.open_unix_connection(socket_path)
    try:
        await serve(reader, writer, library, _limit_stop)
    finally:
        writer.close()


def _limit_stop() -> None:
    """A broken engine may never shut down. The host leads its process group, and the engine's workers are in it."""

    def kill() -> None:
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    end = threading.Timer(STOP_S, kill)
    end.daemon = True
    end.start()
