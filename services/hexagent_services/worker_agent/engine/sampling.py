"""A call's sampling as TensorRT-LLM takes it; what it cannot do is refused by name."""

import json
from collections.abc import Sequence
from typing import Any, Final

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import Unsupported
from hexagent_services.worker_agent.engine.port import EngineRequest

_FREE: Final = (call_pb2.ResponseFormat.KIND_UNSPECIFIED, call_pb2.ResponseFormat.KIND_TEXT)
_AS_THEY_ARE: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)

LEASE_MIN: Final = 64  # tokens
# What depends on more than the text so far, so that a new request would not go on as the old one.
_STATEFUL: Final = ("seed", "presence_penalty", "frequency_penalty", "repetition_penalty")


def lease_of(request: EngineRequest) -> int:
    """Tokens of output, delivered ones included, that an engine is first asked for: as many as are reserved for it.

    All it may come to where it could not be gone on with.
    """
    call = request.call
    stateful = any(call.sampling.HasField(name) for name in _STATEFUL)
    if stateful or call.response_format.kind not in _FREE:
        return request.max_tokens
    return min(request.max_tokens, max(request.reserve_output_tokens, request.delivered_tokens + LEASE_MIN))


def ending_ids(request: EngineRequest, end_token_ids: Sequence[int]) -> tuple[int, ...]:
    """Ids that end the output and are no part of it."""
    sampling = request.call.sampling
    return (*(() if sampling.ignore_eos else end_token_ids), *sampling.stop_token_ids)


def sampling_arguments(request: EngineRequest, end_token_ids: tuple[int, ...], max_tokens: int) -> dict[str, Any]:
    """Keyword arguments of `SamplingParams`. `Unsupported` (UNSUPPORTED_BY_ENGINE) names the field."""
    call, sampling = request.call, request.call.sampling
    _check_supported(call)
    given = {field.name: value for field, value in sampling.ListFields()}
    arguments: dict[str, Any] = {name: given[name] for name in _AS_THEY_ARE if name in given}
    arguments["end_id"] = arguments["pad_id"] = end_token_ids[0]
    stop_ids = list(ending_ids(request, end_token_ids[1:]))
    if stop_ids:
        arguments["stop_token_ids"] = stop_ids
    arguments["ignore_eos"] = sampling.ignore_eos
    arguments["max_tokens"] = max_tokens
    return arguments


def retention_of(call: call_pb2.CallRequest) -> dict[str, int] | None:
    """What is wished for the prompt's KV: `{priority, ttl_ms}`, 0 ms = no end; None = the engine's rule."""
    if not call.HasField("kv_retention"):
        return None
    wish = call.kv_retention
    return {"priority": wish.priority, "ttl_ms": wish.ttl.ToMilliseconds() if wish.HasField("ttl") else 0}


def response_format_of(request: EngineRequest, guided: bool) -> dict[str, Any] | None:
    """What the output is held to, as `trtllm-serve` takes it; None = nothing.

    `Unsupported` (UNSUPPORTED_BY_ENGINE) where the engine is not `guided`, or would begin the form again behind output
    that a client already has.
    """
    kinds, asked = call_pb2.ResponseFormat, request.call.response_format
    if asked.kind in _FREE:
        return None
    if not guided:
        raise _unsupported("response_format")
    if request.delivered_tokens:
        raise _unsupported("response_format", "an output that is held to a form cannot be continued")
    if asked.kind == kinds.KIND_JSON_OBJECT:
        return {"type": "json_object"}
    if asked.kind == kinds.KIND_JSON_SCHEMA:
        return {"type": "json", "schema": json.loads(asked.definition)}
    name = "regex" if asked.kind == kinds.KIND_REGEX else "ebnf"
    return {"type": name, name: asked.definition}


def _check_supported(call: call_pb2.CallRequest) -> None:
    sampling = call.sampling
    asked = {
        "sampling.n": sampling.n > 1,
        "sampling.logprobs": sampling.logprobs,
        "sampling.logit_bias": bool(sampling.logit_bias),
    }
    for field, wanted in asked.items():
        if wanted:
            raise _unsupported(field)


def _unsupported(field: str, text: str = "engine trtllm does not take it") -> Unsupported:
    return Unsupported(f"{field}: {text}", reason="UNSUPPORTED_BY_ENGINE", field=field)
