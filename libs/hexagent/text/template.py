"""Chat templates, rendered in the sandbox and with the names that models' own templates are written for."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hexagent.core.errors import InvalidArgument

Message = Mapping[str, Any]  # role, content, tool_calls, ... as in the OpenAI API, arguments of tool calls as objects


class ChatTemplate:
    """A model's template. Blocks are trimmed, and `tojson`, `raise_exception`, `strftime_now` are there, as templates
    on model hubs expect. `tokens` are the special tokens that templates name, such as `bos_token`.

    `InvalidArgument` (BAD_CHAT_TEMPLATE) where it is none.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidArgument(
                f"chat template: {error}", reason="BAD_CHAT_TEMPLATE", field="chat_template"
            ) from None

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> str:
        """The conversation as text up to where the assistant's answer begins.

        `options` are further variables of the template, such as `enable_thinking`. `InvalidArgument` (BAD_PROMPT) for
        a conversation that the template does not take.
        """
        variables: dict[str, Any] = {**self._tokens, **options}
        try:
            return self._template.render(
                variables, messages=messages, tools=list(tools) or None, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            text = f"messages: the model's chat template refuses them: {error}"
            raise InvalidArgument(text, reason="BAD_PROMPT", field="messages") from None


class _Generation(Extension):
    """`{% generation %}` tells trainers what the assistant has written; to others it is a scope like any other."""

    tags = {"generation"}  # noqa: RUF012 - the library declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(text: str) -> NoReturn:
    raise jinja2.TemplateError(text)


def _strftime_now(form: str) -> str:
    """Templates mean the local day."""
    return datetime.now().strftime(form)
