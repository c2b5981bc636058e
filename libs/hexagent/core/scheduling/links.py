"""When KV that is on its way, or will be, reaches its decode instance: the queues at both ends of each transfer."""

from operator import attrgetter
from typing import Final, NamedTuple

from hexagent.core.ids import Ticket

_order = attrgetter("ready_us", "ticket")


class Transfer:
    """KV of one attempt: predicted from dispatch on, measured where its agents have reported."""

    __slots__ = ("arrives_us", "asked_us", "duration_us", "ready_us", "source", "ticket")

    def __init__(self, ticket: Ticket, source: "Sender", ready_us: int, duration_us: int) -> None:
        self.ticket = ticket
        self.source = source
        self.ready_us = ready_us  # its prompt is computed
        self.duration_us = duration_us  # between free ends
        self.asked_us = ready_us  # the receiver is free for it
        self.arrives_us = ready_us + duration_us


class Backlog(NamedTuple):
    """What a further transfer finds at one end."""

    free_us: int = 0  # the last transfer ends
    busy_us: int = 0  # time all transfers keep the end busy

    def begins_us(self, ready_us: int) -> int:
        """Behind all of the backlog, but not behind what becomes ready much later than itself."""
        return max(ready_us, min(self.free_us, ready_us + self.busy_us))

    def then(self, arrives_us: int, busy_us: int) -> "Backlog":
        """With one more transfer."""
        return Backlog(max(self.free_us, arrives_us), self.busy_us + busy_us)


NO_BACKLOG: Final = Backlog()


class Sender:
    """Transfers from one instance: as they are asked for, `servers` at a time."""

    __slots__ = ("pending", "servers")

    def __init__(self, servers: int) -> None:
        self.servers = servers
        self.pending: dict[Ticket, Transfer] = {}

    def begins_us(self, transfer: Transfer) -> int:
        """When one of its receiver's can begin: those that were asked for earlier go first."""
        if len(self.pending) <= self.servers:  # no more than itself and one less than would keep it waiting
            return transfer.asked_us
        asked_us, ticket = transfer.asked_us, transfer.ticket
        ahead = [
            t.arrives_us
            for t in self.pending.values()
            if t.asked_us < asked_us or (t.asked_us == asked_us and t.ticket < ticket)
        ]
        if len(ahead) < self.servers:
            return asked_us
        return max(sorted(ahead)[-self.servers], asked_us)

    @property
    def backlog(self) -> Backlog:
        if len(self.pending) < self.servers:
            return NO_BACKLOG
        ends = sorted([t.arrives_us for t in self.pending.values()])
        return Backlog(ends[-self.servers], sum([t.duration_us for t in self.pending.values()]) // self.servers)


class Receiver:
    """Transfers to one instance: one at a time, in the order in which prompts are computed. One that was asked for
    keeps the others waiting while its sender is busy with another."""

    __slots__ = ("backlog", "last_us", "pending")

    def __init__(self) -> None:
        self.pending: dict[Ticket, Transfer] = {}
        self.last_us = 0  # the latest arrival
        self.backlog = NO_BACKLOG

    def predict(self) -> list[Ticket]:
        """When each transfer arrives, and the backlog, after a change at either end; those that arrive at another time
        than was predicted before."""
        moved: list[Ticket] = []
        free_us, busy_us = self.last_us, 0
        for transfer in sorted(self.pending.values(), key=_order):
            transfer.asked_us = max(free_us, transfer.ready_us)
            arrives_us = transfer.source.begins_us(transfer) + transfer.duration_us
            if arrives_us != transfer.arrives_us:
                transfer.arrives_us = arrives_us
                moved.append(transfer.ticket)
            busy_us += arrives_us - transfer.asked_us
            free_us = arrives_us
        self.backlog = Backlog(free_us, busy_us)
        return moved
