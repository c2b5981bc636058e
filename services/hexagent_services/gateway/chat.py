"""The body of `POST /v1/chat/completions`: what is understood, refused by name, or ignored."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from hexagent.api.common.v1 import call_pb2
from hexagent.client import CallOptions, CallResult, FinishReason
from hexagent.client.options import call_request
from hexagent.core.errors import InvalidArgument, NotFound
from hexagent.core.ids import checked_id
from hexagent.core.instance.spec import TextSpec
from hexagent.text.reader import OutputReader, Whole, read_output
from hexagent_services.gateway.messages import Message, parse_messages

# Read by other servers or about storage and billing: without effect here, and harmless.
IGNORED: Final = frozenset(
    {
        "conversation_params", "metadata", "nvext", "parallel_tool_calls", "program_id", "prompt_cache_key",
        "prompt_cache_retention", "reasoning_effort", "safety_identifier", "session_params", "store", "user",
        "verbosity", "vllm_xargs",
    }
)  # fmt: skip
# Would change the answer, so a request that sets one is refused instead of answered otherwise than asked.
UNSUPPORTED: Final = frozenset(
    {"audio", "function_call", "functions", "prediction", "top_logprobs", "web_search_options"}
)

_SAMPLING: Final = (
    "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "ignore_eos",
)  # fmt: skip
_FORMATS: Final = ("text", "json_object", "json_schema")
_UINT64: Final = 2**64
_NAMED_MAX: Final = 20  # models in an error

Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopText = Annotated[str, Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Body):
    """What a stream holds beside its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against guessing by size; never sent


class HexagentOptions(_Body):
    """The extra key `hexagent` of a request."""

    role: str = ""  # what the call does in its class of workflow
    expected_output_tokens: int = Field(default=0, ge=0, le=2**31 - 1)
    min_precision: str = ""  # of weights
    after: list[str] = []  # call ids of the same session
    workflow_class: str = ""  # with the first request of a session
    slo_scale: float = Field(default=0.0, ge=0)  # likewise
    engine_options: dict[str, str] = {}


class ChatBody(_Body):
    """The fields that are understood; null is the same as absent."""

    messages: list[dict[str, Any]]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**32)]] | None = None
    ignore_eos: bool | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    hexagent: HexagentOptions = HexagentOptions()


class Models(NamedTuple):
    """What requests may name."""

    names: tuple[str, ...]
    default: str  # "" = a request must name one
    max_tokens: int  # of requests that set none
    texts: Mapping[str, TextSpec] = {}  # by model, of those that have one
    adapters: Mapping[str, tuple[str, str]] = {}  # model and adapter by their common name, MODEL:ADAPTER

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.names, *self.adapters)

    def unknown(self, name: str) -> NotFound:
        known = ", ".join(self.known[:_NAMED_MAX])
        message = f"the model {name[:80]!r} does not exist; known: {known}"
        return NotFound(message, reason="UNKNOWN_MODEL", field="model")


class Chat(NamedTuple):
    """A request that is right as far as can be told without the cluster."""

    messages: tuple[Message, ...]
    request: call_pb2.CallRequest  # without its prompt
    options: HexagentOptions
    service_tier: str | None
    stream: bool
    include_usage: bool
    text: TextSpec  # of its model
    model: str  # as the request names it, with an adapter or without

    def reader(self) -> OutputReader:
        """For its output. What emulated engines say needs no tools in the request to ask for some."""
        return OutputReader(self.text.tools, self.text.reasoning, bool(self.request.tools) or not self.text.tools)

    def said(self, result: CallResult) -> Whole:
        """What its finished output says."""
        return read_output(self.reader(), result.text, result.finish_reason is FinishReason.TOOL_CALLS)


def parse_chat(data: bytes, models: Models) -> Chat:
    """The request in `data`. `InvalidArgument` naming the field, `NotFound` (UNKNOWN_MODEL)."""
    try:
        return _chat(_body(data), models)
    except UnicodeEncodeError:
        # JSON can spell halves of surrogate pairs, which are no characters.
        raise InvalidArgument("the body holds text that is no Unicode", reason="BAD_UTF8", field="body") from None


def _body(data: bytes) -> ChatBody:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the body is no JSON: {error}", reason="BAD_JSON", field="body") from None
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a JSON object", reason="BAD_JSON", field="body")
    for name in sorted(UNSUPPORTED & value.keys()):
        if value[name] is not None:
            raise _unsupported(name)
    fields = {name: field for name, field in value.items() if field is not None and name not in IGNORED | UNSUPPORTED}
    try:
        return ChatBody.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _invalid(error) from None


def _chat(body: ChatBody, models: Models) -> Chat:
    if body.n not in (None, 1):
        raise _unsupported("n", f"must be 1; got {body.n}")
    if body.logprobs:
        raise _unsupported("logprobs")
    if body.modalities not in (None, ["text"]):
        raise _unsupported("modalities", 'must be ["text"]')
    if body.stream_options is not None and not body.stream:
        raise _bad("stream_options", "belongs to requests with stream=true")
    name = body.model or models.default
    if not name:
        raise _bad("model", f"is required: one of {', '.join(models.known[:_NAMED_MAX])}")
    if name not in models.known:
        raise models.unknown(name)
    model, lora = models.adapters.get(name, (name, ""))
    if body.hexagent.role:
        checked_id(body.hexagent.role, "hexagent.role")
    text = models.texts.get(model) or TextSpec(model)
    if text.directory:
        _refuse_forced_tools(body)
    messages = parse_messages(body.messages)
    max_tokens = body.max_completion_tokens or body.max_tokens or models.max_tokens
    return Chat(
        messages=messages,
        request=call_request(_options(body, lora), model, max_tokens, bool(body.stream)),
        options=body.hexagent,
        service_tier=body.service_tier,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        text=text,
        model=name,
    )


def _options(body: ChatBody, lora: str) -> CallOptions:
    """The SDK's options for what the body says."""
    options = CallOptions(engine_options=body.hexagent.engine_options, lora=lora)
    for name in _SAMPLING:
        value = getattr(body, name)
        if value is not None:
            options[name] = value
    if body.seed is not None:
        options["seed"] = body.seed % _UINT64
    if body.logit_bias:
        options["logit_bias"] = {_token_id(key): bias for key, bias in body.logit_bias.items()}
    if body.cache_salt:
        options["cache_salt"] = body.cache_salt
    if body.chat_template_kwargs:
        options["template_options"] = body.chat_template_kwargs
    if body.tools:
        options["tools"] = _tools(body.tools)
    if body.tool_choice is not None:
        options["tool_choice"] = _tool_choice(body.tool_choice)
    if body.response_format is not None:
        if body.response_format.get("type") not in _FORMATS:
            raise _bad("response_format.type", f"must be one of {', '.join(_FORMATS)}")
        options["response_format"] = body.response_format
    return options


def _refuse_forced_tools(body: ChatBody) -> None:
    """Nothing constrains a real engine's output to calls of tools."""
    if body.tool_choice not in (None, "auto", "none"):
        raise _unsupported("tool_choice", "only auto and none are supported by this model's engines")
    for i, tool in enumerate(body.tools or ()):
        if isinstance(tool.get("function"), dict) and tool["function"].get("strict"):
            raise _unsupported(f"tools[{i}].function.strict", "is not supported by this model's engines")


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal()) or int(key) >= 2**32:
        raise _bad("logit_bias", f"its keys are token ids; got {key[:20]!r}")
    return int(key)


def _tools(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for i, tool in enumerate(tools):
        path = f"tools[{i}]"
        if tool.get("type") != "function":
            raise _unsupported(f"{path}.type", "only functions are supported")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise _bad(f"{path}.function", "must be an object")
        for name, kind in (("name", str), ("description", str), ("parameters", dict), ("strict", bool)):
            if function.get(name) is not None and not isinstance(function[name], kind):
                raise _bad(f"{path}.function.{name}", "has the wrong type")
        found.append({name: value for name, value in function.items() if value is not None})
    return found


def _tool_choice(choice: str | Mapping[str, Any]) -> str:
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise _bad("tool_choice", f"must be auto, none, required or a function; got {choice[:40]!r}")
        return choice
    function = choice.get("function")
    if choice.get("type") != "function" or not isinstance(function, dict):
        raise _unsupported("tool_choice.type", "only functions are supported")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise _bad("tool_choice.function.name", "is required")
    return name


def _invalid(error: pydantic.ValidationError) -> InvalidArgument:
    """The first problem, with the field as the client wrote it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ""
    for part in first["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
        if field in ("stop", "tool_choice"):
            break  # what follows says which of the alternatives was tried
    if first["type"] == "extra_forbidden":
        return _bad(field, "unrecognized request argument", "UNKNOWN_FIELD")
    return _bad(field, first["msg"])


def _bad(field: str, text: str, reason: str = "BAD_FIELD") -> InvalidArgument:
    return InvalidArgument(f"{field}: {text}", reason=reason, field=field)


def _unsupported(field: str, text: str = "is not supported") -> InvalidArgument:
    return _bad(field, text, "UNSUPPORTED_FIELD")
