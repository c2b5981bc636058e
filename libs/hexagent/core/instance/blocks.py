"""KV blocks of one instance: what calls hold, what the prefix cache keeps, what is free."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from hexagent.core.instance.io import PrefixSegment
from hexagent.core.units import ceil_div


class _Node:
    """A segment behind a certain chain of segments, and the full blocks that end inside it.

    The place in the tree is the identity of the chain. A block that straddles two segments belongs to the later
    one, since only both together say what is in it. `present` < `full` after part of the tail was evicted.
    """

    __slots__ = ("children", "full", "parent", "present", "refs", "segment", "seq", "stamp", "start")

    def __init__(self, parent: "_Node | None", segment: PrefixSegment, start: int, full: int, seq: int) -> None:
        self.parent = parent
        self.segment = segment
        self.start = start  # blocks before it in the chain
        self.full = full
        self.present = 0
        self.children: dict[PrefixSegment, _Node] = {}
        self.refs = 0  # holdings that use this node or one below it
        self.stamp = 0  # when it was last let go
        self.seq = seq


class Holding:
    """Blocks of one call: `private` ones and `shared` ones, which lie in the cache tree from the root to `leaf`."""

    __slots__ = ("leaf", "private", "shared")

    def __init__(self, private: int, shared: int, leaf: _Node) -> None:
        self.private = private
        self.shared = shared
        self.leaf = leaf

    @property
    def blocks(self) -> int:
        return self.private + self.shared


class BlockPool:
    """Counts the blocks of an instance; with `reuse` it keeps committed prompt blocks for later prompts.

    Work is O(segments) a call, never O(blocks). A referenced node keeps its ancestors referenced, so an idle
    node has only idle descendants, and evicting idle leaves, the least lately used first, can free every idle block.
    """

    __slots__ = (
        "_idle",
        "_lru",
        "_nodes",
        "_private",
        "_root",
        "_tick",
        "_tree",
        "block_tokens",
        "capacity",
        "changes",
        "reuse",
    )

    def __init__(self, capacity: int, block_tokens: int, reuse: bool) -> None:
        self.capacity = capacity
        self.block_tokens = block_tokens
        self.reuse = reuse
        self.changes: list[PrefixSegment] | None = None  # of the tree, for who sets a list and empties it
        self._root = _Node(None, PrefixSegment("", 0), 0, 0, 0)
        self._root.refs = 1  # it is never evicted
        self._nodes: dict[int, _Node] = {}  # by seq
        self._lru: list[tuple[int, int]] = []  # (stamp, seq) of idle leaves; an entry that no longer fits is skipped
        self._tick = 0
        self._private = 0
        self._tree = 0  # blocks in the tree
        self._idle = 0  # of these, in nodes nobody holds

    @property
    def used(self) -> int:
        """Blocks that calls hold, shared ones counted once."""
        return self._private + self._tree - self._idle

    @property
    def cached(self) -> int:
        """Blocks only the cache holds: free on demand."""
        return self._idle

    @property
    def free(self) -> int:
        return self.capacity - self._private - self._tree

    def need(self, tokens: int) -> int:
        """Blocks that hold `tokens`."""
        return ceil_div(tokens, self.block_tokens)

    def take(self, blocks: int, prefix: Sequence[PrefixSegment] = (), prompt_tokens: int = 0) -> Holding | None:
        """Blocks for a call, the committed ones of its prompt shared; None, and no change, if they are not there.

        Without `prefix` nothing is shared.
        """
        leaf, woken = self._match(prefix, prompt_tokens) if self.reuse else (self._root, 0)
        shared = leaf.start + leaf.present
        private = blocks - shared
        missing = private - self.free
        if missing > self._idle - woken:
            return None
        self._hold(leaf)
        if missing > 0:
            self._evict(missing)
        self._private += private
        return Holding(private, shared, leaf)

    def match(self, prefix: Sequence[PrefixSegment], prompt_tokens: int) -> int:
        """What `cached_tokens` would be of a holding taken now."""
        leaf, _ = self._match(prefix, prompt_tokens)
        return self._usable(leaf.start + leaf.present, prompt_tokens)

    def cached_tokens(self, holding: Holding, prompt_tokens: int) -> int:
        """Tokens of the prompt that need no computing: whole blocks, and at least one token is computed again."""
        return self._usable(holding.shared, prompt_tokens)

    def _usable(self, shared: int, prompt_tokens: int) -> int:
        return min(shared, max(prompt_tokens - 1, 0) // self.block_tokens) * self.block_tokens

    def grow(self, holding: Holding, blocks: int) -> bool:
        """Further private blocks, or False and no change."""
        missing = blocks - self.free
        if missing > self._idle:
            return False
        if missing > 0:
            self._evict(missing)
        self._private += blocks
        holding.private += blocks
        return True

    def commit(self, holding: Holding, prefix: Sequence[PrefixSegment], computed_tokens: int) -> None:
        """Make the full blocks of what is computed known; equal blocks committed by others are merged with them.

        `prefix` may end in a segment of which only a part is computed.
        """
        if not self.reuse:
            return
        old = holding.leaf
        total = holding.private + holding.shared
        leaf = self._root
        for segment, start, full, computed in self._chain(prefix, computed_tokens):
            node = leaf.children.get(segment)
            if node is None:
                self._tick += 1
                node = _Node(leaf, segment, start, full, self._tick)
                leaf.children[segment] = node
                self._nodes[node.seq] = node
            leaf = node
            if not node.refs:
                self._idle -= node.present
            node.refs += 1
            if computed > node.present:
                self._tree += computed - node.present
                node.present = computed
                if self.changes is not None:
                    self.changes.append(segment)
        holding.leaf = leaf
        holding.shared = min(leaf.start + leaf.present, total)
        self._private -= holding.private - (total - holding.shared)
        holding.private = total - holding.shared
        self._let_go(old)

    def missed(self, holding: Holding, found_tokens: int) -> None:
        """The pool that this one follows shared less with the same call, `found_tokens`: it has evicted the rest.

        And before that everything that was let go no later, since that is the order of eviction.
        """
        missing = node = holding.leaf
        while node.parent is not None and (node.start + node.present) * self.block_tokens > found_tokens:
            missing, node = node, node.parent
        while self._idle and self._lru[0][0] <= missing.stamp:
            self._evict_next(self._idle)

    def trim(self, blocks: int) -> None:
        """Let at most `blocks` that nobody holds stay."""
        if self._idle > blocks:
            self._evict(self._idle - blocks)

    def release(self, holding: Holding) -> None:
        """Give everything back; what is committed stays cached."""
        self._private -= holding.private
        self._let_go(holding.leaf)

    def _chain(
        self, prefix: Sequence[PrefixSegment], computed_tokens: int
    ) -> list[tuple[PrefixSegment, int, int, int]]:
        """(segment, blocks before it, full blocks, computed ones of these) up to the last segment that has any."""
        chain: list[tuple[PrefixSegment, int, int, int]] = []
        tokens = start = worth = 0
        for segment in prefix:
            if tokens > computed_tokens:
                break
            tokens += segment.tokens
            end = tokens // self.block_tokens
            computed = min(end, computed_tokens // self.block_tokens) - start
            chain.append((segment, start, end - start, computed))
            if computed > 0:
                worth = len(chain)
            start = end
        return chain[:worth]

    def _match(self, prefix: Sequence[PrefixSegment], prompt_tokens: int) -> tuple[_Node, int]:
        """The deepest node the prompt shares, and how many idle blocks lie on the way to it."""
        node = self._root
        woken = tokens = 0
        for segment in prefix:
            tokens += segment.tokens
            child = node.children.get(segment)
            if child is None or tokens > prompt_tokens:
                break
            node = child
            if not node.refs:
                woken += node.present
            if node.present < node.full:
                break
        return node, woken

    def _hold(self, leaf: _Node) -> None:
        node = leaf
        while node.parent is not None:
            if not node.refs:
                self._idle -= node.present
            node.refs += 1
            node = node.parent

    def _let_go(self, leaf: _Node) -> None:
        self._tick += 1
        node = leaf
        while node.parent is not None:
            node.refs -= 1
            if not node.refs:
                self._idle += node.present
                node.stamp = self._tick
                if not node.children:
                    heappush(self._lru, (node.stamp, node.seq))
            node = node.parent
        if len(self._lru) > 2 * len(self._nodes) + 64:
            self._compact()

    def _evict(self, blocks: int) -> None:
        """Free `blocks` idle blocks; the caller has checked that there are as many."""
        while blocks:
            blocks -= self._evict_next(blocks)

    def _evict_next(self, blocks: int) -> int:
        """Free at most `blocks` of the next leaf in line; returns how many, 0 for an entry that no longer fits."""
        stamp, seq = heappop(self._lru)
        node = self._nodes.get(seq)
        if node is None or node.refs or node.children or node.stamp != stamp:
            return 0
        freed = min(blocks, node.present)
        node.present -= freed
        if self.changes is not None:
            self.changes.append(node.segment)
        self._tree -= freed
        self._idle -= freed
        if node.present:
            heappush(self._lru, (stamp, seq))
        else:
            self._remove(node)
        return freed

    def _remove(self, node: _Node) -> None:
        """Drop an empty leaf, and the parents that become empty leaves by it."""
        while node.parent is not None:
            parent = node.parent
            del parent.children[node.segment]
            del self._nodes[node.seq]
            if parent.refs or parent.children:
                return
            if parent.present:
                heappush(self._lru, (parent.stamp, parent.seq))
                return
            node = parent

    def _compact(self) -> None:
        self._lru = [(n.stamp, n.seq) for n in self._nodes.values() if not n.refs and not n.children]
        heapify(self._lru)
