"""The host's life: build the engine as ordered, carry out orders, stop when the agent is gone."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from .arguments import engine_arguments
from .frames import frame_to_bytes, read_frame
from .library import Library, capabilities
from .readers import read_engine
from .requests import Requests


async def serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, library: Library, closing: Callable[[], object]
) -> None:
    """Return when the agent has closed the connection; raises what breaks the engine.

    `closing` is called before the engine is shut down, which may never end.
    """

    def send(body: Any, ids: Sequence[int] = ()) -> None:
        writer.write(frame_to_bytes(body, ids))

    frame = await read_frame(reader)
    if frame is None:
        return
    order, found = frame.body, capabilities(library)
    llm = library.LLM(**engine_arguments(library, found, order))  # blocks while the model loads
    requests = Requests(library, llm, found, order["block_tokens"], send)
    send({"event": "loaded", "capabilities": found, "version": library.version})
    tasks = (
        asyncio.ensure_future(_obey(reader, requests)),
        asyncio.ensure_future(read_engine(llm, requests, order["block_tokens"], order["prefix_cache"], send)),
        requests.failed,
    )
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
    finally:
        for task in tasks:
            task.cancel()
        await requests.close()
        closing()
        llm.shutdown()


async def _obey(reader: asyncio.StreamReader, requests: Requests) -> None:
    while True:
        frame = await read_frame(reader)
        if frame is None:
            return
        if frame.body["op"] == "abort":
            requests.abort(frame.body["id"])
        else:
            requests.start(frame.body, frame.ids)
