"""KV block accounting and the prefix cache."""

from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.instance.blocks import BlockPool, Holding
from hexagent.core.instance.io import PrefixSegment


def chain(*segments: tuple[str, int]) -> tuple[PrefixSegment, ...]:
    return tuple(PrefixSegment(digest, tokens) for digest, tokens in segments)


def taken(pool: BlockPool, prefix: tuple[PrefixSegment, ...]) -> Holding:
    tokens = sum(s.tokens for s in prefix)
    holding = pool.take(pool.need(tokens), prefix, tokens)
    assert holding is not None
    return holding


def committed(pool: BlockPool, prefix: tuple[PrefixSegment, ...]) -> Holding:
    holding = taken(pool, prefix)
    pool.commit(holding, prefix, sum(s.tokens for s in prefix))
    return holding


def test_released_prompt_serves_a_longer_one_in_whole_blocks() -> None:
    pool = BlockPool(100, 16, reuse=True)
    pool.release(committed(pool, chain(("sys", 50), ("user", 30))))
    assert (pool.used, pool.cached, pool.free) == (0, 5, 95)
    longer = taken(pool, chain(("sys", 50), ("user", 30), ("more", 40)))
    assert (longer.shared, longer.private) == (5, 3)
    assert pool.cached_tokens(longer, 120) == 80
    other = taken(pool, chain(("sys", 50), ("else", 30)))
    assert pool.cached_tokens(other, 80) == 48, "the block across both segments depends on the second"


def test_an_equal_prompt_computes_its_last_block_again_but_shares_it() -> None:
    pool = BlockPool(5, 16, reuse=True)
    pool.release(committed(pool, chain(("a", 80))))
    again = taken(pool, chain(("a", 80)))
    assert pool.cached_tokens(again, 80) == 64
    assert (pool.used, pool.free) == (5, 0)


def test_running_calls_share_only_what_is_committed_and_merge_then() -> None:
    pool = BlockPool(100, 16, reuse=True)
    prompt = chain(("a", 160))
    first, second = taken(pool, prompt), taken(pool, prompt)
    assert pool.used == 20
    pool.commit(first, prompt, 160)
    pool.commit(second, prompt, 160)
    assert pool.used == 10
    pool.release(first)
    assert (pool.used, pool.cached) == (10, 0)
    pool.release(second)
    assert (pool.used, pool.cached) == (0, 10)


def test_eviction_takes_idle_leaves_least_lately_used_first() -> None:
    pool = BlockPool(12, 16, reuse=True)
    pool.release(committed(pool, chain(("root", 64), ("old", 64))))
    pool.release(committed(pool, chain(("root", 64), ("new", 64))))
    assert (pool.cached, pool.free) == (12, 0)
    held = taken(pool, chain(("own", 48)))
    assert pool.used == 3
    new = taken(pool, chain(("root", 64), ("new", 64)))
    assert new.shared == 8, "the newer branch and the root stayed"
    assert pool.take(2) is None
    pool.release(held)
    old = taken(pool, chain(("root", 64), ("old", 48)))
    assert old.shared == 4


def test_partly_evicted_segment_serves_its_head_and_is_filled_again() -> None:
    pool = BlockPool(10, 16, reuse=True)
    pool.release(committed(pool, chain(("a", 128))))
    other = pool.take(5)
    assert other is not None
    pool.release(other)
    again = committed(pool, chain(("a", 128)))
    assert again.shared == 8
    assert (pool.used, pool.cached, pool.free) == (8, 0, 2)


def test_match_foretells_what_a_holding_would_share_and_changes_nothing() -> None:
    pool = BlockPool(100, 16, reuse=True)
    pool.release(committed(pool, chain(("sys", 50), ("user", 30))))
    for prompt in (chain(("sys", 50), ("else", 30)), chain(("sys", 50), ("user", 30)), chain(("new", 80))):
        foretold = [pool.match(prompt, 80) for _ in range(2)]
        holding = taken(pool, prompt)
        assert foretold == [pool.cached_tokens(holding, 80)] * 2
        pool.release(holding)


def test_a_segment_computed_in_part_serves_its_head_and_is_filled_later() -> None:
    pool = BlockPool(100, 16, reuse=True)
    prompt = chain(("a", 40), ("out", 56))
    for computed, cached in ((95, 80), (96, 96), (95, 96)):
        holding = taken(pool, prompt)
        pool.commit(holding, prompt, computed)
        assert pool.match((*prompt, PrefixSegment("more", 20)), 116) == cached
        pool.release(holding)
    assert (pool.used, pool.cached, pool.free) == (0, 6, 94)


def test_without_reuse_nothing_stays() -> None:
    pool = BlockPool(10, 16, reuse=False)
    pool.release(committed(pool, chain(("a", 128))))
    assert (pool.used, pool.cached, pool.free) == (0, 0, 10)


def test_no_change_when_there_is_too_little() -> None:
    pool = BlockPool(4, 16, reuse=True)
    held = pool.take(3)
    assert held is not None
    assert pool.take(2) is None
    assert not pool.grow(held, 2)
    assert pool.grow(held, 1)
    assert (pool.used, pool.free) == (4, 0)


prompts = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from((3, 16, 40, 64))), min_size=1, max_size=4).map(
    lambda segments: chain(*[(d + str(n), n) for d, n in segments])
)


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 4), prompts), max_size=60))
def test_books_balance(capacity: int, moves: list[tuple[int, tuple[PrefixSegment, ...]]]) -> None:
    pool = BlockPool(capacity, 16, reuse=True)
    held: list[tuple[Holding, tuple[PrefixSegment, ...]]] = []
    for move, prompt in moves:
        tokens = sum(s.tokens for s in prompt)
        blocks = pool.need(tokens + 10)
        if move < 2:
            holding = pool.take(blocks, prompt if move else (), tokens)
            if holding is not None:
                held.append((holding, prompt))
                assert holding.blocks == blocks
            else:
                assert held or blocks > capacity, "an empty pool fits whatever its capacity allows"
        elif held and move == 2:
            holding, own = held[0]
            before = holding.blocks
            pool.commit(holding, own, sum(s.tokens for s in own) - (before % 3))
            assert holding.blocks == before
        elif held and move == 3:
            pool.missed(held[-1][0], 16)
        elif held:
            pool.release(held.pop(0)[0])
        assert pool.used + pool.cached + pool.free == capacity
        assert min(pool.used, pool.cached, pool.free, *[h.private for h, _ in held], 0) == 0
        assert pool.used <= sum(h.blocks for h, _ in held)
    for holding, _ in held:
        pool.release(holding)
    assert pool.used == 0
    assert pool.cached == 0 or pool.take(capacity) is not None
    assert pool.cached == 0
