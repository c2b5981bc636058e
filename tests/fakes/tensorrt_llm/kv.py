"""KV blocks of the fake engine: held, cached, pinned for a hand-off; and the transceiver that moves them."""

import asyncio
import itertools
import json
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .contract import told

BYTES_PER_TOKEN = 131_072
WINDOW = 4096  # of full attention; narrower layers tell of their blocks too
_EVENTS = "tensorrt_llm/_utils.py"
_KEYS = itertools.count(1)
_HERE: dict[int, "Transceiver"] = {}  # of this process


class Blocks:
    """Counts blocks; remembers which full ones a later prompt can use. Cached ones count as free, as in the engine."""

    def __init__(self, capacity: int, block_tokens: int, reuse: bool, buffer_size: int) -> None:
        self.capacity = capacity
        self.block_tokens = block_tokens
        self.used = 0
        self.events: list[dict[str, Any]] = []
        self.records = buffer_size > 0
        self._reuse = reuse
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._event_id = 0
        self.lose_events = False
        self._event({"type": "created", "num_blocks_per_cache_level": [capacity, 0]})

    def need(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def take(self, blocks: int) -> bool:
        if self.used + blocks > self.capacity:
            return False
        self.used += blocks
        while self._cached and len(self._cached) > self.capacity - self.used:
            gone, _ = self._cached.popitem(last=False)
            self._event(told(_EVENTS, "KVCacheEventSerializer", type="removed", block_hashes=[gone]))
        return True

    def free(self, blocks: int) -> None:
        self.used -= blocks
        assert self.used >= 0

    def cached_tokens(self, ids: Sequence[int]) -> int:
        """At least one token is computed again."""
        tokens = 0
        for chain in self._chains(ids[: len(ids) - 1]):
            if chain not in self._cached:
                break
            self._cached.move_to_end(chain)
            tokens += self.block_tokens
        return tokens

    def commit(self, ids: Sequence[int]) -> None:
        if not self._reuse:
            return
        stored = []
        for chain in self._chains(ids):
            if chain not in self._cached and len(self._cached) < self.capacity:
                self._cached[chain] = None
                stored.append(_stored_block(chain, self.block_tokens))
        left = len(ids) % self.block_tokens
        if left:  # partial blocks are told too
            stored.append(_stored_block(hash(tuple(ids)), left))
        for window in (WINDOW, WINDOW // 8):
            self._event(told(_EVENTS, "KVCacheEventSerializer", type="stored", blocks=stored), window)
            stored = [_stored_block(hash((window, tuple(ids))), self.block_tokens)]

    def _chains(self, ids: Sequence[int]) -> list[int]:
        chains, parent = [], 0
        for start in range(0, len(ids) - self.block_tokens + 1, self.block_tokens):
            parent = hash((parent, tuple(ids[start : start + self.block_tokens])))
            chains.append(parent)
        return chains

    def _event(self, data: dict[str, Any], window: int = WINDOW) -> None:
        self._event_id += 1
        if self.records and not (self.lose_events and self._event_id % 3 == 0):
            event = {"event_id": self._event_id, "data": data, "window_size": window}
            self.events.append(told(_EVENTS, "KVCacheEventSerializer", **event))


def _stored_block(block_hash: int, tokens: int) -> dict[str, Any]:
    return told(_EVENTS, "KVCacheEventSerializer", block_hash=block_hash, tokens=[{}] * tokens)


class KvGone(Exception):
    """The sender no longer has the KV, or died."""


class Transceiver:
    """Sends pinned KV to engines of this process directly, to those of others over a Unix socket."""

    serves_others = True

    def __init__(self) -> None:
        self.key = next(_KEYS)
        self.pinned: dict[int, tuple[int, int]] = {}  # by context request: blocks, tokens
        self.dead = False
        self.freed: Any = None  # told how many blocks are free again
        self._path = ""
        self._server: asyncio.Server | None = None
        _HERE[self.key] = self

    async def offer(self, request: int, blocks: int, tokens: int) -> bytes:
        """Pin, and say where to pull from."""
        if self.serves_others and not self._path:
            self._path = str(Path(tempfile.mkdtemp(prefix="fake-kv-")) / "s")
            self._server = await asyncio.start_unix_server(self._serve, self._path)
        self.pinned[request] = (blocks, tokens)
        return json.dumps([os.getpid(), self.key, self._path, request]).encode()

    def give(self, request: int) -> int:
        """The KV has left: its blocks are free. Bytes that moved."""
        if self.dead or request not in self.pinned:
            raise KvGone(f"no KV of request {request}")
        blocks, tokens = self.pinned.pop(request)
        self.freed(blocks)
        return tokens * BYTES_PER_TOKEN

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"%d\n" % self.give(int(await reader.readline())))
        except (KvGone, ValueError):
            writer.write(b"-1\n")
        writer.close()

    def close(self) -> None:
        self.dead = True
        _HERE.pop(self.key, None)
        if self._server is not None:
            self._server.close()
            shutil.rmtree(Path(self._path).parent, ignore_errors=True)


async def pull(state: bytes, delay_s: float) -> int:
    """Fetch the KV that `state` tells of; its bytes. `KvGone`."""
    pid, key, path, request = json.loads(state)
    await asyncio.sleep(delay_s)
    if pid == os.getpid():
        sender = _HERE.get(key)
        if sender is None:
            raise KvGone("the sender is dead")
        return sender.give(request)
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"%d\n" % request)
        answer = int(await reader.readline() or b"-1")
        writer.close()
    except (OSError, ValueError) as error:
        raise KvGone("the sender is dead") from error
    if answer < 0:
        raise KvGone(f"no KV of request {request}")
    return answer
