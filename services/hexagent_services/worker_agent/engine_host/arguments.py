"""The engine as ordered: arguments of the `LLM` constructor, and of each request."""

import base64
import dataclasses
import datetime
import json
from typing import Any

from .library import Library

KV_EVENTS_MAX = 100_000  # of the engine's buffer, between two readings


def engine_arguments(library: Library, found: dict[str, bool], order: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `LLM` for a `load` order.

    The order: model (folder), role (prefill, decode, both), tp, max_batch, max_step_tokens, max_seq_tokens, kv_tokens,
    block_tokens, prefix_cache, equal_progress, pipelined, transceiver, transfer_timeout_ms, loras ({name, rank,
    directory}), max_loras, arguments (the operator's, which win).
    """
    transceiver = {
        "backend": order["transceiver"],  # said outright: what DEFAULT means depends on version and environment
        # Prompts longer than the buffer can block all transfers for good.
        "max_tokens_in_buffer": order["max_seq_tokens"],
        "kv_transfer_timeout_ms": order["transfer_timeout_ms"],
    }
    if found["pipelined_transfer"]:
        transceiver["enable_pipelined_transfer"] = order["pipelined"]
    reuse = order["prefix_cache"]
    # The agent reserves by this rule: a request that was admitted is never paused.
    scheduling = {"capacity_scheduler_policy": library.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT}
    if order["equal_progress"]:  # else the oldest prompt takes what it can of each step
        scheduling["context_chunking_policy"] = library.ContextChunkingPolicy.EQUAL_PROGRESS
    arguments = {
        "model": order["model"],
        "skip_tokenizer_init": True,
        "tensor_parallel_size": order["tp"],
        "backend": "pytorch",
        "max_batch_size": order["max_batch"],
        "max_num_tokens": order["max_step_tokens"],
        "max_seq_len": order["max_seq_tokens"],
        "enable_chunked_prefill": True,  # else prompts above `max_num_tokens` are refused
        # Versions around 1.2 refuse context-only requests under the overlap scheduler.
        "disable_overlap_scheduler": order["role"] == "prefill",
        "enable_iter_perf_stats": True,
        "return_perf_metrics": True,
        "kv_cache_config": library.KvCacheConfig(
            enable_block_reuse=reuse,
            # A block that is reused in part while it is being sent has been evicted under the transfer.
            enable_partial_reuse=False,
            max_tokens=order["kv_tokens"],
            tokens_per_block=order["block_tokens"],
            event_buffer_max_size=KV_EVENTS_MAX if reuse else 0,
        ),
        "cache_transceiver_config": library.CacheTransceiverConfig(**transceiver),
        "scheduler_config": library.SchedulerConfig(**scheduling),
    }
    if order["loras"]:
        arguments["lora_config"] = library.LoraConfig(
            lora_dir=[order["loras"][0]["directory"]],  # says which modules adapters change; the engine takes one
            max_lora_rank=max(lora["rank"] for lora in order["loras"]),
            max_loras=order["max_loras"],
            max_cpu_loras=len(order["loras"]),
        )
    arguments.update(order["arguments"])
    return arguments


def retention_config(library: Library, retention: dict[str, Any] | None) -> Any:
    """`{priority, ttl_ms}` for the whole prompt and the output; None = the engine's rule."""
    if retention is None:
        return None
    ttl = datetime.timedelta(milliseconds=retention["ttl_ms"]) if retention["ttl_ms"] else None
    config = library.KvCacheRetentionConfig
    return config([config.TokenRangeRetentionConfig(0, None, retention["priority"], ttl)], retention["priority"], ttl)


def state_to_json(params: Any) -> str:
    """Every field of the `DisaggregatedParams` that prefill gave back; bytes in base64.

    `ValueError` for handles and tensors.
    """
    state: dict[str, Any] = {}
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if isinstance(value, bytes):
            value = {"base64": base64.b64encode(value).decode()}
        if value is not None:
            state[field.name] = value
    try:
        return json.dumps(state)
    except TypeError as error:
        raise ValueError(f"a hand-off that cannot leave this process: {error}") from error


def state_from_json(library: Library, text: str) -> Any:
    """What `state_to_json` wrote, for the decode side. `ValueError` where this version lacks one of its fields."""
    state = json.loads(text)
    known = {field.name for field in dataclasses.fields(library.DisaggregatedParams)}
    unknown = sorted(set(state) - known)
    if unknown:
        raise ValueError(f"the prefill side's version has fields that this one lacks: {', '.join(unknown)}")
    for name, value in state.items():
        if isinstance(value, dict) and "base64" in value:
            state[name] = base64.b64decode(value["base64"])
    state["request_type"] = "generation_only"
    return library.DisaggregatedParams(**state)
