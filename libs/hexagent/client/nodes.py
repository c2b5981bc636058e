"""Handles of nodes: calls revealed ahead of their results, tools, and outputs read as they are generated."""

import asyncio
import codecs
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING

from hexagent.client.board import Track
from hexagent.client.prompts import Handle
from hexagent.client.results import CallResult
from hexagent.client.reveal import Pending
from hexagent.core.errors import Internal
from hexagent.core.workflow.model import NodeStatus

if TYPE_CHECKING:
    from hexagent.client.workflow import Workflow


class NodeHandle(Handle):
    """A call made by `Workflow.node`. In a prompt it stands for its output; `await` it for its result.

    Awaiting a handle that `Workflow.reveal` has not been given reveals it. Cancelling the task that awaits it
    cancels the call.
    """

    __slots__ = ("pending", "track", "workflow")

    def __init__(self, workflow: "Workflow", pending: Pending, track: Track) -> None:
        super().__init__(workflow.workflow_id, pending.spec.node_id)
        self.workflow = workflow
        self.pending = pending
        self.track = track

    @property
    def status(self) -> NodeStatus | None:
        """Where the call was when last heard of; None = not revealed."""
        return self.track.status

    def __await__(self) -> Generator[object, None, CallResult]:
        return self.result().__await__()

    async def result(self) -> CallResult:
        """The result; raises what `Workflow.call` raises."""
        return await self.workflow.result_of(self)

    async def cancel(self, reason: str = "") -> None:
        """Stop the call; nothing happens to one that has ended."""
        await self.workflow.cancel_node(self.node_id, reason)


class ToolHandle(Handle):
    """A tool made by `Workflow.tool`: `async with` runs its body as the tool.

    The body begins when the parents have succeeded. Leaving it ends the tool: as succeeded, as failed with the
    exception that leaves it, or as cancelled by a cancellation. In `after=` it stands for the tool's end.
    """

    __slots__ = ("pending", "track", "workflow")

    def __init__(self, workflow: "Workflow", pending: Pending, track: Track) -> None:
        super().__init__(workflow.workflow_id, pending.spec.node_id)
        self.workflow = workflow
        self.pending = pending
        self.track = track

    @property
    def status(self) -> NodeStatus | None:
        """Where the tool was when last heard of; None = not revealed."""
        return self.track.status

    async def __aenter__(self) -> "ToolHandle":
        await self.workflow.start_tool(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.workflow.finish_tool(self, error)


class CallStream:
    """An output as it is generated: `async for piece in stream`, then `await stream.result()`.

    The pieces together are the result's text, each once, whatever happens to the connection. A call that fails
    raises at the end of its pieces. Use it as `async with` to have the call cancelled when leaving early.
    """

    def __init__(self, handle: NodeHandle) -> None:
        self.handle = handle
        text = handle.track.text
        if text is None:
            raise Internal("the call was made without tokens", reason="NO_TOKENS")
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def node_id(self) -> str:
        """Id of the call in its workflow."""
        return self.handle.node_id

    def __aiter__(self) -> "CallStream":
        return self

    async def __anext__(self) -> str:
        await self.handle.workflow.revealed(self.handle)
        try:
            while True:
                data = await self._text.next()
                if data is None:
                    rest = self._decoder.decode(b"", final=True)
                    if rest:
                        return rest
                    await self.result()  # raises where the call failed
                    raise StopAsyncIteration
                piece = self._decoder.decode(data)
                if piece:
                    return piece
        except asyncio.CancelledError:
            self.handle.workflow.cancel_soon(self.handle)
            raise

    async def result(self) -> CallResult:
        """The whole result; waits for the end."""
        return await self.handle.result()

    async def aclose(self) -> None:
        """Cancel the call unless it has ended."""
        if not self.handle.track.done.done():
            await self.handle.cancel()

    async def __aenter__(self) -> "CallStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
