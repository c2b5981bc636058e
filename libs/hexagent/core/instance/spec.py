"""What an instance, an engine profile, a link and a cluster are."""

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from hexagent.core.units import PPM

if TYPE_CHECKING:
    from hexagent.core.estimate.tables import StepTable


class Role(IntEnum):
    PREFILL = 1
    DECODE = 2
    BOTH = 3  # not disaggregated: chunked prefill mixed with decode


FLIPPED: Final = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}


class HandOff(IntEnum):
    PULL = 1  # KV stays pinned on the prefill side until the decode side has admitted the call and pulled it
    PUSH = 2  # decode is bound, and its blocks are reserved, when prefill starts; KV follows at prefill end


class EngineProfile(NamedTuple):
    """What an engine can do; a policy never uses what its profile lacks."""

    name: str
    hand_off: HandOff
    never_evicts: bool  # reserve prompt + max_tokens (GUARANTEED_NO_EVICT), else prompt + predicted
    block_reuse: bool  # committed full blocks serve later prompts with the same prefix
    local_prefill: bool  # an instance can do both phases of a call, whatever its role
    pipelined_transfer: bool  # KV moves while prefill runs
    send_concurrency: int  # transfers an instance sends at a time
    overlapped_context: bool  # prompts to be handed over run under the overlap scheduler, which decoding wants
    equal_progress: bool = False  # prompts of a step advance by equal chunks, else the oldest takes what it can


PROFILES: dict[str, EngineProfile] = {
    p.name: p
    for p in (
        EngineProfile("trtllm-1.2.1", HandOff.PULL, True, True, True, False, 1, False),
        EngineProfile("trtllm-1.3", HandOff.PULL, True, True, True, True, 1, True),
        EngineProfile("trtllm-leases", HandOff.PULL, False, True, True, False, 1, False),
        EngineProfile("trtllm-equal-progress", HandOff.PULL, True, True, True, False, 1, False, True),
        EngineProfile("push", HandOff.PUSH, False, True, False, False, 1, True),
        EngineProfile("ideal", HandOff.PULL, False, True, True, True, 4, True),
    )
}


class LinkSpec(NamedTuple):
    """An instance's network side; a transfer runs at the slower of its two ends."""

    bytes_per_s: int
    setup_us: int  # per transfer


class Speculation(NamedTuple):
    """Speculative decoding of an engine."""

    method: str  # as the engine names it: eagle, mtp, ngram, draft
    draft_tokens: int  # drafted a step for each sequence, at least 1
    acceptance_ppm: int  # chance that a drafted token is accepted if those before it were
    draft_cost_ppm: int  # of one drafted token, in decode steps at the shortest context

    @property
    def kept_ppm(self) -> int:
        """Tokens a step on average, the one that is always right included."""
        kept = likely = PPM
        for _ in range(self.draft_tokens):
            likely = likely * self.acceptance_ppm // PPM
            kept += likely
        return kept


class FlipWay(IntEnum):
    """How an instance comes to serve the other role as well."""

    MIX = 1  # it takes calls of either at any time
    OVERLAP_OFF = 2  # so it does, but its decode steps hide none of the host's work
    RESTART = 3


class RoleFlip(NamedTuple):
    way: FlipWay
    cost_us: int  # model time in which it serves nothing


class Lora(NamedTuple):
    """An adapter that an instance serves on top of its model."""

    name: str
    rank: int  # of its matrices
    directory: str = ""  # of its weights, as agents with real engines see it; "" = none


class InstanceSpec(NamedTuple):
    instance_id: str
    gpu_type: str  # a100, h100, h200, ...
    tp: int  # GPUs of the instance
    role: Role
    model: str
    precision: str  # of weights: bf16, fp8, ...
    kv_precision: str  # KV moves only between equal ones
    kv_blocks: int
    block_tokens: int
    max_batch: int  # calls decoding at a time
    max_step_tokens: int  # prefill tokens of one engine step
    link: LinkSpec
    profile: str  # a key of PROFILES
    prefix_cache: bool  # off: the engine runs without block reuse whatever its profile could do
    agent_id: str = ""
    address: str = ""  # host:port of the agent's gRPC server
    speculation: Speculation | None = None
    flip: RoleFlip | None = None  # as found when its engine was started; None = not known
    loras: tuple[Lora, ...] = ()  # sorted by name
    max_loras: int = 0  # of them in the GPUs' memory at a time; 0 without any

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_tokens


GPU_PRICES_MILLI: dict[str, int] = {"a100": 1_000, "h100": 2_000, "h200": 2_400}  # of a GPU's time; of others 1,000


class TenantSpec(NamedTuple):
    """A tenant's share and limits; a limit of 0 is none. A priced GPU-second is one of an A100."""

    name: str
    weight: int = 1  # share of the cluster relative to the other tenants, 1..1,000,000
    workflows_max: int = 0  # live at a time
    queued_tokens_max: int = 0  # KV tokens that the calls of it that wait may need
    quota_gpu_us: int = 0  # priced GPU-microseconds in each window; calls beyond it wait for the next one
    quota_window_us: int = 0  # windows begin at multiples of it; above 0 with a quota


class AdmissionSpec(NamedTuple):
    """When calls are refused for the load there is."""

    queued_calls_max: int = 100_000  # waiting in the whole cluster: what the scheduler's memory is for
    queued_kv_milli: int = 0  # KV that a model's waiting calls may need, over what its decode instances hold; 0 = any
    refuse_late: bool = False  # workflows whose deadline passes even if they have the cluster to themselves


class TextSpec(NamedTuple):
    """How text of a model becomes token ids and back."""

    model: str
    directory: str = ""  # of its tokenizer and chat template, as agents with real engines see it; "" = none
    tools: str = ""  # how outputs ask for tools: a key of `hexagent.text.tools.FORMS`
    reasoning: str = ""  # how outputs reason: a key of `hexagent.text.reader.REASONING`


class ClusterSpec(NamedTuple):
    """A stack as configured: what `solo` times and static limits are taken from."""

    name: str
    instances: tuple[InstanceSpec, ...]  # sorted by id
    tenants: tuple[TenantSpec, ...]
    seed: int  # hidden factors and noise of emulated instances
    noise_ppm: int  # standard deviation of the log of a step's noise
    hidden_factor_ppm: tuple[int, int]  # range of an emulated instance's constant factor
    texts: tuple[TextSpec, ...] = ()  # sorted by model; models without an entry have no text of their own
    gpu_prices_milli: tuple[tuple[str, int], ...] = ()  # by GPU type, ascending: in place of GPU_PRICES_MILLI
    admission: AdmissionSpec = AdmissionSpec()
    tables: "tuple[StepTable, ...]" = ()  # step times that stand for the shipped ones; one an engine

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({i.model for i in self.instances}))

    def text_of(self, model: str) -> TextSpec:
        return next((text for text in self.texts if text.model == model), TextSpec(model))
