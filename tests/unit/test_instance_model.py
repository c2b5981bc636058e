"""One instance, step by step, without noise."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import (
    Abort,
    Admitted,
    DecodeStarted,
    Ended,
    InstanceEffect,
    KvArrived,
    KvLost,
    KvReady,
    KvSent,
    Prefill,
    PrefillDone,
    PrefillStarted,
    PrefixSegment,
    PullKv,
    Refused,
    Reserve,
    SendKv,
    StepDone,
    Work,
)
from hexagent.core.instance.model import InstanceModel
from hexagent.core.instance.noise import Truth
from hexagent.core.instance.spec import PROFILES, InstanceSpec, LinkSpec, Role
from hexagent.core.instance.steps import equal_chunks
from hexagent.core.units import PPM

PULL = "trtllm-1.2.1"


class FlatTimes:
    """10 us a prefilled token and 1,000 us a decode step, whatever else."""

    def batch_prefill_us(self, chunks: Sequence[tuple[int, int]]) -> int:
        return 10 * sum(new for new, _ in chunks)

    def decode_us(self, batch: int, mean_context: int) -> int:
        return 1_000

    def mixed_us(self, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int) -> int:
        return 1_000 + 10 * sum(new for new, _ in chunks)


def ticket(name: str) -> Ticket:
    return Ticket(CallId("w", name), 1, 1)


def work(name: str, prompt: int, output: int, reserve: int = 0, spare: int = 0) -> Work:
    prefix = (PrefixSegment(f"of-{name}", prompt),)
    return Work(ticket(name), prefix, prompt, output + spare, reserve or output, output)


def model(
    role: Role = Role.PREFILL,
    profile: str = PULL,
    blocks: int = 1_000,
    max_batch: int = 8,
    truth: Truth = Truth(0),
) -> InstanceModel:
    spec = InstanceSpec(
        "i0", "h100", 4, role, "m", "bf16", "bf16", blocks, 16, max_batch, 1_000, LinkSpec(10_000_000, 50),
        profile, True,
    )  # fmt: skip
    return InstanceModel(spec, PROFILES[profile], FlatTimes(), 1_000, truth)


def told(effects: Sequence[InstanceEffect]) -> list[InstanceEffect]:
    return [e for e in effects if not isinstance(e, StepDone)]


def decoding(m: InstanceModel, item: Work, now_us: int) -> list[InstanceEffect]:
    return [*m.handle(Reserve(item, "p", True), now_us), *m.handle(KvArrived(item.ticket), now_us)]


# --- prefill ----------------------------------------------------------------------------------------------
def test_long_prompt_takes_steps_and_the_rest_of_a_step_goes_to_the_next_call() -> None:
    m = model()
    a, b = work("a", 1_500, 5), work("b", 200, 5)
    assert m.handle_all((Prefill(a), Prefill(b)), 100) == (PrefillStarted(a.ticket, 100),)
    assert m.next_due_us() == 10_100
    assert m.advance(10_100) == (StepDone(10_100, 10_000, 1, ((1_000, 0),), 0, 0), PrefillStarted(b.ticket, 10_100))
    assert m.advance(99_999) == (
        StepDone(17_100, 7_000, 1, ((500, 1_000), (200, 0)), 0, 0),
        PrefillDone(a.ticket, 17_100, 0, False),
        PrefillDone(b.ticket, 17_100, 0, False),
    )
    load = m.load(99_999)
    assert (load.pinned, load.kv_used_blocks) == (2, 94 + 13)


def test_prompts_that_advance_equally_share_steps_in_whole_blocks() -> None:
    m = model(profile="trtllm-equal-progress")
    long, late, short = work("long", 3_000, 5), work("late", 700, 5), work("short", 100, 5)
    assert told(m.handle(Prefill(long), 0)) == [PrefillStarted(long.ticket, 0)]
    m.handle_all((Prefill(late), Prefill(short)), 1)
    steps = [e for e in m.advance(10**6) if isinstance(e, StepDone)]
    assert [e.prefill_chunks for e in steps] == [
        ((992, 0),),
        ((448, 992), (448, 0), (100, 0)),
        ((736, 1_440), (252, 448)),
        ((824, 2_176),),
    ]


@given(
    left=st.lists(st.integers(1, 3_000), min_size=1, max_size=6),
    budget=st.integers(1, 4_096),
    unit=st.sampled_from((16, 32)),
)
def test_equal_chunks_are_those_of_turn_after_turn(left: list[int], budget: int, unit: int) -> None:
    chunks = equal_chunks(left, budget, unit)
    assert chunks[0] > 0, "somebody always advances"
    if sum(left) <= budget or budget < unit:
        assert sum(chunks) == min(budget, sum(left)) or chunks[0] == left[0]
        return
    turns = [0] * len(left)
    spare, advanced = budget, True
    while advanced:
        advanced = False
        for i, tokens in enumerate(left):
            more = min(unit, tokens - turns[i])
            if 0 < more <= spare:
                turns[i], spare, advanced = turns[i] + more, spare - more, True
    assert chunks == turns


def test_waiting_calls_start_by_rank_then_arrival() -> None:
    m = model()
    m.handle(Prefill(work("first", 1_000, 5), rank=9), 0)
    for name, rank in (("b", 1), ("a", 1), ("c", 0), ("d", -1)):
        m.handle(Prefill(work(name, 1_000, 5), rank), 1)
    started = [e.ticket.call.node_id for e in m.advance(10**6) if isinstance(e, PrefillStarted)]
    assert started == ["d", "c", "b", "a"]


def test_a_call_that_waits_for_blocks_is_not_overtaken() -> None:
    m = model(blocks=20)
    m.handle(Prefill(work("a", 200, 5)), 0)
    m.handle(Prefill(work("big", 300, 5)), 1)
    m.handle(Prefill(work("small", 16, 5)), 2)
    assert m.load(2).oldest_queued_us == 1
    m.advance(10**5)
    assert (m.load(10**5).queued, m.load(10**5).queued_tokens) == (2, 316)
    freed = m.handle(Abort(ticket("a")), 10**5)
    assert told(freed) == [
        Ended(ticket("a"), 10**5, 1, True),
        PrefillStarted(ticket("big"), 10**5),
        PrefillStarted(ticket("small"), 10**5),
    ]


def test_what_never_fits_is_refused() -> None:
    m = model(Role.BOTH, blocks=20)
    assert m.handle(Prefill(work("a", 321, 1)), 5) == (Refused(ticket("a"), 5, "KV_TOO_SMALL"),)
    assert m.handle(Prefill(work("b", 320, 1)), 5) == (PrefillStarted(ticket("b"), 5),)
    assert m.handle(Prefill(work("c", 320, 1), local=True), 5) == (Refused(ticket("c"), 5, "KV_TOO_SMALL"),)
    assert m.handle(Reserve(work("d", 320, 1), "p", True), 5) == (Refused(ticket("d"), 5, "KV_TOO_SMALL"),)
    decode = model(Role.DECODE, "push")
    assert decode.handle(Prefill(work("e", 5, 1), local=True), 5) == (Refused(ticket("e"), 5, "NO_LOCAL_PREFILL"),)


def test_only_token_ends_the_call_and_reuse_shortens_the_next_prompt() -> None:
    m = model()
    first = work("a", 320, 1)
    assert m.handle(Prefill(first), 0)[-1:] == (PrefillStarted(first.ticket, 0),)
    assert m.advance(3_200)[1:] == (PrefillDone(first.ticket, 3_200, 0, True), Ended(first.ticket, 3_200, 1, False))
    assert m.load(3_200).kv_cached_blocks == 20
    again = work("b", 420, 1)._replace(prefix=(*first.prefix, PrefixSegment("more", 100)))
    m.handle(Prefill(again), 4_000)
    assert m.advance(10**5)[:2] == (
        StepDone(5_000, 1_000, 1, ((100, 320),), 0, 0),
        PrefillDone(again.ticket, 5_000, 320, True),
    )


# --- transfers --------------------------------------------------------------------------------------------
def test_transfers_queue_at_the_sender_and_run_at_the_slower_end() -> None:
    m = model()
    a, b = work("a", 500, 5), work("b", 100, 5)
    m.handle_all((Prefill(a), Prefill(b)), 0)
    assert m.handle(SendKv(b.ticket, "d", 5_000_000, 400), 10) == (), "waits for the prompt"
    m.handle(SendKv(b.ticket, "d", 5_000_000, 400), 11)
    m.advance(6_000)
    m.handle(SendKv(a.ticket, "e", 20_000_000, 10), 6_500)
    assert m.advance(10**6) == (
        KvSent(b.ticket, "d", 6_000, 26_400, 100_000),
        KvSent(a.ticket, "e", 26_400, 76_450, 500_000),
    )
    assert m.load(10**6).kv_used_blocks == 0
    assert m.handle(SendKv(a.ticket, "e", 1, 1), 10**6) == (Refused(a.ticket, 10**6, "UNKNOWN_TICKET", "e"),)


def test_pipelined_transfer_leaves_a_tail() -> None:
    m = model(profile="trtllm-1.3")
    m.handle(Prefill(work("a", 500, 5)), 0)
    m.handle(SendKv(ticket("a"), "d", 10_000_000, 0), 5_000)
    assert m.advance(10**6) == (KvSent(ticket("a"), "d", 5_000, 7_550, 500_000),)


def test_abort_around_a_transfer() -> None:
    m = model()
    for name in ("a", "b", "c"):
        m.handle(Prefill(work(name, 100, 5)), 0)
    m.advance(10_000)
    m.handle_all([SendKv(ticket(n), "d", 10_000_000, 0) for n in ("a", "b", "c")], 10_000)
    assert m.handle(Abort(ticket("a")), 10_001) == (Ended(ticket("a"), 10_001, 1, True),)
    assert m.handle(Abort(ticket("a")), 10_001) == ()
    assert m.handle(Abort(ticket("b")), 10_002) == (
        Ended(ticket("b"), 10_002, 1, True),
        Refused(ticket("b"), 10_002, "UNKNOWN_TICKET", "d"),
    )
    assert m.tickets() == (ticket("c"),)
    assert m.handle(SendKv(ticket("c"), "e", 10_000_000, 0), 10_003) == (
        Refused(ticket("c"), 10_003, "UNKNOWN_TICKET", "d"),
    )
    sent = [e for e in m.advance(10**6) if isinstance(e, KvSent)]
    assert [(e.ticket.call.node_id, e.to_instance) for e in sent] == [("a", "d"), ("c", "e")]
    assert m.load(10**6).kv_used_blocks == 0


# --- decode -----------------------------------------------------------------------------------------------
def test_pull_takes_one_call_at_a_time_and_decodes_in_runs() -> None:
    m = model(Role.DECODE)
    a, b = work("a", 100, 101), work("b", 100, 11)
    assert m.handle(Reserve(a, "p", True), 0) == (Admitted(a.ticket, 0), PullKv(a.ticket, "p", 0))
    assert m.handle(Reserve(b, "p", True), 1) == (Admitted(b.ticket, 1),)
    assert m.handle(KvArrived(a.ticket), 50) == (PullKv(b.ticket, "p", 50), DecodeStarted(a.ticket, 50))
    assert m.next_due_us() == 64_050, "64 steps at once"
    assert (m.generated(a.ticket, 50), m.generated(a.ticket, 2_049), m.generated(a.ticket, 2_050)) == (1, 2, 3)
    assert m.handle(KvArrived(b.ticket), 3_100) == ()
    assert m.next_due_us() == 4_050, "b joins at the next step boundary"
    assert m.advance(4_050) == (StepDone(4_050, 4_000, 4, (), 1, 103), DecodeStarted(b.ticket, 4_050))
    assert m.advance(10**6) == (
        StepDone(14_050, 10_000, 10, (), 2, 108),
        Ended(b.ticket, 14_050, 11, False, 5_000),  # ten steps that two calls shared
        StepDone(78_050, 64_000, 64, (), 1, 147),
        StepDone(100_050, 22_000, 22, (), 1, 190),
        Ended(a.ticket, 100_050, 101, False, 95_000),
    )


def test_push_holds_blocks_without_a_slot_until_kv_is_ready() -> None:
    m = model(Role.DECODE, "push")
    a, b = work("a", 100, 5), work("b", 100, 5)
    assert m.handle(Reserve(a, "p", False), 0) == (Admitted(a.ticket, 0),)
    assert m.handle(Reserve(b, "p", False), 0) == (Admitted(b.ticket, 0),)
    assert m.handle(KvReady(b.ticket), 10) == (PullKv(b.ticket, "p", 10),)
    assert m.handle(KvReady(b.ticket), 11) == ()
    assert m.handle(KvReady(a.ticket), 12) == ()
    assert m.handle(Abort(a.ticket), 13) == (Ended(a.ticket, 13, 1, True),)


def test_admission_waits_for_blocks_and_seats_in_order() -> None:
    m = model(Role.DECODE, blocks=20, max_batch=2)
    assert told(m.handle(Reserve(work("a", 100, 60), "p", True), 0))[0] == Admitted(ticket("a"), 0)
    assert m.handle(Reserve(work("b", 150, 60), "p", True), 1) == ()
    assert m.handle(Reserve(work("c", 10, 2), "p", True), 2) == ()
    assert m.load(2).waiting == 2
    freed = m.handle(KvLost(ticket("a")), 3)
    assert told(freed) == [
        Refused(ticket("a"), 3, "KV_LOST"),
        Admitted(ticket("b"), 3),
        Admitted(ticket("c"), 3),
        PullKv(ticket("b"), "p", 3),
    ]
    assert m.handle(Reserve(work("d", 10, 2), "p", True), 4) == (), "two seats"
    assert m.handle(KvLost(ticket("d")), 5) == (Refused(ticket("d"), 5, "KV_LOST"),)
    assert m.handle(KvLost(ticket("d")), 6) == ()


def test_an_aborted_receiver_keeps_slot_and_blocks_until_it_is_answered() -> None:
    m = model(Role.DECODE)
    for name in ("a", "b", "c"):
        m.handle(Reserve(work(name, 100, 5), "p", True), 0)
    assert m.handle(Abort(ticket("a")), 1) == (Ended(ticket("a"), 1, 1, True),)
    assert m.load(1).kv_used_blocks == 21
    assert m.handle(KvArrived(ticket("a")), 2) == (PullKv(ticket("b"), "p", 2),)
    assert m.load(2).kv_used_blocks == 14
    m.handle(Abort(ticket("b")), 3)
    assert m.handle(KvLost(ticket("b")), 4) == (PullKv(ticket("c"), "p", 4),)


def test_an_aborted_decode_leaves_the_running_step() -> None:
    m = model(Role.DECODE)
    decoding(m, work("a", 100, 50), 0)
    decoding(m, work("b", 100, 50), 0)
    assert m.handle(Abort(ticket("a")), 2_500) == (Ended(ticket("a"), 2_500, 3, True),)
    assert m.load(2_500).decoding == 1
    assert m.advance(3_000) == (StepDone(3_000, 3_000, 3, (), 2, 102),)
    assert told(m.advance(10**6)) == [Ended(ticket("b"), 49_000, 50, False, 47_500)]


def test_local_prefill_mixes_with_decode_and_stays() -> None:
    m = model(Role.BOTH)
    decoding(m, work("a", 100, 50), 0)
    assert m.handle(Prefill(work("b", 1_200, 3), local=True), 1_500) == ()
    assert m.advance(2_000)[1:] == (PrefillStarted(ticket("b"), 2_000),)
    assert m.advance(12_990) == (StepDone(12_990, 10_990, 1, ((999, 0),), 1, 103),)
    assert m.advance(16_000)[:3] == (
        StepDone(16_000, 3_010, 1, ((201, 999),), 1, 104),
        PrefillDone(ticket("b"), 16_000, 0, False),
        DecodeStarted(ticket("b"), 16_000),
    )
    assert told(m.advance(18_000)) == [Ended(ticket("b"), 18_000, 3, False, 1_000)]


def test_pulled_kv_serves_a_later_local_prefill() -> None:
    m = model(Role.DECODE)
    a = work("a", 160, 2)
    decoding(m, a, 0)
    m.advance(1_000)
    follow = work("b", 200, 2)._replace(prefix=(*a.prefix, PrefixSegment("tool", 40)))
    m.handle(Prefill(follow, local=True), 2_000)
    assert told(m.advance(10**6))[0] == PrefillDone(follow.ticket, 2_400, 160, False)


def test_an_output_serves_the_prompt_that_holds_it_up_to_the_token_never_computed() -> None:
    """40 + 24 tokens fill four blocks of 16, but the KV of the last token of an output never exists."""
    for output, cached in ((24, 48), (25, 64)):
        m = model(Role.DECODE)
        first = work("a", 40, output)._replace(output_digest="out-a")
        told(decoding(m, first, 0))
        m.advance(1_000_000)
        chain = (*first.prefix, PrefixSegment("out-a", output), PrefixSegment("next", 100))
        longer = Work(ticket("b"), chain, 140 + output, 5, 5, 5)
        (done,) = [e for e in m.handle(Prefill(longer, local=True), 1_000_000) + m.advance(2_000_000)
                   if isinstance(e, PrefillDone)]  # fmt: skip
        assert done.cached_tokens == cached


def test_the_youngest_gives_way_to_a_growing_call_and_computes_again() -> None:
    m = model(Role.BOTH, "ideal", blocks=15)
    a, b = work("a", 100, 60, reserve=4), work("b", 110, 20, reserve=2)
    m.handle_all((Prefill(a, local=True), Prefill(b, local=True)), 0)
    effects = m.advance(10**6)
    assert [e for e in told(effects) if isinstance(e, Ended)] == [
        Ended(a.ticket, 61_100, 60, False, 53_000),
        Ended(b.ticket, 61_100 + 430 + 6_000, 20, False, 12_000),
    ]
    assert sum(isinstance(e, PrefillDone | DecodeStarted) for e in effects) == 4, "each once"
    again = [e for e in effects if isinstance(e, StepDone) and e.prefill_chunks][1:]
    assert [(e.prefill_chunks, e.decode_batch) for e in again] == [(((43, 80),), 0)], (
        "123 tokens, 5 blocks of the prompt are still cached"
    )
    assert m.load(10**6).kv_used_blocks == 0


def test_a_call_that_outgrows_the_instance_is_refused() -> None:
    m = model(Role.BOTH, "ideal", blocks=8)
    effects = m.handle(Prefill(work("a", 100, 100, reserve=4), local=True), 0) + m.advance(10**6)
    assert told(effects)[-1] == Refused(ticket("a"), 1_000 + 28_000, "KV_TOO_SMALL")
    assert m.load(10**6).kv_used_blocks == 0


# --- driver -----------------------------------------------------------------------------------------------
def test_late_handle_first_works_off_what_was_due() -> None:
    m = model()
    m.handle(Prefill(work("a", 100, 5)), 0)
    assert m.handle(SendKv(ticket("a"), "d", 10_000_000, 0), 5_000)[:2] == (
        StepDone(1_000, 1_000, 1, ((100, 0),), 0, 0),
        PrefillDone(ticket("a"), 1_000, 0, False),
    )
    assert m.next_due_us() == 15_050


def test_duplicates_and_strangers_do_nothing() -> None:
    m = model()
    m.handle(Prefill(work("a", 100, 5)), 0)
    for item in (Prefill(work("a", 100, 5)), Reserve(work("a", 100, 5), "p", True)):
        assert m.handle(item, 1) == ()
    stranger = ticket("x")
    for other in (Abort(stranger), KvArrived(stranger), KvReady(stranger), KvLost(stranger)):
        assert m.handle(other, 1) == ()
    for early in (KvArrived(ticket("a")), KvReady(ticket("a")), KvLost(ticket("a"))):
        assert m.handle(early, 2) == ()
    assert m.generated(stranger, 1) == 0


def test_truth_bends_steps_and_may_change() -> None:
    m = model(truth=Truth(0, hidden_factor_ppm=2 * PPM))
    m.handle(Prefill(work("a", 100, 1)), 0)
    m.retune(Truth(0))
    assert m.next_due_us() == 2_000
    m.advance(2_000)
    m.handle(Prefill(work("b", 100, 1)), 2_000)
    assert m.next_due_us() == 3_000
