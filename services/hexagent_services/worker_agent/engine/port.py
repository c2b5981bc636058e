"""What the agent needs of an engine, as narrow as it can be; every engine passes the same conformance suite.

KV reaches the decode side in one of two ways, and agents need not know which. Through the agents: the decode engine
asks for it, the holder's `send_kv` gives the bytes. Or by the engines' own transceivers: the decode engine pulls with
what it reads from `opaque_state`, and asks once the KV is there, upon which `send_kv` lets go of it without bytes.

Draining is the agent's business: it takes nothing new, waits until an engine holds nothing, and closes it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from hexagent.api.common.v1 import call_pb2
from hexagent.core.ids import Ticket
from hexagent.core.instance.io import InstanceLoad, PrefixSegment
from hexagent.core.instance.samples import Samples
from hexagent.core.instance.spec import InstanceSpec, LinkSpec, Role, RoleFlip
from hexagent.core.instance.telemetry import Incidents
from hexagent.core.workflow.model import FinishReason


class EngineRequest(NamedTuple):
    """One attempt as an engine sees it."""

    ticket: Ticket
    call: call_pb2.CallRequest  # sampling, tools, formats; its segments carry their bodies where they were fetched
    prefix: tuple[PrefixSegment, ...]  # the prompt's digest chain
    prompt_tokens: int
    max_tokens: int
    reserve_output_tokens: int
    rank: int  # order among waiting calls, lower first
    delivered_tokens: int = 0  # output a client has from a lost attempt: continued from, never generated again
    delivered_text: bytes = b""
    warm_up: bool = False  # for the sake of its link only, which says nothing about later transfers


class Capabilities(NamedTuple):
    """What a started engine was found to be able to do; a profile may not promise more of what both name."""

    block_reuse: bool
    local_prefill: bool
    pipelined_transfer: bool
    flip: RoleFlip | None = None  # None: not known


class Prefilled(NamedTuple):
    """The next token exists; unless `finish` says that it was the last, the KV is pinned until sent."""

    started_us: int
    ended_us: int
    cached_tokens: int
    first_text: bytes  # of the token behind those delivered
    finish: FinishReason  # NONE: decoding goes on
    kv_bytes: int  # of the prompt, unscaled
    opaque_state: bytes  # what the decode engine needs besides the KV
    prompt_tokens: int  # exact
    prompt_token_ids: Sequence[int] = ()  # where the engine reports them: the prompt and what was delivered
    first_token_ids: Sequence[int] = ()


class KvPiece(NamedTuple):
    """Part of a transfer; the last one carries its measurements."""

    data: bytes
    last: bool
    kv_bytes: int = 0  # unscaled
    start_us: int = 0
    end_us: int = 0


class HandedOver(NamedTuple):
    """What the decode side is given by the prefill side; the first text begins with what was delivered."""

    source_instance: str
    prefilled: Prefilled
    kv_ready: bool  # False under push until prefill has ended


class Generated(NamedTuple):
    """Output since the last piece; what comes with the end is in `Finished` alone.

    `text` is UTF-8 that may be cut anywhere between characters.
    """

    at_us: int
    tokens: int
    text: bytes


class DecodeStarted(NamedTuple):
    """KV is here; `transfer` are the sender's measurements."""

    at_us: int
    transfer: KvPiece


class Finished(NamedTuple):
    at_us: int
    output_tokens: int  # the first token included
    finish: FinishReason
    text: bytes  # the whole output
    decode_us: int = 0  # its share of the decode steps it was in, each divided by its batch; 0 = not known
    transfer: KvPiece | None = None  # where the engine measures it better than was said when decoding started


DecodeEvent = DecodeStarted | Generated | Finished
FetchKv = Callable[[], Awaitable[KvPiece]]  # asks the holder for the KV, returns its measurements; `EngineRefused`


class EngineRefused(Exception):
    """The engine will not, or can no longer, run the attempt; `reason` as in `core.instance.io.Refused`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EngineAborted(Exception):
    """The attempt was aborted; `output_tokens` had been generated."""

    def __init__(self, output_tokens: int) -> None:
        super().__init__("aborted")
        self.output_tokens = output_tokens


class Engine(Protocol):
    """One instance. Calls that come in the same turn of the event loop may share an engine step."""

    spec: InstanceSpec

    async def start(self) -> Capabilities:
        """Load the model; nothing else is called before. Called again after `lost`. `HexagentError` where it cannot."""
        ...

    async def change_role(self, role: Role) -> Capabilities:
        """Serve another role from now on, started again where it takes that; what it then can do.

        It holds nothing, or what it holds is refused. `HexagentError` where it does not start.
        """
        ...

    async def lost(self) -> str:
        """Return the cause once the engine has died or hangs; what it held is refused by then."""
        ...

    async def prefill(self, request: EngineRequest, started: Callable[[], None] | None = None) -> Prefilled:
        """Run the prompt. `EngineRefused`, `EngineAborted`.

        Under push `started` is called when its first step begins.
        """
        ...

    def send_kv(self, ticket: Ticket, to_instance: str, to_link: LinkSpec) -> AsyncIterator[KvPiece]:
        """Hand the pinned KV over, or let go of what has been pulled; blocks are released with the last piece.

        `EngineRefused`.
        """
        ...

    def reserve(self, request: EngineRequest, source_instance: str, kv_ready: bool) -> None:
        """Queue for decode blocks. `EngineRefused` at once when the call can never fit.

        Not `kv_ready`, under push: the call's prefill has only begun; a later `kv_ready` says that it has ended.
        """
        ...

    def kv_ready(self, ticket: Ticket) -> None:
        """The KV of a call that was reserved for ahead may be pulled."""
        ...

    def decode(self, request: EngineRequest, handed: HandedOver, fetch_kv: FetchKv) -> AsyncIterator[DecodeEvent]:
        """Generate the rest of a reserved attempt. `EngineRefused`, `EngineAborted`."""
        ...

    def local(self, request: EngineRequest) -> AsyncIterator[DecodeEvent | Prefilled]:
        """Prefill and decode here, without a hand-off. `EngineRefused`, `EngineAborted`."""
        ...

    def abort(self, ticket: Ticket) -> None:
        """Stop the attempt in whatever phase it is; unknown tickets are ignored."""
        ...

    def load(self) -> InstanceLoad: ...

    def take_samples(self) -> Samples: ...

    def sampled_at_us(self) -> int:
        """Model time at which the engine last gave statistics; 0 = it never did, or needs none for its load."""
        ...

    def incidents(self) -> Incidents:
        """Without those of its supervisor."""
        ...

    async def close(self) -> None: ...
