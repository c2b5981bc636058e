"""Inputs and effects of the instance model. Live they are RPCs and timers, simulated they are heap entries."""

from typing import NamedTuple

from hexagent.core.ids import Ticket


class PrefixSegment(NamedTuple):
    """One link of a prompt's digest chain."""

    digest: str
    tokens: int


def salt(tenant: str, model: str, lora: str, cache_salt: str = "") -> PrefixSegment:
    """The first link of a chain, without tokens: what sets a prompt apart from equal text of others."""
    return PrefixSegment(f"{tenant}/{model}/{lora}/{cache_salt}", 0)


class Work(NamedTuple):
    """One attempt of a call as an instance sees it."""

    ticket: Ticket
    prefix: tuple[PrefixSegment, ...]  # the whole prompt, in order
    prompt_tokens: int
    max_tokens: int
    reserve_output_tokens: int  # decode blocks are reserved for prompt + this, or + max_tokens by what never evicts
    output_tokens: int  # what the call will really generate, 1..max_tokens; no scheduler sees it
    output_digest: str = ""  # of the link that the whole output is in later prompts, "" = of none


# --- inputs -----------------------------------------------------------------------------------------------
class Prefill(NamedTuple):
    """Run the prompt; `local`: decode here as well (append-prefill, aggregated), no hand-off."""

    work: Work
    rank: int = 0  # lower starts first among those waiting; ties in order of arrival
    local: bool = False


class Reserve(NamedTuple):
    """Reserve decode blocks. Under pull: the hand-off arrived and KV may be pulled from `source` as soon as
    blocks are reserved. Under push: sent when prefill starts; KV arrives later. A call whose prompt this very
    instance holds takes no reservation: its prefill is `local`."""

    work: Work
    source: str  # instance that holds, or will hold, the KV
    kv_ready: bool  # False under push until `KvReady`
    rank: int = 0


class KvReady(NamedTuple):
    """Push only: prefill ended, the reserved call may take its KV now."""

    ticket: Ticket


class SendKv(NamedTuple):
    """To the holder of the KV: `to_instance` has a slot and asks for the transfer."""

    ticket: Ticket
    to_instance: str
    to_bytes_per_s: int
    to_setup_us: int


class KvArrived(NamedTuple):
    """To the receiver: all KV bytes are here."""

    ticket: Ticket


class KvLost(NamedTuple):
    """To the receiver: the KV it waits for will not come (source dead, or `Refused` with its `to_instance`).

    Each `PullKv` is answered by exactly one `KvArrived` or `KvLost`, also after an `Abort`: until then the
    receiver's slot and blocks may be written to.
    """

    ticket: Ticket


class Abort(NamedTuple):
    """Stop the call in whatever phase it is and free its blocks.

    A transfer that runs ends first: the sender still says `KvSent`, a receiver that asked for KV frees slot and
    blocks when it is answered. A sender whose transfer has not begun refuses it to the receiver.
    """

    ticket: Ticket


InstanceInput = Prefill | Reserve | KvReady | SendKv | KvArrived | KvLost | Abort


# --- effects ----------------------------------------------------------------------------------------------
class PrefillStarted(NamedTuple):
    """The step with the first chunk of the prompt begins."""

    ticket: Ticket
    at_us: int


class PrefillDone(NamedTuple):
    """The first token exists; the prompt's KV is pinned here until sent, or decoding goes on here if local."""

    ticket: Ticket
    at_us: int
    cached_tokens: int
    done: bool  # the first token was the last: no hand-off


class Admitted(NamedTuple):
    """Decode blocks are reserved."""

    ticket: Ticket
    at_us: int


class PullKv(NamedTuple):
    """The receiver's transfer slot is free: ask `source` for the KV."""

    ticket: Ticket
    source: str
    at_us: int


class KvSent(NamedTuple):
    """The sender has sent everything and released its pinned blocks."""

    ticket: Ticket
    to_instance: str
    start_us: int
    end_us: int
    kv_bytes: int  # unscaled


class DecodeStarted(NamedTuple):
    """The first step in which the call gets a token of its own begins."""

    ticket: Ticket
    at_us: int


class Ended(NamedTuple):
    """The call has generated its last token (or was aborted); all its blocks here are free."""

    ticket: Ticket
    at_us: int
    output_tokens: int  # generated here and before, first token included
    aborted: bool
    decode_us: int = 0  # unless aborted: of each step it decoded in, the time divided by the calls that got a token


class Refused(NamedTuple):
    """This instance can never hold the call, or does not know what it is asked about.

    With `to_instance` it answers that receiver's `SendKv` and says nothing about the call here; without, the
    call is gone from this instance.
    """

    ticket: Ticket
    at_us: int
    reason: str  # KV_TOO_SMALL, UNKNOWN_TICKET, NO_LOCAL_PREFILL, KV_LOST
    to_instance: str = ""  # receiver that the KV will not reach


class StepDone(NamedTuple):
    """Engine steps that ended: for speed learning and telemetry, one a batch composition."""

    at_us: int
    duration_us: int  # of all `steps`
    steps: int
    prefill_chunks: tuple[tuple[int, int], ...]  # (new, prefix) tokens, empty for pure decode
    decode_batch: int
    mean_context: int  # tokens of KV a decoding call reads, mean over calls and steps; 0 without decode


InstanceEffect = PrefillStarted | PrefillDone | Admitted | PullKv | KvSent | DecodeStarted | Ended | Refused | StepDone


class InstanceLoad(NamedTuple):
    """A snapshot of an instance for telemetry and tests."""

    queued: int  # calls waiting for prefill
    queued_tokens: int
    oldest_queued_us: int  # model time the oldest of them arrived, 0 = none
    prefilling: int
    pinned: int  # prefilled, KV waiting to be pulled
    waiting: int  # for decode blocks or for KV
    decoding: int
    transferring: int
    kv_used_blocks: int  # held by calls, pinned and reserved included
    kv_cached_blocks: int  # held only by the prefix cache: free on demand
    kv_free_blocks: int
