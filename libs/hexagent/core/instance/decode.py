"""The calls that decode together, without an event per token."""

from heapq import heappop, heappush
from typing import Final

from hexagent.core.instance.call import Call

SHARE_PARTS: Final = 1 << 20  # of a microsecond: what a step's time is divided to


class DecodeBatch:
    """Each step gives every member one token, so a member's count follows from the steps since it joined.

    Work is O(log batch) a join or end and nothing a token. Heap entries are (step, seq); one whose call has left
    is skipped.
    """

    __slots__ = ("_context_offset", "_finish", "block_tokens", "grow", "members", "shared", "steps")

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.steps = 0  # decode steps of the instance so far
        self.shared = 0  # their times, each divided by the calls that got a token, in parts of a microsecond
        self.members: dict[int, Call] = {}  # by seq, in order of joining
        self._context_offset = 0  # sum of contexts = this + members x steps
        self._finish: list[tuple[int, int]] = []  # heap
        self.grow: list[tuple[int, int]] = []  # heap, empty where nobody outgrows what was reserved

    @property
    def lead(self) -> Call:
        """The member whose noise a step takes: the one that joined first."""
        return next(iter(self.members.values()))

    @property
    def youngest(self) -> Call:
        """The member that arrived last: the first to give way."""
        return self.members[max(self.members)]

    @property
    def mean_context(self) -> int:
        return self._context_offset // len(self.members) + self.steps

    def generated(self, call: Call) -> int:
        """Tokens at the last step boundary."""
        return call.generated + self.steps - call.join_step

    def pass_steps(self, steps: int, step_us: int, calls: int) -> None:
        """So many steps are over, each of which gave so many calls a token."""
        self.steps += steps
        self.shared += steps * step_us * SHARE_PARTS // calls

    def join(self, call: Call) -> None:
        call.join_step = self.steps
        call.shared -= self.shared
        call.finish_step = self.steps + call.work.output_tokens - call.generated
        self.members[call.seq] = call
        self._context_offset += call.context - self.steps
        heappush(self._finish, (call.finish_step, call.seq))
        self.watch_growth(call)

    def leave(self, call: Call) -> None:
        """`call` keeps the count of the last step boundary."""
        del self.members[call.seq]
        self._context_offset -= call.context - call.join_step
        call.generated += self.steps - call.join_step
        call.shared += self.shared

    def watch_growth(self, call: Call) -> None:
        """Note when the call outgrows its blocks: a step of n tokens of context needs a place for each of them."""
        if call.holding is None:
            return
        room = call.holding.blocks * self.block_tokens
        call.grow_step = call.join_step + room - call.context + 1
        if call.grow_step < call.finish_step:
            heappush(self.grow, (call.grow_step, call.seq))

    def steps_to_change(self, limit: int) -> int:
        """Steps until a member ends or needs a block, at most `limit`."""
        self._drop_stale()
        limit = min(limit, self._finish[0][0] - self.steps)
        if self.grow:
            limit = min(limit, self.grow[0][0] - self.steps)
        return limit

    def pop_finished(self) -> list[Call]:
        """Members with all their tokens, out of the batch, in order of arrival."""
        finished: list[Call] = []
        while self._finish and self._finish[0][0] <= self.steps:
            step, seq = heappop(self._finish)
            call = self.members.get(seq)
            if call is not None and call.finish_step == step:
                self.leave(call)
                finished.append(call)
        return finished

    def pop_growing(self) -> Call | None:
        """A member that cannot take the next step without another block."""
        while self.grow and self.grow[0][0] <= self.steps:
            step, seq = heappop(self.grow)
            call = self.members.get(seq)
            if call is not None and call.grow_step == step:
                return call
        return None

    def _drop_stale(self) -> None:
        """Leave a member's entry, or nothing, at the top of both heaps."""
        while self._finish:
            step, seq = self._finish[0]
            call = self.members.get(seq)
            if call is not None and call.finish_step == step:
                break
            heappop(self._finish)
        while self.grow:
            step, seq = self.grow[0]
            call = self.members.get(seq)
            if call is not None and call.grow_step == step:
                break
            heappop(self.grow)
