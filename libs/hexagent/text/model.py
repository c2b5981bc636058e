"""A model's directory: its tokenizer, its chat template and the tokens that end an output."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from hexagent.core.errors import InvalidArgument
from hexagent.text.template import ChatTemplate, Message

_TOKEN_NAMES: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


class ModelText:
    """Prompts to token ids. Its methods are pure and may run on any thread."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, end_ids: tuple[int, ...]) -> None:
        self.tokenizer: Final = tokenizer
        self.end_ids: Final = end_ids  # each of them ends an output
        self._template = template

    def chat_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> tuple[int, ...]:
        """A conversation, rendered and tokenised; errors as `ChatTemplate.render`."""
        text = self._template.render(messages, tools, options)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def plain_ids(self, text: str, *, begins: bool) -> tuple[int, ...]:
        """Text outside any template; where it `begins` a prompt, behind what the tokenizer puts before texts."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=begins).ids)


def load_model_text(directory: str | Path) -> ModelText:
    """Read `tokenizer.json`, `tokenizer_config.json`, and where they exist `chat_template.jinja`, which wins over the
    template in the configuration, and `generation_config.json`.

    `InvalidArgument` (BAD_MODEL_DIRECTORY, BAD_CHAT_TEMPLATE) naming the file.
    """
    folder = Path(directory)
    config = _json(folder / "tokenizer_config.json")
    tokens = {name: _token(config[name]) for name in _TOKEN_NAMES if config.get(name)}
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise _bad(file, str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return ModelText(
        tokenizer, ChatTemplate(_template_source(folder, config), tokens), _end_ids(folder, tokenizer, tokens)
    )


def _template_source(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name
        source = {item.get("name"): item.get("template") for item in source}.get("default")
    if not isinstance(source, str):
        raise _bad(folder / "tokenizer_config.json", "holds no chat_template, and there is no chat_template.jinja")
    return source


def _end_ids(folder: Path, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    named = _json(file).get("eos_token_id", []) if file.is_file() else []
    ids = set(named if isinstance(named, list) else [named])
    end = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    return tuple(sorted(ids if end is None else ids | {end}))


def _token(value: object) -> str:
    """A special token stands as a text or as an object around it."""
    return str(value.get("content", "") if isinstance(value, dict) else value)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad(file, str(error)) from error
    if not isinstance(value, dict):
        raise _bad(file, "is no JSON object")
    return value


def _bad(file: Path, text: str) -> InvalidArgument:
    return InvalidArgument(f"{file}: {text}", reason="BAD_MODEL_DIRECTORY", field="directory")
