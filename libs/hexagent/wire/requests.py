"""Checks of a call's request at the public edge; what engines differ in is checked by the engine's own side."""

import math
import re

from hexagent.api.common.v1 import call_pb2
from hexagent.wire.codec import bad, check_json_object
from hexagent.wire.times import duration_from_proto

STOP_MAX = 16
TOOLS_MAX = 128
CHOICES_MAX = 128
TOP_LOGPROBS_MAX = 20
NAME_MAX_CHARS = 256

_OPTION_KEY = re.compile(r"[a-z][a-z0-9_]*\.[\x21-\x7e]{1,120}\Z")
_WITH_DEFINITION = frozenset(
    {
        call_pb2.ResponseFormat.KIND_JSON_SCHEMA,
        call_pb2.ResponseFormat.KIND_REGEX,
        call_pb2.ResponseFormat.KIND_GRAMMAR,
    }
)


def check_request(request: call_pb2.CallRequest, path: str) -> None:
    """`InvalidArgument` with the field's path for whatever no engine could run; the prompt is checked elsewhere."""
    _check_name(request.model, f"{path}.model", required=True)
    _check_name(request.lora, f"{path}.lora")
    _check_name(request.cache_salt, f"{path}.cache_salt")
    if not request.HasField("sampling"):
        raise bad("NO_SAMPLING", f"{path}.sampling", "is required: it holds max_tokens")
    check_sampling(request.sampling, f"{path}.sampling")
    names = _check_tools(request, f"{path}.tools")
    if request.HasField("tool_choice"):
        _check_tool_choice(request.tool_choice, names, f"{path}.tool_choice")
    if request.HasField("response_format"):
        _check_format(request.response_format, f"{path}.response_format")
    if request.HasField("kv_retention"):
        _check_retention(request.kv_retention, f"{path}.kv_retention")
    if request.template_options:
        check_json_object(request.template_options, f"{path}.template_options")
    for key in request.engine_options:
        if not _OPTION_KEY.match(key):
            raise bad("BAD_OPTION", f"{path}.engine_options", f"a key is `engine.option`; got {key[:80]!r}")


def check_sampling(sampling: call_pb2.SamplingParams, path: str) -> None:
    """Ranges that hold for every engine."""
    if sampling.max_tokens < 1:
        raise bad("BAD_MAX_TOKENS", f"{path}.max_tokens", f"must be at least 1; got {sampling.max_tokens}")
    _check_range(sampling, "temperature", 0.0, math.inf, path)
    _check_range(sampling, "top_p", math.ulp(0.0), 1.0, path)
    _check_range(sampling, "top_k", 0, math.inf, path)
    _check_range(sampling, "min_p", 0.0, 1.0, path)
    _check_range(sampling, "presence_penalty", -2.0, 2.0, path)
    _check_range(sampling, "frequency_penalty", -2.0, 2.0, path)
    _check_range(sampling, "repetition_penalty", math.ulp(0.0), math.inf, path)
    _check_range(sampling, "n", 1, CHOICES_MAX, path)
    if len(sampling.stop) > STOP_MAX or "" in sampling.stop:
        raise bad("BAD_STOP", f"{path}.stop", f"at most {STOP_MAX} texts, none empty")
    for token_id, bias in sampling.logit_bias.items():
        if not -100.0 <= bias <= 100.0:
            raise bad("BAD_SAMPLING", f"{path}.logit_bias[{token_id}]", f"must be -100 to 100; got {bias}")
    if not 0 <= sampling.top_logprobs <= TOP_LOGPROBS_MAX:
        raise bad("BAD_SAMPLING", f"{path}.top_logprobs", f"must be 0 to {TOP_LOGPROBS_MAX}")
    if sampling.top_logprobs and not sampling.logprobs:
        raise bad("BAD_SAMPLING", f"{path}.top_logprobs", "needs `logprobs`")


def _check_range(sampling: call_pb2.SamplingParams, name: str, least: float, most: float, path: str) -> None:
    """An optional number within its range; infinity and NaN are never right."""
    present: set[str] = {field.name for field, _ in sampling.ListFields()}
    if name not in present:
        return
    value: float = getattr(sampling, name)
    if not math.isfinite(value) or not least <= value <= most:
        limits = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        raise bad("BAD_SAMPLING", f"{path}.{name}", f"must be {limits}; got {value}")


def _check_name(value: str, field: str, *, required: bool = False) -> None:
    if required and not value:
        raise bad("BAD_NAME", field, "is required")
    if len(value) > NAME_MAX_CHARS or not value.isprintable():
        raise bad("BAD_NAME", field, f"at most {NAME_MAX_CHARS} printable characters")


def _check_tools(request: call_pb2.CallRequest, path: str) -> set[str]:
    if len(request.tools) > TOOLS_MAX:
        raise bad("TOO_MANY_TOOLS", path, f"at most {TOOLS_MAX} tools; got {len(request.tools)}")
    names: set[str] = set()
    for i, tool in enumerate(request.tools):
        _check_name(tool.name, f"{path}[{i}].name", required=True)
        if tool.name in names:
            raise bad("DUPLICATE_TOOL", f"{path}[{i}].name", f"{tool.name} stands twice in the request")
        names.add(tool.name)
        if tool.json_schema:
            check_json_object(tool.json_schema, f"{path}[{i}].json_schema")
    return names


def _check_tool_choice(choice: call_pb2.ToolChoice, names: set[str], path: str) -> None:
    modes = call_pb2.ToolChoice
    known = (modes.MODE_AUTO, modes.MODE_NONE, modes.MODE_REQUIRED, modes.MODE_NAMED)
    if choice.mode not in known:
        raise bad("BAD_ENUM", f"{path}.mode", "must be one of AUTO, NONE, REQUIRED, NAMED")
    if choice.mode == modes.MODE_REQUIRED and not names:
        raise bad("BAD_TOOL_CHOICE", f"{path}.mode", "REQUIRED needs tools")
    if choice.mode == modes.MODE_NAMED and choice.name not in names:
        raise bad("BAD_TOOL_CHOICE", f"{path}.name", f"{choice.name!r} is no tool of the request")
    if choice.mode != modes.MODE_NAMED and choice.name:
        raise bad("BAD_TOOL_CHOICE", f"{path}.name", "belongs to NAMED only")


def _check_format(response: call_pb2.ResponseFormat, path: str) -> None:
    kinds = call_pb2.ResponseFormat
    if response.kind not in _WITH_DEFINITION | {kinds.KIND_TEXT, kinds.KIND_JSON_OBJECT}:
        raise bad("BAD_ENUM", f"{path}.kind", "must be one of TEXT, JSON_OBJECT, JSON_SCHEMA, REGEX, GRAMMAR")
    if bool(response.definition) != (response.kind in _WITH_DEFINITION):
        raise bad("BAD_FORMAT", f"{path}.definition", "belongs to JSON_SCHEMA, REGEX and GRAMMAR, which need it")
    if response.kind == kinds.KIND_JSON_SCHEMA:
        check_json_object(response.definition, f"{path}.definition")


def _check_retention(retention: call_pb2.KvRetention, path: str) -> None:
    if not 0 <= retention.priority <= 100:
        raise bad("BAD_RETENTION", f"{path}.priority", f"must be 0 to 100; got {retention.priority}")
    if retention.HasField("ttl"):
        duration_from_proto(retention.ttl, f"{path}.ttl")
