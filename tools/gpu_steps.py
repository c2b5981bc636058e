"""Times the steps of dense transformers on this machine's GPU.

    PYTHONPATH=libs python tools/gpu_steps.py OUT llama-3.1-8b:1:bf16 [MODEL:TP:PRECISION ...]
    PYTHONPATH=libs python tools/gpu_steps.py --check

Needs PyTorch with CUDA, and numpy. A transformer has its model's shape, random weights and PyTorch's own kernels:
cuBLAS products, the fastest of its flash and cuDNN attentions, what lies between them fused by its compiler, the whole
step one CUDA graph, KV of bf16 in contiguous tensors. Of TP GPUs it is the share of one, without the collectives. A few
layers' weights and KV serve as all layers in turn: one of them is larger than the GPU's cache.

Rows are added to OUT/GPU-steps.csv, for `hexagent profile import`, and OUT/GPU-mixed.csv: mixed steps, a prompt beside
calls that decode. First a small model's logits are checked against float32: of a whole prompt, of one behind a cached
prefix, and of decode steps beside a prompt.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_crosscheck import Step
from hexagent.core.estimate.roofline import MODELS, ModelFigures
from hexagent.core.estimate.tables import load_table

DISTINCT_LAYERS: Final = 4
REPEATS: Final = 4, 30  # of a step, least and most
BUDGET_S: Final = 0.2  # for more than the least
EPSILON: Final = 1e-5
COLUMNS: Final = (
    "gpu",
    "model",
    "tp",
    "precision",
    "phase",
    "new_tokens",
    "cached_tokens",
    "batch",
    "context",
    "time_us",
)

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS: Final = (128, 1024, 4096, 16384)
PROMPTS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
PREFIXES: Final = (0, 4096, 16384)
# Of mixed steps: the prompt's new and cached tokens, the calls that decode and their context.
MIXED: Final = tuple(
    (new, cached, batch, context)
    for new, cached in ((64, 4096), (256, 4096), (1024, 0), (4096, 0))
    for batch, context in ((8, 1024), (32, 1024), (32, 4096), (128, 1024))
)


class Layer(NamedTuple):
    """Weights [outputs, inputs] of one layer, and of its norms [hidden]."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norm_in: Tensor
    norm_mid: Tensor


class Transformer:
    """One GPU's share of a dense model. Precision `fp8` is of weights and of what is multiplied with them."""

    def __init__(self, figures: ModelFigures, tp: int, precision: str, device: str) -> None:
        if figures.experts > 1 or figures.kv_heads % tp:
            raise SystemExit("gpu_steps: dense models only, and tp that divides the KV heads")
        self.figures, self.fp8, self.device = figures, precision == "fp8", device
        self.heads, self.kv_heads, self.width = figures.heads // tp, figures.kv_heads // tp, figures.head_dim
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        inner = figures.intermediate // tp
        attended = self.heads * self.width
        self.layers = [
            Layer(
                self._weights(attended + 2 * self.kv_heads * self.width, figures.hidden),
                self._weights(figures.hidden, attended),
                self._weights(2 * inner, figures.hidden),
                self._weights(figures.hidden, inner),
                torch.ones(figures.hidden, dtype=self.dtype, device=device),
                torch.ones(figures.hidden, dtype=self.dtype, device=device),
            )
            for _ in range(min(DISTINCT_LAYERS, figures.layers))
        ]
        self.embedding = self._random(figures.vocabulary, figures.hidden)
        self.head = self._random(figures.vocabulary // tp, figures.hidden)
        angles = torch.outer(
            torch.arange(max(CONTEXTS) + max(PREFIXES) + max(PROMPTS), device=device),
            500_000 ** (-torch.arange(0, self.width, 2, device=device) / self.width),
        )
        self.cosines, self.sines = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        self.scale = torch.ones((), device=device)

    def _random(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=self.dtype, device=self.device) * columns**-0.5

    def _weights(self, rows: int, columns: int) -> Tensor:
        weights = self._random(rows, columns)
        return weights.to(torch.float8_e4m3fn) if self.fp8 else weights

    def kv(self, batch: int, tokens: int) -> list[Tensor]:
        """KV of `batch` sequences: for each distinct layer a tensor [2, batch, KV heads, tokens, width]."""
        shape = 2, batch, self.kv_heads, tokens, self.width
        return [torch.randn(shape, dtype=self.dtype, device=self.device) for _ in self.layers] if batch else []

    def linear(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [tokens, inputs], of fp8 where the weights are."""
        if not self.fp8:
            return F.linear(x, weights)
        return torch._scaled_mm(x, weights.t(), self.scale, self.scale, out_dtype=self.dtype, use_fast_accum=True)

    def step(
        self,
        ids: Tensor,
        positions: Tensor,
        step: Step,
        prompt_kv: list[Tensor],
        decode_kv: list[Tensor],
        via: "Attentions",
    ) -> Tensor:
        """Logits [1 + batch, vocabulary] behind the prompt, if there is one, and each call. Writes KV of all tokens.

        `ids` and `positions` [tokens] are the prompt's, then one of each call.
        """
        new, width = step.new, self.width
        cosines, sines = self.cosines[positions][:, None], self.sines[positions][:, None]
        residual, update = self.embedding[ids], None
        for number in range(self.figures.layers):
            at = number % len(self.layers)
            layer = self.layers[at]
            residual, x = norm(residual, update, layer.norm_in, self.fp8)
            q, kv = rotate(
                self.linear(x, layer.qkv).view(step.new + step.batch, -1, width), cosines, sines, self.kv_heads
            )
            parts = []
            if new:
                room = prompt_kv[at][:, 0]
                room[:, :, step.cached : step.cached + new] = kv[:, :new].transpose(1, 2)
                parts.append(via.prompt(q[:new].transpose(0, 1)[None], room[:, None]).transpose(1, 2).reshape(new, -1))
            if step.batch:
                room = decode_kv[at]
                room[:, :, :, step.context - 1] = kv[:, new:]
                grouped = q[new:].view(step.batch, self.kv_heads, -1, width)
                parts.append(via.decode(grouped, room).reshape(step.batch, -1))
            attended = parts[0] if len(parts) == 1 else torch.cat(parts)
            update = self.linear(attended.to(torch.float8_e4m3fn) if self.fp8 else attended, layer.out)
            residual, x = norm(residual, update, layer.norm_mid, self.fp8)
            update = self.linear(gated(self.linear(x, layer.gate_up), self.fp8), layer.down)
        assert update is not None
        last = slice(new - 1, None) if new else slice(None)
        _, x = norm(residual[last], update[last], self.layers[0].norm_in, False)
        return F.linear(x, self.head)


def norm(residual: Tensor, update: Tensor | None, weights: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """The residual with its update, and the RMS norm of that."""
    if update is not None:
        residual = residual + update
    wide = residual.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    x = scaled.to(residual.dtype) * weights
    return residual, x.to(torch.float8_e4m3fn) if fp8 else x


def rotate(qkv: Tensor, cosines: Tensor, sines: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Queries [tokens, heads, width], and keys and values [2, tokens, KV heads, width], at their positions."""
    turned, values = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    first, second = turned.chunk(2, -1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)
    return turned[:, :-kv_heads].contiguous(), torch.stack((turned[:, -kv_heads:], values))


def gated(gate_up: Tensor, fp8: bool) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    x = F.silu(gate) * up
    return x.to(torch.float8_e4m3fn) if fp8 else x


Attend = Callable[[Tensor, Tensor], Tensor]


class Attentions(NamedTuple):
    """Attention of a prompt, causal, q [1, heads, new, width], and of calls, q [batch, KV heads, group, width].

    KV is [2, batch, KV heads, tokens, width].
    """

    prompt: Attend
    decode: Attend


def plain_prompt(q: Tensor, kv: Tensor) -> Tensor:
    new, tokens = q.shape[2], kv.shape[3]
    mask = torch.ones(new, tokens, dtype=torch.bool, device=q.device).tril(tokens - new)
    return F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask, enable_gqa=True)


def flash_prompt(q: Tensor, kv: Tensor) -> Tensor:
    # Its causal mask ends with the last key, as a prompt behind a prefix wants it, and it takes groups of heads.
    return torch.ops.aten._scaled_dot_product_flash_attention(q, kv[0], kv[1], 0.0, True)[0]


def plain_decode(q: Tensor, kv: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, kv[0], kv[1])


def by(backend: "torch.nn.attention.SDPBackend", causal: bool) -> Attend:
    def attend(q: Tensor, kv: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, kv[0], kv[1], is_causal=causal, enable_gqa=causal)

    return attend


PLAIN: Final = Attentions(plain_prompt, plain_decode)
PROMPT_KERNELS: Final = {"flash": flash_prompt, "cudnn": by(torch.nn.attention.SDPBackend.CUDNN_ATTENTION, True)}
DECODE_KERNELS: Final = {
    "flash": by(torch.nn.attention.SDPBackend.FLASH_ATTENTION, False),
    "cudnn": by(torch.nn.attention.SDPBackend.CUDNN_ATTENTION, False),
}


def timed(run: Callable[[], object]) -> float:
    """Microseconds of `run` as a CUDA graph, the median."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.monotonic() + BUDGET_S
    while len(times) < REPEATS[0] or (len(times) < REPEATS[1] and time.monotonic() < end):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1_000)
    return median(times)


def measure(model: Transformer, step: Step) -> tuple[float, str]:
    """Microseconds of a step with those attention kernels that make it the shortest, and their names."""
    prompt_kv, decode_kv = model.kv(min(step.new, 1), step.new + step.cached), model.kv(step.batch, step.context)
    ids = torch.randint(model.figures.vocabulary, (step.new + step.batch,), device=model.device)
    places = torch.arange(step.cached, step.cached + step.new), torch.full((step.batch,), step.context - 1)
    positions = torch.cat(places).to(model.device)
    prompts: dict[str, Attend] = PROMPT_KERNELS if step.new else {"": plain_prompt}
    if step.cached:
        prompts = {"flash": flash_prompt}  # the other's causal mask begins with the first key
    decodes: dict[str, Attend] = DECODE_KERNELS if step.batch else {"": plain_decode}
    times = {}
    for (prompt_name, prompt), (decode_name, decode) in product(prompts.items(), decodes.items()):
        via = Attentions(prompt, decode)
        run = partial(model.step, ids, positions, step, prompt_kv, decode_kv, via)
        times[f"{prompt_name} {decode_name}".strip()] = timed(run)
    name = min(times, key=times.__getitem__)
    return times[name], name


def check(device: str) -> float:
    """The largest relative error of a small model's logits against float32 over prompts, prefixes and mixed steps."""
    figures = ModelFigures(3, 256, 8, 2, 64, 512, 1, 1, 1000, 4096)
    torch.manual_seed(1)
    exact = Transformer(figures, 1, "fp32", device)
    model = exact
    if device == "cuda":
        model = Transformer(figures, 1, "bf16", device)
        model.layers = [Layer(*(weights.to(model.dtype) for weights in layer)) for layer in exact.layers]
        model.embedding, model.head = exact.embedding.to(model.dtype), exact.head.to(model.dtype)
    ids = torch.randint(figures.vocabulary, (160,), device=device)
    places = torch.arange(160, device=device)
    whole = Step(160)
    wanted = exact.step(ids, places, whole, exact.kv(1, 160), [], PLAIN)[0]
    pairs = [PLAIN]
    if device == "cuda":
        pairs = [Attentions(*pair) for pair in product(PROMPT_KERNELS.values(), DECODE_KERNELS.values())]
    errors: list[float] = []
    for via in pairs:
        kv = model.kv(1, 160)
        got: list[Tensor] = [model.step(ids, places, whole, kv, [], via)[0]]
        behind = via._replace(prompt=flash_prompt if device == "cuda" else plain_prompt)
        got.append(model.step(ids[120:], places[120:], Step(40, 120), kv, [], behind)[0])
        # Two calls decode the last token each, beside the whole prompt once more.
        both = [layer.expand(2, 2, -1, -1, -1).clone() for layer in kv]
        mixed = model.step(
            torch.cat((ids, ids[-1:], ids[-1:])),
            torch.cat((places, places[-1:], places[-1:])),
            Step(160, 0, 2, 160),
            kv,
            both,
            via,
        )
        got.extend(mixed)
        errors.extend(float((row.float() - wanted).norm() / wanted.norm()) for row in got)
    return max(errors)


def steps(limit_tokens: int) -> list[Step]:
    """What is timed, as far as an engine's tokens of KV reach."""
    asked = [Step(batch=batch, context=context) for context in CONTEXTS for batch in BATCHES]
    asked += [Step(new, cached) for cached in PREFIXES for new in PROMPTS]
    asked += [Step(*mixed) for mixed in MIXED]
    return [step for step in asked if step.new + step.cached + step.batch * step.context <= limit_tokens]


def gpu_type() -> str:
    """The first word of the driver's name with a digit in it, as in "NVIDIA H100 80GB HBM3"."""
    words: list[str] = torch.cuda.get_device_name(0).lower().replace("-", " ").split()
    return next(word for word in words if any(letter.isdigit() for letter in word))


def time_engine(name: str, out: Path) -> None:
    """Time all steps of an engine MODEL:TP:PRECISION and append a row of each to a file in `out`."""
    gpu = gpu_type()
    model_name, tp, precision = name.split(":")
    model = Transformer(MODELS[model_name], int(tp), precision, "cuda")
    todo = steps(load_table(gpu, model_name, int(tp), precision).kv_tokens)
    for number, step in enumerate(todo):
        us, kernels = measure(model, step)
        torch.cuda.empty_cache()
        print(f"{name} {number + 1}/{len(todo)} {tuple(step)} {us:.1f} us {kernels}", flush=True)
        phase = "prefill" if step.kind == "prefixed" else step.kind
        prompt = (step.new, step.cached) if step.new else ("", "")
        calls = (step.batch, step.context) if step.batch else ("", "")
        path = out / (f"{gpu}-mixed.csv" if phase == "mixed" else f"{gpu}-steps.csv")
        append(path, (gpu, model_name, tp, precision, phase, *prompt, *calls, round(us, 1)))


def append(path: Path, row: Iterable[object]) -> None:
    begun = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not begun:
            writer.writerow(COLUMNS)
        writer.writerow(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder for the two files")
    parser.add_argument("engines", nargs="*", metavar="MODEL:TP:PRECISION")
    parser.add_argument("--check", action="store_true", help="only check logits; on the CPU where there is no GPU")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # Each shape that is special (one token, the first layer, fp8, the small model) is compiled on its own.
        torch._dynamo.config.recompile_limit = 100
        for name in ("norm", "rotate", "gated"):
            globals()[name] = torch.compile(globals()[name], dynamic=True)
    error, limit = check(device), 1e-5 if device == "cpu" else 2e-2
    print(f"logits within {error:.1e} of float32 on {device}", flush=True)
    if not error < limit:
        return 1
    if arguments.check:
        return 0
    if device == "cpu" or arguments.out is None:
        parser.error("a GPU that PyTorch sees, and OUT with engines, are needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.engines:
        time_engine(name, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
