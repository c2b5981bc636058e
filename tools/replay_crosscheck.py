"""The same trace on the same homogeneous pools, round-robin: our instances against NVIDIA's mocker replay.

    PYTHONPATH=libs python tools/replay_crosscheck.py [--json FILE]

needs `ai-dynamo-runtime` and `aiconfigurator` (Apache-2.0, about 1 GB, Python 3.11 or 3.12) in an environment of their
own. Both sides take step times from aiconfigurator's tables for Llama-3.1-70B on four H100 and run without prefix
cache: ours the shipped thinned copy on `Fleet`, theirs the package itself in `run_mocker_trace_replay`. Requests go
to instances in turn on both sides, so that what differs is the engine and the hand-off, not the router.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from hexagent.core.estimate.tables import StepTable, load_table
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.io import Work
from hexagent.core.instance.spec import ClusterSpec, InstanceSpec, Role
from hexagent.core.workflow.model import CallOutcome
from hexagent.sim.clusters import named_cluster
from hexagent.sim.conditions import CONDITIONS
from hexagent.sim.fleet import Fleet, Flight, Latency, Reported

BLOCK_TOKENS: Final = 32
TRACE_BLOCK_TOKENS: Final = 512
REQUESTS: Final = 600
AIC: Final = {
    "aic_backend": "trtllm",
    "aic_system": "h100_sxm",
    "aic_model_path": "meta-llama/Meta-Llama-3.1-70B",
    "aic_tp_size": 4,
}


class Request(NamedTuple):
    arrival_ms: int
    input_tokens: int
    output_tokens: int


class Pools(NamedTuple):
    """`decode` = 0: instances that do both."""

    name: str
    prefill: int
    decode: int


class Seen(NamedTuple):
    arrival_ms: float
    ttft_ms: float
    itl_ms: float  # mean over a request's tokens after the first
    end_ms: float


def trace(rate_per_s: float, seed: int) -> list[Request]:
    """Poisson arrivals of prompts of 256 to 4,096 tokens and outputs of 16 to 512, log-uniform."""
    draw = random.Random(seed)
    now_s, requests = 0.0, []
    for _ in range(REQUESTS):
        now_s += draw.expovariate(rate_per_s)
        prompt, output = 2 ** draw.uniform(8, 12), 2 ** draw.uniform(4, 9)
        requests.append(Request(round(now_s * 1_000), round(prompt), round(output)))
    return requests


# --- ours -----------------------------------------------------------------------------------------------------
def ours(requests: Sequence[Request], pools: Pools) -> list[Seen]:
    cluster = _cluster(pools)
    prefill = [i.instance_id for i in cluster.instances if i.role is not Role.DECODE]
    decode = [i.instance_id for i in cluster.instances if i.role is Role.DECODE] or prefill
    heap: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
    outcomes: dict[int, CallOutcome] = {}

    sequence = count()

    def schedule(at_us: int, action: Callable[..., None], *arguments: object) -> None:
        heappush(heap, (at_us, next(sequence), action, arguments))

    def reported(event: Reported, now_us: int) -> None:
        """Nobody decides by it."""

    def finished(outcome: CallOutcome, now_us: int) -> None:
        outcomes[int(outcome.call.node_id)] = outcome

    fleet = Fleet(cluster, CONDITIONS, Latency.even(0), schedule, reported, finished)
    for number, request in enumerate(requests):
        ticket = Ticket(CallId("trace", str(number)), 1, 1)
        tokens = request.output_tokens
        work = Work(ticket, (), request.input_tokens, tokens, tokens, tokens)
        source, target = prefill[number % len(prefill)], decode[number % len(decode)]
        flight = Flight(work, source, target, number, request.arrival_ms * 1_000)
        schedule(request.arrival_ms * 1_000, fleet.prefill, source, (flight,))
    while heap:
        now_us, _, action, arguments = heappop(heap)
        action(*arguments, now_us)
    return [_seen(request, outcomes[number]) for number, request in enumerate(requests)]


def ours_summed(requests: Sequence[Request], pools: Pools) -> list[Seen]:
    """With mixed steps that take as long as their prefill and their decode one after the other."""
    with patch.object(StepTable, "mixed_us", _summed_us):
        return ours(requests, pools)


def _summed_us(table: StepTable, chunks: Sequence[tuple[int, int]], batch: int, mean_context: int) -> int:
    prefill_us = table.batch_prefill_us(chunks) if chunks else 0
    return prefill_us + (table.decode_us(batch, mean_context) if batch else 0)


def _cluster(pools: Pools) -> ClusterSpec:
    """Pools of equal H100 instances without noise, hidden factors or prefix cache."""
    named = named_cluster("homogeneous")
    like = named.instances[0]
    instances: list[InstanceSpec] = []
    for role, size in ((Role.PREFILL if pools.decode else Role.BOTH, pools.prefill), (Role.DECODE, pools.decode)):
        instances += [like._replace(instance_id=f"{role.name}-{number}", role=role) for number in range(size)]
    return named._replace(instances=tuple(instances), noise_ppm=0, hidden_factor_ppm=(1_000_000, 1_000_000))


def _seen(request: Request, outcome: CallOutcome) -> Seen:
    times = outcome.times
    itl_ms = (times.end_us - times.first_token_us) / 1e3 / max(outcome.output_tokens - 1, 1)
    return Seen(request.arrival_ms, times.first_token_us / 1e3 - request.arrival_ms, itl_ms, times.end_us / 1e3)


# --- theirs ---------------------------------------------------------------------------------------------------
def theirs(requests: Sequence[Request], pools: Pools) -> list[Seen]:
    from dynamo import _core  # type: ignore[import-not-found]

    like = named_cluster("homogeneous").instances[0]
    engine: dict[str, Any] = {
        # Its replay knows no disaggregated TensorRT-LLM; step times come from that engine's tables all the same.
        "engine_type": "vllm" if pools.decode else "trtllm",
        "num_gpu_blocks": like.kv_blocks,
        "block_size": BLOCK_TOKENS,
        "max_num_seqs": like.max_batch,
        "max_num_batched_tokens": like.max_step_tokens,
        "enable_prefix_caching": False,
        "kv_bytes_per_token": load_table(like.gpu_type, like.model, like.tp).kv_bytes_per_token,
        "kv_transfer_bandwidth": like.link.bytes_per_s / 1e9,
        **AIC,
    }
    if pools.decode:
        layout = {
            "prefill_engine_args": _core.MockEngineArgs(worker_type="prefill", **engine),
            "decode_engine_args": _core.MockEngineArgs(worker_type="decode", **engine),
            "num_prefill_workers": pools.prefill,
            "num_decode_workers": pools.decode,
        }
    else:
        layout = {"extra_engine_args": _core.MockEngineArgs(**engine), "num_workers": pools.prefill}
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(f"{json.dumps(_line(number, request))}\n" for number, request in enumerate(requests))
        file.flush()
        result = _core.run_mocker_trace_replay(
            [file.name],
            trace_block_size=TRACE_BLOCK_TOKENS,
            capture_per_request=True,
            router_mode="round_robin",
            **layout,
        )
    return [
        Seen(r["arrival_time_ms"], r["ttft_ms"], r["itl_ms"] or 0.0, r["terminal_time_ms"]) for r in result.per_request
    ]


def _line(number: int, request: Request) -> dict[str, object]:
    """A line of Mooncake's format; no two requests share a block."""
    blocks = -(-request.input_tokens // TRACE_BLOCK_TOKENS)
    return {
        "timestamp": request.arrival_ms,
        "input_length": request.input_tokens,
        "output_length": request.output_tokens,
        "hash_ids": [number * 100 + block for block in range(blocks)],
    }


# --- both -----------------------------------------------------------------------------------------------------
POOLS: Final = (Pools("4 that do both", 4, 0), Pools("4 prefill + 4 decode", 4, 4))
SIDES: Final = {"hexagent": ours, "hexagent, mixed steps summed": ours_summed, "dynamo": theirs}
RATES: Final = (8.0, 16.0, 24.0)  # requests a second


def rows() -> list[dict[str, object]]:
    """One row a layout of pools, rate and side."""
    made: list[dict[str, object]] = []
    for pools in POOLS:
        for rate in RATES:
            requests = trace(rate, seed=1)
            tokens = sum(request.output_tokens for request in requests)
            for side, run in SIDES.items():
                if run is ours_summed and pools.decode:
                    continue  # no step is mixed there
                of = {"pools": pools.name, "requests_per_s": rate, "side": side}
                made.append({**of, **_figures(run(requests, pools), tokens)})
    return made


def _figures(seen: Sequence[Seen], output_tokens: int) -> dict[str, object]:
    ttft_ms, itl_ms = sorted(s.ttft_ms for s in seen), sorted(s.itl_ms for s in seen)
    latency_ms = sorted(s.end_ms - s.arrival_ms for s in seen)
    p95 = -(-95 * len(seen) // 100) - 1
    return {
        "ttft_mean_ms": mean(ttft_ms),
        "ttft_p95_ms": ttft_ms[p95],
        "itl_mean_ms": mean(itl_ms),
        "itl_p95_ms": itl_ms[p95],
        "latency_mean_ms": mean(latency_ms),
        "latency_p95_ms": latency_ms[p95],
        "output_tokens_per_s": output_tokens / max(s.end_ms for s in seen) * 1_000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    made = rows()
    print(" | ".join(made[0]))
    for row in made:
        print(" | ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
