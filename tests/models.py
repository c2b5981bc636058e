"""Small model directories: a real tokenizer trained on a few lines, templates in the shape of two families'."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

LINES = (
    "The plan is to look at the weather in Paris and then to write a short report.",
    "Find the key of the cache, read the value, and say what you have found.",
    '{"name": "find", "parameters": {"query": "weather"}} {"name": "find", "arguments": {"query": "cache"}}',
    "Grüße aus Köln, 東京 and back again. What is two and two? It is four, of course.",
)

# Llama's shape: headers, a tools block in the first user message, JSON calls.
LLAMA_TEMPLATE = """{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if system or tools %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
{{- '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) + '<|end_header_id|>\\n\\n' }}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one tool call a message') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}
{%- if tools and message.role == 'user' and loop.first %}
{%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- message.content | trim }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# Qwen's shape: ChatML, tools in the system message, tagged calls, reasoning of earlier turns left out.
QWEN_TEMPLATE = """{%- if tools %}
{{- '<|im_start|>system\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
{%- if message.role == 'tool' %}{%- set content = '<tool_response>\\n' + content + '\\n</tool_response>' %}{%- endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{%- set arguments = call.function.arguments | tojson %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + arguments + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

_SPECIAL = {
    "llama": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
              "<|python_tag|>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}  # fmt: skip
_PLAIN: dict[str, tuple[str, ...]] = {"llama": (), "qwen": ("<think>", "</think>", "<tool_call>", "</tool_call>")}
_ENDS = {"llama": ("<|begin_of_text|>", "<|eot_id|>"), "qwen": ("", "<|im_end|>")}


def write_model(folder: Path, family: str) -> Path:
    """A model directory of the family `llama` or `qwen`, laid out as on model hubs."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL[family]])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _PLAIN[family]])
    tokenizer.save(str(folder / "tokenizer.json"))
    begin, end = _ENDS[family]
    config: dict[str, object] = {"bos_token": {"content": begin} if begin else None, "eos_token": end}
    ends = {"eos_token_id": [tokenizer.token_to_id(_SPECIAL[family][0 if family == "qwen" else 1])]}
    if family == "qwen":
        (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE, encoding="utf-8")
    else:
        config["chat_template"] = LLAMA_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    return folder


def write_byte_model(folder: Path) -> Path:
    """A directory of Qwen's shape whose token ids are bytes, as those of the fake TensorRT-LLM, which ends with 256."""
    write_model(folder, "qwen")
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # stand for themselves
    rest = [byte for byte in range(256) if byte not in plain]
    characters = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}
    tokenizer = Tokenizer(models.BPE(vocab=characters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_end|>", "<|im_start|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink()
    return folder
