"""Commands on their way to agents, batched per agent."""

import asyncio

from hexagent.wire.worker import Command


class Outbox:
    """Commands for one agent; taken in batches by whoever holds the session."""

    def __init__(self) -> None:
        self._pending: list[Command] = []
        self._wake = asyncio.Event()

    def put(self, command: Command) -> None:
        self._pending.append(command)
        self._wake.set()

    def clear(self) -> None:
        """Forget what an agent that went away never got: its attempts are lost and retried."""
        self._pending.clear()

    async def next_batch(self) -> list[Command]:
        """Everything put since the last batch, at least one."""
        while not self._pending:
            self._wake.clear()
            await self._wake.wait()
        batch, self._pending = self._pending, []
        return batch


class Outboxes:
    def __init__(self) -> None:
        self._by_agent: dict[str, Outbox] = {}

    def of(self, agent_id: str) -> Outbox:
        return self._by_agent.setdefault(agent_id, Outbox())

    def put(self, agent_id: str, command: Command) -> None:
        self.of(agent_id).put(command)
