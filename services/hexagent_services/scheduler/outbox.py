"""Commands on their way to agents, batched per agent."""

import asyncio

from hexagent.wire.worker import Command


class Outbox:
    """Commands for one agent; taken in batches by the session that is open, and by no earlier one that still waits."""

    def __init__(self) -> None:
        self._pending: list[Command] = []
        self._wake = asyncio.Event()
        self._session = 0

    def open(self) -> int:
        """Begin a session; gives its number for `next_batch`."""
        self._session += 1
        return self._session

    def close(self) -> None:
        """End the session: what is put from now on waits for the next one."""
        self._session += 1
        self._wake.set()

    def put(self, command: Command) -> None:
        self._pending.append(command)
        self._wake.set()

    def clear(self) -> None:
        """Forget what an agent that went away never got: its attempts are lost and retried."""
        self._pending.clear()

    async def next_batch(self, session: int) -> list[Command] | None:
        """Everything put since the last batch, at least one; None once the session is over."""
        while session == self._session:
            if self._pending:
                batch, self._pending = self._pending, []
                return batch
            self._wake.clear()
            await self._wake.wait()
        return None


class Outboxes:
    def __init__(self) -> None:
        self._by_agent: dict[str, Outbox] = {}

    def of(self, agent_id: str) -> Outbox:
        return self._by_agent.setdefault(agent_id, Outbox())

    def put(self, agent_id: str, command: Command) -> None:
        self.of(agent_id).put(command)
