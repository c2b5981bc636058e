"""Streams of server-sent events, against a call that does what the test says."""

import asyncio
import json
from typing import Any, cast

import pytest

from hexagent.core.errors import ResourceExhausted
from hexagent.text.reader import OutputReader
from hexagent_services.gateway.completions import Completion
from hexagent_services.gateway.failures import Failures
from hexagent_services.gateway.sse import EventStream
from hexagent_services.gateway.workflow import Call
from tests.unit.test_gateway_answers import result_of


class ScriptedCall:
    """Says its pieces, a number being a pause in seconds, then ends with a result or an error."""

    def __init__(self, *pieces: str | float, error: Exception | None = None) -> None:
        self._pieces = list(pieces)
        self._error = error
        self.closed = ""

    async def next_text(self) -> str | None:
        while self._pieces:
            piece = self._pieces.pop(0)
            if isinstance(piece, str):
                return piece
            await asyncio.sleep(piece)
        return None

    async def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return result_of("whatever")

    def close(self, cancelled_for: str) -> None:
        self.closed = cancelled_for


class Wire:
    """The server's side of one request: what was sent, and a client that leaves when told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def lines(self) -> list[str]:
        return b"".join(message.get("body", b"") for message in self.sent).decode().split("\n\n")[:-1]


async def stream(call: ScriptedCall, wire: Wire, *, keep_alive_s: float = 5, timeout_s: float = 5) -> None:
    response = EventStream(
        Completion.new("c", "w", "m", False),
        cast(Call, call),
        OutputReader("", "", may_ask=True),
        asyncio.create_task(call.next_text()),
        headers={"x-request-id": "r"},
        keep_alive_s=keep_alive_s,
        end_s=asyncio.get_running_loop().time() + timeout_s,
        failures=Failures(1.0, 1),
    )
    await response({}, wire.receive, wire.send)


async def test_a_stream_begins_with_its_first_text_and_ends_with_done() -> None:
    wire = Wire()
    await stream(ScriptedCall("a", "b"), wire)
    assert wire.sent[0]["status"] == 200
    assert (b"x-request-id", b"r") in wire.sent[0]["headers"]
    assert wire.sent[1]["body"].count(b"data: ") == 2
    assert [message["more_body"] for message in wire.sent[1:]] == [True] * (len(wire.sent) - 2) + [False]
    contents = [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in wire.lines[:-1]]
    assert contents == ["", "a", "b", None]
    assert wire.lines[-1] == "data: [DONE]"


async def test_silence_is_filled_with_comments() -> None:
    wire = Wire()
    await stream(ScriptedCall(0.05, "a", 0.05, "b"), wire, keep_alive_s=0.02)
    assert '"role":"assistant"' in wire.lines[0]
    assert any(line.startswith(":") for line in wire.lines)
    assert "data: [DONE]" in wire.lines


async def test_an_error_after_the_first_text_is_the_last_event() -> None:
    wire = Wire()
    await stream(ScriptedCall("a", error=ResourceExhausted("no room", reason="QUEUE_FULL")), wire)
    assert json.loads(wire.lines[-1][6:])["error"]["code"] == "queue_full"
    assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_time_is_bounded() -> None:
    call, wire = ScriptedCall("a", 60.0), Wire()
    await stream(call, wire, timeout_s=0.05)
    assert json.loads(wire.lines[-1][6:])["error"]["code"] == "request_timeout"
    assert call.closed == "REQUEST_TIMEOUT"


async def test_a_client_that_leaves_ends_it() -> None:
    wire = Wire()
    task = asyncio.create_task(stream(ScriptedCall("a", 60.0), wire))
    await asyncio.sleep(0.01)
    wire.gone.set()
    async with asyncio.timeout(1):
        await task
    assert wire.sent[-1]["more_body"]


async def test_a_server_that_stops_ends_it() -> None:
    task = asyncio.create_task(stream(ScriptedCall("a", 60.0), Wire()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
