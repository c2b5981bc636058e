"""Prompts to ids, ids to text, text to what a client sees."""

import json
import random
from pathlib import Path

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.text.model import ModelText, load_model_text
from hexagent.text.output import OutputText, StopTexts
from hexagent.text.reader import OutputReader, Whole, read_output
from hexagent.text.template import ChatTemplate
from hexagent.text.tools import ToolCall, tool_calls
from tests.models import write_model

FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
ASKED = {"function": {"name": "find", "arguments": {"query": "<b>"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def llama(folder: Path) -> ModelText:
    return load_model_text(write_model(folder / "llama", "llama"))


@pytest.fixture(scope="module")
def qwen(folder: Path) -> ModelText:
    return load_model_text(write_model(folder / "qwen", "qwen"))


def text_of(model: ModelText, ids: tuple[int, ...]) -> str:
    return model.tokenizer.decode(list(ids), skip_special_tokens=False)


# -- prompts -----------------------------------------------------------------------------------------------------


def test_a_conversation_in_llamas_shape(llama: ModelText) -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Grüße "},
        {"role": "assistant", "content": "", "tool_calls": [ASKED]},
        {"role": "tool", "content": "four"},
    ]
    ids = llama.chat_ids(messages, [FIND], {})
    head = "<|start_header_id|>{}<|end_header_id|>\n\n{}"
    assert text_of(llama, ids) == "<|begin_of_text|>" + "<|eot_id|>".join(
        head.format(role, text)
        for role, text in [
            ("system", "be brief"),
            ("user", json.dumps(FIND, indent=4) + "\n\nGrüße"),
            ("assistant", '{"name": "find", "parameters": {"query": "<b>"}}'),
            ("ipython", "four"),
            ("assistant", ""),
        ]
    )
    assert llama.tokenizer.token_to_id("<|start_header_id|>") in ids
    assert {llama.tokenizer.id_to_token(i) for i in llama.end_ids} == {"<|eot_id|>", "<|end_of_text|>"}


def test_a_conversation_in_qwens_shape(qwen: ModelText) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nfour"},
        {"role": "user", "content": "why?"},
    ]
    text = text_of(qwen, qwen.chat_ids(messages, [FIND], {"enable_thinking": False}))
    assert text == (
        '<|im_start|>system\n<tools>\n{"type": "function", "function": {"name": "find", "parameters":'
        ' {"type": "object"}}}\n</tools><|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nfour'
        "<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_a_conversation_the_template_refuses_is_named(llama: ModelText) -> None:
    with pytest.raises(InvalidArgument, match="one tool call a message") as caught:
        llama.chat_ids([{"role": "assistant", "content": "", "tool_calls": [ASKED, ASKED]}], [], {})
    assert (caught.value.reason, caught.value.field) == ("BAD_PROMPT", "messages")


def test_marks_for_trainers_change_nothing() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}!"
    assert ChatTemplate(source, {}).render([{"content": "a"}, {"content": "b"}], [], {}) == "ab!"


def test_templates_cannot_reach_python(folder: Path) -> None:
    model = write_model(folder / "evil", "qwen")
    (model / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(InvalidArgument):
        load_model_text(model).chat_ids([{"role": "user", "content": ""}], [], {})


@pytest.mark.parametrize(("file", "text", "reason"), [
    ("tokenizer.json", "{}", "BAD_MODEL_DIRECTORY"),
    ("tokenizer_config.json", "[]", "BAD_MODEL_DIRECTORY"),
    ("chat_template.jinja", "{% if %}", "BAD_CHAT_TEMPLATE"),
])  # fmt: skip
def test_wrong_directories_are_refused(tmp_path: Path, file: str, text: str, reason: str) -> None:
    (write_model(tmp_path, "qwen") / file).write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        load_model_text(tmp_path)
    assert caught.value.reason == reason


# -- outputs -----------------------------------------------------------------------------------------------------


def test_text_comes_in_whole_characters_and_without_special_tokens(llama: ModelText) -> None:
    text = "Köln 東京 🚀 \U0001f469‍\U0001f680 end"
    ids = [*llama.tokenizer.encode(text).ids, llama.end_ids[0]]
    output = OutputText(llama.tokenizer, ())
    pieces = [output.take([token_id]) for token_id in ids]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) + output.end() == output.text == text
    assert len(ids) > len(text)
    assert output.tokens == len(ids)


def test_equal_ids_in_any_stretches_give_equal_text(qwen: ModelText) -> None:
    """Also ids that no model would generate: random ones are mostly bytes that are no characters."""
    chance = random.Random(7)
    for _ in range(200):
        ids = [chance.randrange(qwen.tokenizer.get_vocab_size()) for _ in range(chance.randrange(1, 60))]
        whole = qwen.tokenizer.decode(ids, skip_special_tokens=True)
        output, at = OutputText(qwen.tokenizer, ()), 0
        while at < len(ids):
            size = chance.randrange(1, 9)
            output.take(ids[at : at + size])
            at += size
        output.end()
        assert output.text == whole


def test_stop_texts_are_found_across_tokens(qwen: ModelText) -> None:
    output = OutputText(qwen.tokenizer, ["course. W", "again."])
    ids = qwen.tokenizer.encode("It is four, of course. What is").ids
    taken = 0
    for token_id in ids:
        assert not output.stopped
        output.take([token_id])
        taken += 1
        if output.stopped:
            break
    assert output.text == "It is four, of "
    assert taken < len(ids)
    assert output.end() == ""


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    stops = StopTexts(["aab", "x"])
    assert [stops.take(piece) for piece in ("ca", "a", "a", "c", "aa")] == ["c", "", "a", "aac", ""]
    assert (stops.rest(), stops.stopped) == ("aa", False)
    stops = StopTexts(["aab", "x"])
    assert [stops.take(piece) for piece in ("aa", "ab", "c")] == ["", "a", ""]
    assert stops.stopped


# -- what a client sees ------------------------------------------------------------------------------------------

CALL = ToolCall("find", {"query": "a"})
HERMES = '<tool_call>\n{"name": "find", "arguments": {"query": "a"}}\n</tool_call>'
LLAMA = '{"name": "find", "parameters": {"query": "a"}}'


@pytest.mark.parametrize(
    ("text", "tools", "reasoning", "whole"),
    [
        ("plain", "hermes", "think", Whole("", "plain", ())),
        ("<think>\nso\n</think>\n\nfour", "hermes", "think", Whole("\nso\n", "four", ())),
        ("so</think>four", "hermes", "think-open", Whole("so", "four", ())),
        ("<think>cut off", "hermes", "think", Whole("cut off", "", ())),
        ("a < b <thin", "hermes", "think", Whole("", "a < b <thin", ())),
        (f"<think>x</think>\n\n{HERMES}\n{HERMES}", "hermes", "think", Whole("x", "", (CALL, CALL))),
        (f"I look.\n{HERMES}", "hermes", "", Whole("", "I look.", (CALL,))),
        ("say <tool_call> twice", "hermes", "", Whole("", "say <tool_call> twice", ())),
        ("<tool_call>{broken</tool_call>", "hermes", "", Whole("", "<tool_call>{broken</tool_call>", ())),
        (LLAMA, "llama3-json", "", Whole("", "", (CALL,))),
        (f"<|python_tag|>{LLAMA}; {LLAMA}", "llama3-json", "", Whole("", "", (CALL, CALL))),
        (f"see {LLAMA}", "llama3-json", "", Whole("", f"see {LLAMA}", ())),
        ('{"a": 1}', "llama3-json", "", Whole("", '{"a": 1}', ())),
        ('{"tool_calls":[{"name":"find","arguments":{"query":"a"}}]}', "", "", Whole("", "", (CALL,))),
        ('{"tools": 1}', "", "", Whole("", '{"tools": 1}', ())),
    ],
)
def test_outputs_are_read_the_same_whole_and_by_character(text: str, tools: str, reasoning: str, whole: Whole) -> None:
    assert read_output(OutputReader(tools, reasoning, may_ask=True), text, asked=True) == whole
    reader = OutputReader(tools, reasoning, may_ask=True)
    pieces = [reader.take(character) for character in text]
    end = reader.end(asked=True)
    assert "".join(piece.reasoning for piece in pieces) + end.reasoning == whole.reasoning
    content = "".join(piece.content for piece in pieces) + end.content
    assert (content.rstrip("\n"), end.tool_calls) == (whole.content, whole.tool_calls)
    assert "<tool_call>" not in "".join(piece.content for piece in pieces)


def test_nothing_is_held_where_no_tool_can_be_asked_for() -> None:
    reader = OutputReader("llama3-json", "", may_ask=False)
    assert reader.take('{"a').content == '{"a'
    assert reader.end(asked=True) == Whole("", "", ())


def test_tools_are_found_in_any_form() -> None:
    assert tool_calls(f"<think>{LLAMA}</think>{HERMES}") == (CALL,)
    assert tool_calls(LLAMA) == (CALL,)
    assert tool_calls("no") == ()
