"""Step times from hardware and model figures, for pairs no measured table covers.

Formulas, per GPU of a tensor-parallel group of `tp` (experts are spread over the same group, ep = tp):

- linear work of n tokens: 2 * n * active_params / (tp * flops * LINEAR_EFFICIENCY), or the time to read the weights
  if that is longer; the most loaded GPU of an expert-parallel group has EXPERT_IMBALANCE times the mean;
- attention of prefill: 4 * layers * heads * head_dim * n * (prefix + n / 2) / (tp * flops * ATTENTION_EFFICIENCY);
- attention of decode: batch * context * KV bytes / bandwidth, KV heads replicated where tp exceeds them;
- all-reduce, two a layer: n * hidden * 2 bytes * 2 * (tp - 1) / tp / link + ALL_REDUCE_US (ring all-reduce);
- kernel launches: LAYER_US a layer (fp8 quantizes activations too), MOE_LAYER_US more for routing.

Bandwidth is HBM times MEMORY_EFFICIENCY. A mixture of experts reads the experts its tokens touch:
experts * (1 - (1 - k / experts) ** n), in expectation under uniform routing.

Hardware figures are NVIDIA's data sheets (A100 80 GB SXM, H100 SXM, H200 SXM, HGX B200, L40S): HBM bandwidth,
dense tensor-core throughput without sparsity, NVLink bandwidth in one direction. Model figures are the published
`config.json` files. The efficiencies are the ratios between those peaks and the measured tables of this package.
"""

from typing import NamedTuple

LINEAR_EFFICIENCY = {"bf16": 0.68, "fp8": 0.55}
ATTENTION_EFFICIENCY = {"bf16": 0.50, "fp8": 0.40}
MEMORY_EFFICIENCY = 0.80
LINK_EFFICIENCY = 0.80
ALL_REDUCE_US = 10.0
LAYER_US = {"bf16": 15.0, "fp8": 35.0}
MOE_LAYER_US = 25.0
EXPERT_IMBALANCE = 1.6

KV_MEMORY_FRACTION = 0.9  # TensorRT-LLM's free_gpu_memory_fraction default
RUNTIME_BYTES = 3_758_096_384  # CUDA context, graphs and engine buffers
ACTIVATION_BYTES = 1_000_000_000  # of a step of 8,192 tokens
COLLECTIVE_BYTES = 411_041_792  # NCCL buffers of a group of more than one GPU

PRECISION_BYTES = {"bf16": 2, "fp8": 1}
TP_SIZES = (1, 2, 4, 8)


class GpuFigures(NamedTuple):
    """One GPU: memory in bytes, bandwidths in bytes/s (link: one direction), dense FLOP/s (0 where not offered)."""

    memory_bytes: int
    memory_bandwidth: float
    bf16_flops: float
    fp8_flops: float
    link_bandwidth: float

    def flops(self, precision: str) -> float:
        """Dense FLOP/s of `precision` ("bf16" or "fp8")."""
        return self.fp8_flops if precision == "fp8" else self.bf16_flops


class ModelFigures(NamedTuple):
    """One decoder-only transformer with grouped-query attention and gated MLPs; a dense model has one expert.

    `intermediate` is the width of one expert. `max_context` is the longest prompt plus output in tokens that the
    published weights support, for Qwen3 with its documented YaRN scaling (40,960 without).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int
    experts_per_token: int
    vocabulary: int
    max_context: int

    @property
    def attention_params(self) -> int:
        """Weights of one layer's attention: query, key, value and output projections."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def expert_params(self) -> int:
        """Weights of one expert of one layer: gate, up and down projections."""
        return 3 * self.hidden * self.intermediate

    @property
    def total_params(self) -> int:
        """All weights, input and output embeddings included."""
        layer = self.attention_params + self.experts * self.expert_params
        return self.layers * layer + 2 * self.vocabulary * self.hidden

    @property
    def active_params(self) -> int:
        """Weights one token passes through, embeddings excluded."""
        return self.layers * (self.attention_params + self.experts_per_token * self.expert_params)

    def kv_bytes_per_token(self, precision: str = "bf16") -> int:
        """KV bytes of one token over all layers and KV heads, each counted once: what a transfer moves."""
        return 2 * self.layers * self.kv_heads * self.head_dim * PRECISION_BYTES[precision]

    def kv_bytes_per_token_per_gpu(self, tp: int, precision: str = "bf16") -> int:
        """KV bytes of one token on each GPU of a group; a GPU holds at least one whole KV head."""
        heads = max(1, self.kv_heads // tp)
        return 2 * self.layers * heads * self.head_dim * PRECISION_BYTES[precision]


GPUS: dict[str, GpuFigures] = {
    "a100": GpuFigures(85_899_345_920, 2.039e12, 312e12, 0.0, 300e9),
    "b200": GpuFigures(193_273_528_320, 7.7e12, 2250e12, 4500e12, 900e9),
    "h100": GpuFigures(85_899_345_920, 3.35e12, 989e12, 1979e12, 450e9),
    "h200": GpuFigures(151_397_597_184, 4.8e12, 989e12, 1979e12, 450e9),
    # Without NVLink, all-reduce is staged through PCIe 4.0 and reaches about a fifth of its 32 GB/s among four GPUs:
    # twice that between two, a third of that across two sockets.
    "l40s": GpuFigures(48_305_799_168, 0.864e12, 362e12, 733e12, 7e9),
}

MODELS: dict[str, ModelFigures] = {
    "llama-3.1-70b": ModelFigures(80, 8192, 64, 8, 128, 28672, 1, 1, 128256, 131072),
    "llama-3.1-8b": ModelFigures(32, 4096, 32, 8, 128, 14336, 1, 1, 128256, 131072),
    "qwen3-235b-a22b": ModelFigures(94, 4096, 64, 4, 128, 1536, 128, 8, 151936, 131072),
    "qwen3-32b": ModelFigures(64, 5120, 64, 8, 128, 25600, 1, 1, 151936, 131072),
}


class Roofline(NamedTuple):
    """Step times in microseconds of `model` on `tp` GPUs of one kind; none falls as its arguments grow."""

    gpu: GpuFigures
    model: ModelFigures
    tp: int
    precision: str

    def prefill_us(self, new_tokens: int, prefix_tokens: int) -> int:
        """One sequence of `new_tokens` >= 1 after `prefix_tokens` >= 0 cached ones."""
        model = self.model
        attended = new_tokens * (prefix_tokens + new_tokens / 2)
        operations = 4 * model.layers * model.heads * model.head_dim * attended
        peak = self.tp * self.gpu.flops(self.precision) * ATTENTION_EFFICIENCY[self.precision]
        return round(self._linear_us(new_tokens) + operations / peak * 1e6)

    def decode_us(self, batch: int, mean_context: int) -> int:
        """One token for each of `batch` >= 1 sequences of `mean_context` tokens on average."""
        per_gpu = self.model.kv_bytes_per_token_per_gpu(self.tp, self.precision)
        return round(self._linear_us(batch) + self._read_us(batch * mean_context * per_gpu))

    def kv_tokens(self) -> int:
        """Tokens of KV the group holds; zero or less where the weights leave no room."""
        free = self.gpu.memory_bytes - RUNTIME_BYTES - ACTIVATION_BYTES
        free -= self.model.total_params * PRECISION_BYTES[self.precision] // self.tp
        if self.tp > 1:
            free -= COLLECTIVE_BYTES
        return int(free * KV_MEMORY_FRACTION) // self.model.kv_bytes_per_token_per_gpu(self.tp, self.precision)

    def _linear_us(self, tokens: int) -> float:
        """Everything but attention over `tokens` tokens, whichever sequences they belong to."""
        peak = self.tp * self.gpu.flops(self.precision) * LINEAR_EFFICIENCY[self.precision]
        imbalance = EXPERT_IMBALANCE if self._sparse() and self.tp > 1 else 1.0
        compute = 2 * tokens * self.model.active_params * imbalance / peak * 1e6
        return max(compute, self._weights_us(tokens)) + self._collective_us(tokens) + self._launch_us()

    def _weights_us(self, tokens: int) -> float:
        """Reading the weights that `tokens` tokens touch, once."""
        model = self.model
        miss = (1 - model.experts_per_token / model.experts) ** tokens
        experts = model.experts * (1 - miss)
        params = model.layers * (model.attention_params + experts * model.expert_params)
        params += model.vocabulary * model.hidden
        return self._read_us(params * PRECISION_BYTES[self.precision] / self.tp)

    def _collective_us(self, tokens: int) -> float:
        """Two all-reduces a layer, after attention and after the MLP."""
        if self.tp == 1:
            return 0.0
        share = 2 * (self.tp - 1) / self.tp
        moved = tokens * self.model.hidden * 2 * share
        one = moved / (self.gpu.link_bandwidth * LINK_EFFICIENCY) * 1e6 + ALL_REDUCE_US
        return 2 * self.model.layers * one

    def _launch_us(self) -> float:
        return self.model.layers * (LAYER_US[self.precision] + (MOE_LAYER_US if self._sparse() else 0.0))

    def _sparse(self) -> bool:
        return self.model.experts > 1

    def _read_us(self, read_bytes: float) -> float:
        return read_bytes / (self.gpu.memory_bandwidth * MEMORY_EFFICIENCY) * 1e6
