"""Longest paths through a growing graph: the horizon, the critical path and what is left below a node.

Costs are integers the caller gives, in microseconds of the node alone on the cluster; waiting never enters. Nodes
are numbered 0, 1, 2... in a topological order, as `WorkflowGraph` numbers them.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from hexagent.core.workflow.model import Join

_DIRTY: Final = -1  # of a path below: not known; then no ancestor's is known either


class Horizon:
    """Start and finish of every node if the workflow ran alone, kept up to date under growth and change.

    A node starts when its join is met: at the k-th smallest finish of its parents for a join that needs k of
    them, excluded parents left out (at the largest left if fewer than k are left, at 0 if none is).
    """

    __slots__ = ("_below", "_children", "_cost", "_excluded", "_finish", "_latest", "_needed", "_parents", "_start")

    def __init__(self) -> None:
        self._parents: list[tuple[int, ...]] = []
        self._children: list[list[int]] = []
        self._needed: list[int] = []
        self._cost: list[int] = []
        self._excluded: list[bool] = []
        self._start: list[int] = []
        self._finish: list[int] = []
        self._below: list[int] = []
        self._latest: list[tuple[int, int]] = []  # heap of (-finish, node), stale entries dropped when met

    def __len__(self) -> int:
        return len(self._cost)

    def add(self, node: int, parents: tuple[int, ...], join: Join, cost_us: int) -> None:
        """Add the next node; `node` is the number of nodes so far, parents are below it. Costs are >= 0."""
        if node != len(self._cost):
            raise ValueError(f"node {node} is not the next one, {len(self._cost)}")
        self._parents.append(parents)
        self._children.append([])
        self._needed.append(join.needed(len(parents)))
        self._cost.append(cost_us)
        self._excluded.append(False)
        start = self._start_from_parents(node)
        self._start.append(start)
        self._finish.append(start + cost_us)
        self._below.append(_DIRTY)
        heappush(self._latest, (-start - cost_us, node))
        for parent in parents:
            self._children[parent].append(node)
            if self._below[parent] != _DIRTY:
                self._forget_below(parent)

    def set_cost(self, node: int, cost_us: int) -> None:
        """The node costs `cost_us` from now on: a better estimate, or what it really took."""
        change = cost_us - self._cost[node]
        if change == 0:
            return
        self._cost[node] = cost_us
        if self._below[node] != _DIRTY:
            self._forget_below(node)
        old = self._finish[node]
        self._finish[node] = old + change
        self._remember(node)
        if self._children[node] and not self._excluded[node]:
            self._propagate(node, old, old + change)

    def exclude(self, node: int) -> None:
        """Leave a failed, refused or cancelled node out of every path from now on."""
        if self._excluded[node]:
            return
        self._excluded[node] = True
        for parent in self._parents[node]:
            if self._below[parent] != _DIRTY:
                self._forget_below(parent)
        # One parent less moves no k-th smallest finish before its own, and no maximum after it.
        finish = self._finish[node]
        self._update(
            [
                child
                for child in self._children[node]
                if finish == self._start[child]
                or (finish < self._start[child] and self._needed[child] < len(self._parents[child]))
            ]
        )

    def total_us(self) -> int:
        """The horizon: the latest finish of all nodes not excluded, 0 without nodes."""
        last = self._last()
        return 0 if last is None else self._finish[last]

    def start_us(self, node: int) -> int:
        """Earliest start after the workflow's."""
        return self._start[node]

    def finish_us(self, node: int) -> int:
        """`start_us` plus the node's cost."""
        return self._finish[node]

    def cost_us(self, node: int) -> int:
        """The cost last given."""
        return self._cost[node]

    def excluded(self, node: int) -> bool:
        """Whether the node is left out."""
        return self._excluded[node]

    def below_us(self, node: int) -> int:
        """Longest path from the node's start to the end of what is revealed: its own cost and what follows it."""
        below = self._below
        if below[node] != _DIRTY:
            return below[node]
        stack = [node]
        while stack:
            top = stack[-1]
            if below[top] != _DIRTY:  # on the stack twice, through two parents
                stack.pop()
                continue
            follows = 0
            unknown = False
            for child in self._children[top]:
                if self._excluded[child]:
                    continue
                path = below[child]
                if path == _DIRTY:
                    unknown = True
                    stack.append(child)
                elif path > follows:
                    follows = path
            if not unknown:
                below[top] = self._cost[top] + follows
                stack.pop()
        return below[node]

    def remaining_us(self, open_nodes: Iterable[int]) -> int:
        """Longest path below any of the given nodes: with all open ones given, what is left of the workflow.

        The ready and running ones suffice: a blocked node lies below one of them.
        """
        return max((self.below_us(node) for node in open_nodes if not self._excluded[node]), default=0)

    def critical_path(self) -> tuple[int, ...]:
        """The nodes that make the horizon, first to last; between equal ones the smallest number."""
        node = self._last()
        path: list[int] = []
        while node is not None:
            path.append(node)
            start = self._start[node]
            node = min(
                (p for p in self._parents[node] if not self._excluded[p] and self._finish[p] == start), default=None
            )
        path.reverse()
        return tuple(path)

    def _last(self) -> int | None:
        latest = self._latest
        while latest:
            finish, node = latest[0]
            if not self._excluded[node] and self._finish[node] == -finish:
                return node
            heappop(latest)
        return None

    def _remember(self, node: int) -> None:
        heappush(self._latest, (-self._finish[node], node))
        if len(self._latest) > 4 * len(self._cost) + 64:
            self._latest = [(-finish, n) for n, finish in enumerate(self._finish) if not self._excluded[n]]
            heapify(self._latest)

    def _start_from_parents(self, node: int) -> int:
        finish = self._finish
        excluded = self._excluded
        parents = self._parents[node]
        if len(parents) == 1 and not excluded[parents[0]]:
            return finish[parents[0]]
        left = [finish[parent] for parent in parents if not excluded[parent]]
        if not left:
            return 0
        needed = self._needed[node]
        if needed >= len(left):
            return max(left)
        if needed == 1:
            return min(left)
        left.sort()
        return left[needed - 1]

    def _propagate(self, node: int, old: int, new: int) -> None:
        """Tell the children that a parent's finish went from `old` to `new`."""
        self._update([child for child in self._children[node] if self._concerned(child, old, new)])

    def _concerned(self, child: int, old: int, new: int) -> bool:
        """Whether a parent's move from `old` to `new` can move the child's start."""
        # A parent that stays on one side of the k-th smallest finish leaves it where it is.
        start = self._start[child]
        return not (old < start and new < start) and not (old > start and new > start)

    def _update(self, waiting: list[int]) -> None:
        """Recompute the given nodes and all that moves with them, in topological order, each once."""
        heapify(waiting)
        done = -1
        while waiting:
            node = heappop(waiting)
            if node == done:
                continue
            done = node
            start = self._start_from_parents(node)
            if start == self._start[node]:
                continue
            self._start[node] = start
            old = self._finish[node]
            new = start + self._cost[node]
            self._finish[node] = new
            self._remember(node)
            if self._excluded[node]:
                continue
            for child in self._children[node]:
                if self._concerned(child, old, new):
                    heappush(waiting, child)

    def _forget_below(self, node: int) -> None:
        """The path below `node`, which was known, changed; ancestors of an unknown one are unknown already."""
        below = self._below
        below[node] = _DIRTY
        stack = [node]
        while stack:
            for parent in self._parents[stack.pop()]:
                if below[parent] != _DIRTY:
                    below[parent] = _DIRTY
                    stack.append(parent)
