"""Frames of the Unix socket between an agent and its engine host: a JSON object and, behind it, token ids.

On the wire: bytes of the JSON and bytes of the ids, 4 bytes each, big-endian; the JSON in UTF-8; each id as 4 bytes in
the machine's order, because both ends are on one machine.
"""

import asyncio
import json
import struct
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

FRAME_BYTES_MAX = 64 << 20  # a prompt of a million tokens is 4 MiB
_LENGTHS = struct.Struct(">II")


class Frame(NamedTuple):
    body: dict[str, Any]
    ids: Sequence[int]


def frame_to_bytes(body: dict[str, Any], ids: Sequence[int] = ()) -> bytes:
    head = json.dumps(body, separators=(",", ":")).encode()
    tail = array("I", ids).tobytes()
    return _LENGTHS.pack(len(head), len(tail)) + head + tail


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None at the end of the stream. `ValueError` for what is none."""
    try:
        head_bytes, tail_bytes = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if head_bytes + tail_bytes > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {head_bytes + tail_bytes} bytes; the most is {FRAME_BYTES_MAX}")
        head = await reader.readexactly(head_bytes)
        ids = array("I")
        ids.frombytes(await reader.readexactly(tail_bytes))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Frame(json.loads(head), ids)
