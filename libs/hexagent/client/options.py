"""What a call can be given beside its prompt, and how it becomes a request."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from hexagent.api.common.v1 import call_pb2
from hexagent.client.prompts import Parent
from hexagent.core.errors import InvalidArgument
from hexagent.core.workflow.model import Join, JoinKind

MAX_TOKENS_DEFAULT: Final = 512


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; what is left out is the engine's default. An engine that lacks one refuses the call."""

    temperature: float  # 0 (greedy) or above
    top_p: float  # above 0, at most 1
    top_k: int  # 0 = all
    min_p: float  # 0 to 1
    seed: int  # equal requests with equal seeds on one engine give equal tokens
    stop: str | Sequence[str]  # texts that end generation, at most 16
    stop_token_ids: Sequence[int]
    ignore_eos: bool  # generate until max_tokens
    presence_penalty: float  # -2 to 2
    frequency_penalty: float  # -2 to 2
    repetition_penalty: float  # above 0
    logit_bias: Mapping[int, float]  # token id -> -100 to 100
    n: int  # outputs drawn; only the first becomes the result's text
    logprobs: bool
    top_logprobs: int  # 0 to 20, needs logprobs


class CallOptions(SamplingOptions, total=False):
    """Keyword arguments of `Workflow.call`, `stream` and `node`."""

    role: str  # what the call does in its class of workflow: plan, worker, judge; lengths are learned by it
    model: str  # default: the workflow's, the client's, or the cluster's only model
    max_tokens: int  # default: the workflow's, or 512
    after: Sequence[Parent]  # parents beyond those whose outputs stand in the prompt
    join: Join | str | int  # "all" (default), "any", a number k of parents, or a Join
    template: str  # the node template of a loop
    round: int  # which repetition of the template; default: the next one
    node_id: str  # default: role and a number
    tools: Sequence[Mapping[str, Any]]  # functions, as {"name", "description", "parameters", "strict"} or OpenAI's form
    tool_choice: str  # "auto", "none", "required", or the name of a tool
    response_format: str | Mapping[str, Any]  # "text", "json", a JSON schema, or OpenAI's form
    expected_output_tokens: int  # a hint
    lora: str  # adapter on top of the model, one that an instance serves
    min_precision: str  # of the weights of instances that may run it, fp8 or bf16
    cache_salt: str  # keeps the prompt's KV apart from other salts'
    template_options: Mapping[str, Any]  # variables of the model's chat template, such as enable_thinking
    engine_options: Mapping[str, str]  # options of one engine, keys like `emulated.output_tokens`


_PLAIN: Final = (
    "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "n", "logprobs", "top_logprobs",
)  # fmt: skip


def call_request(options: CallOptions, model: str, max_tokens: int, stream: bool) -> call_pb2.CallRequest:
    """The engine side's request, still without its prompt. `InvalidArgument` naming the option."""
    request = call_pb2.CallRequest(
        sampling=_sampling(options, max_tokens),
        tools=[_tool(tool, i) for i, tool in enumerate(options.get("tools", ()))],
        model=model,
        lora=options.get("lora", ""),
        cache_salt=options.get("cache_salt", ""),
        engine_options=options.get("engine_options", {}),
        stream=stream,
    )
    if options.get("template_options"):
        request.template_options = json.dumps(options["template_options"], sort_keys=True)
    if "tool_choice" in options:
        request.tool_choice.CopyFrom(_tool_choice(options["tool_choice"]))
    if "response_format" in options:
        request.response_format.CopyFrom(_response_format(options["response_format"]))
    return request


def join_of(join: Join | str | int) -> Join:
    """A join from its short form."""
    if isinstance(join, Join):
        return join
    if isinstance(join, int) and not isinstance(join, bool):
        return Join(JoinKind.K_OF_N, join)
    if join == "all":
        return Join()
    if join == "any":
        return Join(JoinKind.ANY)
    raise InvalidArgument(
        f"join: must be 'all', 'any', a number or a Join; got {join!r}", reason="BAD_JOIN", field="join"
    )


def _sampling(options: CallOptions, max_tokens: int) -> call_pb2.SamplingParams:
    values: dict[str, Any] = {name: options[name] for name in _PLAIN if name in options}
    stop = options.get("stop", ())
    values["stop"] = [stop] if isinstance(stop, str) else list(stop)
    values["stop_token_ids"] = list(options.get("stop_token_ids", ()))
    values["logit_bias"] = dict(options.get("logit_bias", {}))
    try:
        return call_pb2.SamplingParams(max_tokens=max_tokens, **values)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"sampling options: {error}", reason="BAD_SAMPLING", field="sampling") from None


def _tool(tool: Mapping[str, Any], i: int) -> call_pb2.Tool:
    function = tool.get("function", tool)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"tools[{i}].name: is required", reason="BAD_TOOL", field=f"tools[{i}].name")
    schema = function.get("parameters", "")
    return call_pb2.Tool(
        name=name,
        description=function.get("description", ""),
        json_schema=schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True),
        strict=bool(function.get("strict", False)),
    )


def _tool_choice(choice: str) -> call_pb2.ToolChoice:
    kinds = call_pb2.ToolChoice
    modes = {"auto": kinds.MODE_AUTO, "none": kinds.MODE_NONE, "required": kinds.MODE_REQUIRED}
    if choice in modes:
        return call_pb2.ToolChoice(mode=modes[choice])
    return call_pb2.ToolChoice(mode=kinds.MODE_NAMED, name=choice)


def _response_format(response: str | Mapping[str, Any]) -> call_pb2.ResponseFormat:
    kinds = call_pb2.ResponseFormat
    kind = response if isinstance(response, str) else response.get("type")
    if kind == "text":
        return call_pb2.ResponseFormat(kind=kinds.KIND_TEXT)
    if kind in ("json", "json_object"):
        return call_pb2.ResponseFormat(kind=kinds.KIND_JSON_OBJECT)
    if isinstance(response, str):
        raise InvalidArgument(
            f"response_format: must be 'text', 'json' or a mapping; got {response!r}",
            reason="BAD_FORMAT",
            field="response_format",
        )
    if kind in ("regex", "grammar"):
        number = kinds.KIND_REGEX if kind == "regex" else kinds.KIND_GRAMMAR
        return call_pb2.ResponseFormat(kind=number, definition=str(response.get(kind, "")))
    named = response.get("json_schema") if kind == "json_schema" else {"schema": response}
    if not isinstance(named, Mapping) or not isinstance(named.get("schema"), Mapping):
        raise InvalidArgument("response_format: no JSON schema is in it", reason="BAD_FORMAT", field="response_format")
    return call_pb2.ResponseFormat(
        kind=kinds.KIND_JSON_SCHEMA,
        definition=json.dumps(named["schema"], sort_keys=True),
        name=str(named.get("name", "")),
    )
